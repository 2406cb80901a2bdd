"""Pieces of the stages that have a right answer of their own."""

import numpy as np
import pytest

from parlance.pipeline.stages.docstring_demonstrations import fit_source
from parlance.pipeline.stages.policy import standardised
from parlance.pipeline.stages.sampling import derived_seed


def test_a_standardised_reward_has_mean_zero_and_deviation_one_on_its_references():
    raw = [-3.0, -7.0, -20.0, -2.0]
    reward = standardised(lambda _chosen, _responses: raw, raw)
    scaled = reward([], [])
    assert np.mean(scaled) == pytest.approx(0.0, abs=1e-12)
    assert np.std(scaled) == pytest.approx(1.0)
    assert np.argsort(scaled).tolist() == np.argsort(raw).tolist()


def test_a_constant_reward_is_centred_and_not_divided_by_zero():
    assert standardised(lambda _chosen, _responses: [4.0, 4.0], [4.0, 4.0])([], []) == [0.0, 0.0]


def test_a_source_is_cut_at_a_line_s_end(tiny_tokenizer):
    source = "def f(x):\n    y = x\n    return y"
    assert fit_source(tiny_tokenizer, source, len(source)) == source
    assert fit_source(tiny_tokenizer, source, len(source) - 1) == "def f(x):\n    y = x"
    assert fit_source(tiny_tokenizer, source, 4) == "def "


def test_seeds_of_different_uses_differ_and_repeat():
    seeds = [
        derived_seed(0, "test", 0),
        derived_seed(0, "test", 256),
        derived_seed(0, "train", 0),
        derived_seed(1, "test", 0),
    ]
    assert len(set(seeds)) == 4
    assert seeds[0] == derived_seed(0, "test", 0)
    assert all(0 <= seed < 2**32 for seed in seeds)
