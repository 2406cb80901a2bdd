"""Parlance: from text to a language model you can talk to, on the machine in front of you.

    import parlance
    model = parlance.load("runs/demo")
    print(model.chat([{"role": "user", "content": "def add(a, b):\\n    return a + b"}]))

- `load(path)`: a checkpoint folder or run directory as a `Model`: `.generate`, `.score`, `.chat`
- `SamplingConfig`: how tokens are drawn
- `convert(source, out)`: a checkpoint in another form
- `run(recipe, out, resume=, command=)`: the whole line, text to aligned model and report; `Recipe` says what it does
- `prepare_corpus`, `train_tokenizer`, `Tokenizer`: from text to tokens
- `pretrain`, `finetune`, `train_reward_model`: the training stages
- `UserError`: what is raised where the input or the options are wrong

The names are imported when they are first used, so that `import parlance` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parlance.alignment.reward_model import train_reward_model
    from parlance.core.errors import UserError
    from parlance.finetuning.supervised import finetune
    from parlance.inference.model import Model, load
    from parlance.inference.sampling import SamplingConfig
    from parlance.models.conversion import convert
    from parlance.pipeline.recipe import Recipe
    from parlance.pipeline.run import run_pipeline as run
    from parlance.text.preparation import prepare_corpus
    from parlance.text.tokenizers import Tokenizer, train_tokenizer
    from parlance.training.pretraining import pretrain

__version__ = "0.1.0"

__all__ = [
    "Model",
    "Recipe",
    "SamplingConfig",
    "Tokenizer",
    "UserError",
    "convert",
    "finetune",
    "load",
    "prepare_corpus",
    "pretrain",
    "run",
    "train_reward_model",
    "train_tokenizer",
]

_HOMES = {
    "Model": "parlance.inference.model",
    "Recipe": "parlance.pipeline.recipe",
    "SamplingConfig": "parlance.inference.sampling",
    "Tokenizer": "parlance.text.tokenizers",
    "UserError": "parlance.core.errors",
    "convert": "parlance.models.conversion",
    "finetune": "parlance.finetuning.supervised",
    "load": "parlance.inference.model",
    "prepare_corpus": "parlance.text.preparation",
    "pretrain": "parlance.training.pretraining",
    "run": "parlance.pipeline.run:run_pipeline",
    "train_reward_model": "parlance.alignment.reward_model",
    "train_tokenizer": "parlance.text.tokenizers",
}
"""Where each public name lives: "module", or "module:name" where the name differs."""


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'parlance' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
