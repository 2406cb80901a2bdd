"""Precision: what auto chooses, what is refused, what is said; and the scaling of fp16's loss."""

import math

import pytest
import torch

from parlance.core.errors import UserError
from parlance.training import precision
from parlance.training.loss_scaling import FIRST_FACTOR, GROWTH_STEPS, LARGEST_FACTOR, LossScaler, ScaledObjective
from parlance.training.objectives import LossTerms
from parlance.training.precision import set_precision, training_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(("fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bf16_where_it_is_fast(monkeypatch, capsys, fast, expected):
    monkeypatch.setattr(precision, "fast_bfloat16", lambda _device: fast)
    assert training_dtype("auto", CPU) == expected
    assert training_dtype("fp32", CPU) == torch.float32
    assert not capsys.readouterr().err


def test_bf16_without_instructions_goes_on_and_says_how_slowly(monkeypatch, capsys):
    monkeypatch.setattr(precision, "fast_bfloat16", lambda _device: False)
    monkeypatch.setattr(precision, "matrix_rate", lambda _device, dtype: 2e9 if dtype == torch.bfloat16 else 1e11)
    assert training_dtype("bf16", CPU) == torch.bfloat16
    assert "2.0 GFLOP/s, those of fp32 at 100.0: training goes on 50.0 times as slowly" in capsys.readouterr().err


def test_fp16_is_for_cuda():
    with pytest.raises(UserError, match="precision fp16 is for CUDA devices, and this run is on cpu: choose"):
        training_dtype("fp16", CPU)
    assert training_dtype("fp16", torch.device("cuda")) == torch.float16


def test_a_model_that_is_trained_further_keeps_its_precision_unless_told(tiny_transformer):
    model = tiny_transformer()
    model.compute_dtype = torch.bfloat16
    set_precision(model, "auto")
    assert model.compute_dtype == torch.bfloat16
    set_precision(model, "fp32")
    assert model.compute_dtype == torch.float32


# --- loss scaling ----------------------------------------------------------------------------------------------------


def test_the_factor_falls_at_an_overflow_and_rises_after_many_good_steps():
    scaler = LossScaler()
    assert scaler.overflows(math.inf)
    assert scaler.overflows(math.nan)
    assert scaler.factor == FIRST_FACTOR / 4
    for _ in range(GROWTH_STEPS - 1):
        assert not scaler.overflows(1.0)
    assert scaler.factor == FIRST_FACTOR / 4
    state = scaler.capture()
    assert not scaler.overflows(1.0)
    assert scaler.factor == FIRST_FACTOR / 2
    again = LossScaler()
    again.restore(state)
    assert not again.overflows(1.0)
    assert again.capture() == scaler.capture()
    scaler.factor, scaler.finite_steps = LARGEST_FACTOR, GROWTH_STEPS - 1
    scaler.overflows(1.0)
    assert scaler.factor == LARGEST_FACTOR


def test_at_a_factor_of_one_it_is_no_overflow_of_the_scaling():
    scaler = LossScaler()
    found = [scaler.overflows(math.inf) for _ in range(20)]
    assert found == [True] * 15 + [False] * 5
    assert scaler.factor == 1.0


def test_loss_and_regulariser_are_scaled_and_nothing_else():
    terms = LossTerms(torch.tensor(3.0), 4, {"accuracy": 2.0}, torch.tensor(0.5))
    scaled = ScaledObjective(lambda _model, _batch: terms, LossScaler())(torch.nn.Identity(), None)
    assert float(scaled.loss_sum) == 3.0 * FIRST_FACTOR
    assert float(scaled.regulariser) == 0.5 * FIRST_FACTOR
    assert (scaled.count, scaled.metrics) == (4, {"accuracy": 2.0})
