"""Small models and tokenizers that every test folder shares, and the rules by which marked tests are skipped."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Tiny matrices: more threads only cost time, and exact results need their number fixed. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests of whole runs use two; where other programs run too, threads that spin as they wait are many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from parlance.models.transformer import Transformer
    from parlance.text.tokenizers import Tokenizer

DATA = Path(os.environ.get("PARLANCE_DATA") or Path(__file__).resolve().parents[1] / ".." / "shared" / "data")

TINY = {"vocab_size": 260, "context_length": 64, "width": 32, "layers": 2, "heads": 2, "head_width": 16}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, and say why."""
    if item.get_closest_marker("data") and not DATA.is_dir():
        pytest.skip(f"no data sets at {DATA}; set PARLANCE_DATA")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Where the real data sets are; for tests marked `data`."""
    return DATA


@pytest.fixture(scope="session")
def tiny_tokenizer() -> "Tokenizer":
    """Plain bytes and four special tokens: 260 ids."""
    from parlance.text.tokenizers import train_tokenizer

    return train_tokenizer([], "byte")


@pytest.fixture(scope="session")
def tiny_transformer() -> "Callable[..., Transformer]":
    """A function (seed, sizes) -> Transformer with every weight random, those that training starts at 0 or 1 too."""
    import torch

    from parlance.models.transformer import Transformer
    from parlance.models.transformer_config import TransformerConfig

    def make(seed: int = 0, **sizes: Any) -> Transformer:
        model = Transformer(TransformerConfig(**(TINY | sizes)))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.normal_(1.0, 0.3, generator=generator)
                else:
                    parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
        return model

    return make
