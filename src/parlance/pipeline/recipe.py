"""A recipe: everything that decides what a run does. Stored resolved as `recipe.yaml` in the run directory.

The default recipe makes a documentation assistant from the Python standard library. A user's own texts,
demonstrations and preferences replace its parts.
"""

from pathlib import Path
from typing import Literal

import yaml

from parlance.alignment.ppo import PPOConfig
from parlance.alignment.reward_model import RewardModelConfig
from parlance.core.config import Config, parse_config
from parlance.core.errors import UserError
from parlance.finetuning.supervised import FinetuningConfig
from parlance.text.preparation import PreparationConfig
from parlance.training.loop import Budget
from parlance.training.pretraining import PretrainingConfig
from parlance.training.rates import LearningRates


class TokenizerConfig(Config):
    """The tokenizer of a run."""

    kind: Literal["bpe", "byte"] = "bpe"
    """Byte-level BPE trained on the training split, or plain bytes."""
    vocab_size: int = 4096
    """Tokens, special ones included (BPE)."""


class TaskConfig(Config):
    """Prompts and sampled responses of the instruction, reward and policy stages."""

    prompt_tokens: int = 144
    """A longer function is cut at a line's end, so that its signature and as much of its body as fits remain."""
    max_tokens: int = 40
    """Longest sampled response."""
    temperature: float = 1.0
    """Of all sampling in rankings, PPO and evaluation."""
    ranked_prompts: int = 600
    """Prompts of the training split whose responses are ranked (default recipe)."""
    responses: int = 4
    """Responses a prompt (K)."""
    tie_margin: float = 0.02
    """Responses whose labeller scores differ by no more than this are tied."""
    heldout_prompts: int = 240
    """Most prompts of the test split used in evaluation."""


class Steps(Config):
    """Fixed step budgets; with them a run is bit-identical after any number of kills and resumes."""

    pretrain: int
    """Optimizer steps."""
    sft: int
    """Optimizer steps."""
    reward: int
    """Optimizer steps."""
    ppo: int
    """PPO updates."""


class Shares(Config):
    """How a time budget is divided: each stage gets its share of what is left when it starts."""

    pretrain: float = 46.0
    sft: float = 12.0
    rankings: float = 6.0
    reward: float = 9.0
    ppo: float = 20.0
    evaluation: float = 7.0


class PolicyConfig(Config):
    """Policy optimisation."""

    ppo: PPOConfig = PPOConfig()
    """The algorithm."""
    rates: LearningRates = LearningRates(optimizer="adamw")
    """Peak learning rates of pre-training."""
    rate_scale: float = 0.05
    """Learning rates, as a share of the pre-training ones."""


class Recipe(Config):
    """Everything that decides what a run does."""

    name: str = "standard-library"
    """"standard-library" for the embedded default, "own-text" for a user's files."""
    sources: tuple[str, ...] = ()
    """Files and folders of text; empty: the source of the running interpreter's standard library."""
    demonstrations: str | None = None
    """JSONL of demonstrations (own text)."""
    preferences: str | None = None
    """JSONL of preferences or rankings (own text)."""
    skip_bad: bool = False
    """Leave out broken records instead of stopping at the first."""
    budget_seconds: float | None = 480.0
    """Time for the whole run; None with `steps`."""
    steps: Steps | None = None
    """Fixed step budgets instead of a time budget."""
    seed: int = 0
    """Of every random choice."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    corpus: PreparationConfig = PreparationConfig()
    """Filters and division."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Kind and size."""
    ngram_order: int = 5
    """Of the n-gram baseline."""
    pretraining: PretrainingConfig = PretrainingConfig()
    """The base model."""
    finetuning: FinetuningConfig = FinetuningConfig()
    """Instruction tuning."""
    task: TaskConfig = TaskConfig()
    """Prompts and sampling."""
    reward: RewardModelConfig = RewardModelConfig()
    """The reward model."""
    policy: PolicyConfig = PolicyConfig()
    """Policy optimisation."""
    shares: Shares = Shares()
    """Division of the time budget."""

    def check(self) -> None:
        """Raise UserError for contradictions."""
        if (self.budget_seconds is None) == (self.steps is None):
            raise UserError("give a time budget or step budgets, one of the two")
        if not self.sources and (self.demonstrations or self.preferences):
            raise UserError("--demonstrations and --preferences go with your own text: name its files or folders too")

    @property
    def default_task(self) -> bool:
        """Whether this is the embedded recipe, whose demonstrations come from the corpus itself."""
        return not self.sources

    @property
    def instructs(self) -> bool:
        """Whether there is an instruction-tuning stage."""
        return self.default_task or self.demonstrations is not None or self.preferences is not None

    @property
    def aligns(self) -> bool:
        """Whether there are reward-model and policy stages."""
        return self.default_task or self.preferences is not None

    def stages(self) -> list[str]:
        """Names of the stages, in order."""
        names = ["corpus", "tokenizer", "ngram", "pretrain"]
        if self.instructs:
            names += ["demonstrations", "sft"]
        if self.aligns:
            names += ["rankings", "reward", "ppo"]
        return [*names, "evaluation"]

    def stage_budget(self, stage: str, seconds_left: float) -> Budget:
        """What a training stage may spend when `seconds_left` of the run's budget remain."""
        if self.steps is not None:
            return Budget(steps=getattr(self.steps, stage))
        shares = self.shares.model_dump()
        names = self.stages()
        later = sum(
            share for name, share in shares.items() if name in names and names.index(name) >= names.index(stage)
        )
        return Budget(seconds=max(1.0, seconds_left * shares[stage] / later))


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from YAML. Raises UserError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a recipe: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a recipe: it holds no fields")
    return parse_config(Recipe, values, where=str(path))
