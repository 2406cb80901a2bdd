"""A recipe: everything that decides what a run does. Stored resolved as `recipe.yaml` in the run directory.

The default recipe makes a documentation assistant from the Python standard library. A user's own texts,
demonstrations and preferences replace its parts.
"""

from pathlib import Path
from typing import Self

import yaml
from pydantic import Field, model_validator

from parlance.alignment.ppo import PPOConfig
from parlance.alignment.reward_model import RewardModelConfig
from parlance.core.config import Config, parse_config
from parlance.core.errors import UserError
from parlance.finetuning.supervised import FinetuningConfig
from parlance.inference.sampling import COLDEST
from parlance.models.ngram_smoothing import MAX_ORDER
from parlance.text.preparation import PreparationConfig
from parlance.text.tokenizers import Kind, PatternName
from parlance.training.loop import CHECKPOINT_SECONDS, Budget
from parlance.training.pretraining_config import PretrainingConfig
from parlance.training.rates import LearningRates


class TokenizerConfig(Config):
    """The tokenizer of a run."""

    kind: Kind = "bpe"
    """Byte-level BPE trained on the training split, plain bytes, characters, or words."""
    vocab_size: int = Field(default=4096, ge=6)
    """Tokens at most, special ones included; bytes always have 260."""
    pattern: PatternName = "parlance"
    """Where BPE never joins across: our own rule, GPT-2's, GPT-4's or GPT-4o's."""

    @model_validator(mode="after")
    def _holds_the_bytes(self) -> Self:
        if self.kind == "bpe" and self.vocab_size < 260:
            raise ValueError("vocab_size of bpe is at least 260: the bytes and four special tokens")
        return self


class TaskConfig(Config):
    """Prompts and sampled responses of the instruction, reward and policy stages."""

    prompt_tokens: int = Field(default=144, ge=1)
    """A longer function is cut at a line's end, so that its signature and as much of its body as fits remain."""
    max_tokens: int = Field(default=40, ge=1)
    """Longest sampled response."""
    temperature: float = Field(default=1.0, ge=COLDEST)
    """Of all sampling in rankings, PPO and evaluation."""
    ranked_prompts: int = Field(default=1500, ge=1)
    """Prompts of the training split whose responses are ranked (default recipe)."""
    responses: int = Field(default=4, ge=2)
    """Responses a prompt (K)."""
    tie_margin: float = Field(default=0.02, ge=0)
    """Responses whose labeller scores differ by no more than this are tied."""
    heldout_prompts: int = Field(default=240, ge=1)
    """Most prompts of the test split used in evaluation."""


class Steps(Config):
    """Fixed step budgets; with them a run is bit-identical after any number of kills and resumes."""

    pretrain: int = Field(ge=0)
    """Optimizer steps."""
    sft: int = Field(ge=0)
    """Optimizer steps."""
    reward: int = Field(ge=0)
    """Optimizer steps."""
    ppo: int = Field(ge=0)
    """PPO updates."""


class Shares(Config):
    """How a time budget is divided: a stage gets what is left when it starts, times its share over those still to come.

    Only their proportions matter.
    """

    pretrain: float = Field(default=46.0, gt=0)
    """Training the base model."""
    sft: float = Field(default=12.0, gt=0)
    """Instruction tuning."""
    rankings: float = Field(default=6.0, gt=0)
    """Sampling and ranking responses (default recipe)."""
    reward: float = Field(default=9.0, gt=0)
    """Training the reward model."""
    ppo: float = Field(default=20.0, gt=0)
    """Policy optimisation."""
    evaluation: float = Field(default=7.0, gt=0)
    """Evaluating all models."""


class PolicyConfig(Config):
    """Policy optimisation."""

    ppo: PPOConfig = PPOConfig()
    """The algorithm."""
    rates: LearningRates = LearningRates(optimizer="adamw")
    """Peak learning rates of pre-training."""
    rate_scale: float = Field(default=0.2, gt=0)
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
    budget_seconds: float | None = Field(default=480.0, gt=0)
    """Time for the whole run; None with `steps`."""
    steps: Steps | None = None
    """Fixed step budgets instead of a time budget."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Of every random choice, the division of the corpus included."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    checkpoint_seconds: float = Field(default=CHECKPOINT_SECONDS, ge=0)
    """Seconds of training between two resume states: what a kill can cost at most."""
    corpus: PreparationConfig = PreparationConfig()
    """Filters and division."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Kind and size."""
    ngram_order: int = Field(default=5, ge=1, le=MAX_ORDER)
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
        sized = (self.pretraining.layers is not None, self.pretraining.width is not None)
        if sized[0] != sized[1]:
            raise UserError("set both pretraining.layers and pretraining.width, or neither")
        if self.steps is not None:
            if not all(sized):
                raise UserError(
                    "with step budgets the model's size is yours to choose, like "
                    "--set pretraining.layers=4 --set pretraining.width=256"
                )
            for stage, steps in self.steps.model_dump().items():
                if stage in self.stages() and steps == 0:
                    raise UserError(f"the stage {stage} has no steps; give it at least one, like --steps {stage}=20")
        if self.pretraining.architecture != "transformer":
            raise UserError(
                "a run makes decoder-only Transformers: pre-train a model of the kind "
                f"{self.pretraining.architecture} by itself, with parlance pretrain"
            )
        longest = max(self.task.max_tokens, self.policy.ppo.max_tokens)
        if self.instructs and longest >= self.pretraining.context_length:
            raise UserError(
                f"an answer of {longest} tokens leaves no room for its prompt in a context of "
                f"{self.pretraining.context_length}; set a larger pretraining.context_length, or smaller "
                "task.max_tokens and policy.ppo.max_tokens"
            )

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
        # The user's own demonstrations and preferences come before any training: a mistake in them is found early.
        names = ["corpus", "tokenizer"]
        if self.instructs:
            names.append("demonstrations")
        if self.preferences is not None:
            names.append("rankings")
        names += ["ngram", "pretrain"]
        if self.instructs:
            names.append("sft")
        if self.default_task:
            names.append("rankings")
        if self.aligns:
            names += ["reward", "ppo"]
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
