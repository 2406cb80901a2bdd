"""The reward model: a Transformer with a scalar head, trained on rankings with the pairwise logistic loss.

For a prompt x and responses y_1..y_K with a ranking, the loss is the mean over all pairs (winner, loser) of
-log sigmoid(r(x, winner) - r(x, loser)); all pairs of a prompt are in one batch element (Ouyang et al. 2022, eq. 1), so
each response is read once. Ties are left out. The score is read at the last token of the response.

After training the score is normalised: divided by its standard deviation over reference responses (folded into the
head) and centred on their mean (`reward_mean` in `config.json`), so that the reference policy's mean reward is 0 and a
KL coefficient has the same meaning in every run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parlance.alignment.preferences import Prompt, Ranking, as_messages, pairs
from parlance.core.artifacts import read_json
from parlance.core.config import Config
from parlance.core.errors import UserError
from parlance.core.metrics import MetricsLog
from parlance.models.checkpoints import hugging_face_config, load_weights, transformer_config, write_checkpoint
from parlance.models.padding import pad_right
from parlance.models.transformer import Linear, Transformer
from parlance.text.chat_template import encode_chat
from parlance.text.tokenizers import Tokenizer
from parlance.training.batching import LengthGroupedBatches
from parlance.training.checkpointing import TrainingStates
from parlance.training.loop import Budget, Loop
from parlance.training.objectives import LossTerms
from parlance.training.optimizers import Optimizer
from parlance.training.rates import LearningRates, parameter_groups
from parlance.training.trainer import Trainer, TrainingConfig


class RewardModel(nn.Module):
    """r(x, y): a Transformer without its language-model head, and a linear head on the last token's activation."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer
        transformer.lm_head = None
        self.score = Linear(transformer.config.width, 1)
        self.mean = 0.0
        """Mean score of the reference responses, subtracted by `rewards`."""

    def initialise_head(self, generator: torch.Generator) -> None:
        """Weights N(0, 1/(D+1)) (standard deviation 1/sqrt(D+1); Stiennon et al. 2020)."""
        with torch.no_grad():
            self.score.weight.normal_(0.0, (self.score.weight.shape[1] + 1) ** -0.5, generator=generator)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Scores (B,) fp32 of sequences (B, T) padded on the right, read at position `lengths` - 1."""
        hidden = self.transformer.hidden(tokens)
        last = hidden[torch.arange(len(tokens), device=hidden.device), lengths - 1]
        return F.linear(last.float(), self.score.weight).squeeze(-1)

    @torch.inference_mode()
    def rewards(self, sequences: Sequence[Sequence[int]], batch_size: int = 64) -> list[float]:
        """Normalised score of each token sequence (prompt and response)."""
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        scores = [0.0] * len(sequences)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = [sequences[index] for index in chosen]
            lengths = torch.tensor([len(row) for row in rows])
            for index, score in zip(chosen, self(pad_right(rows, 0), lengths).tolist(), strict=True):
                scores[index] = score - self.mean
        return scores

    @torch.no_grad()
    def normalise(self, sequences: Sequence[Sequence[int]]) -> None:
        """Rescale and centre so that these reference sequences have mean 0 and standard deviation 1."""
        self.mean = 0.0
        scores = torch.tensor(self.rewards(sequences), dtype=torch.float64)
        deviation = float(scores.std(correction=0))
        if deviation > 0:
            self.score.weight.div_(deviation)
            scores /= deviation
        self.mean = float(scores.mean())


@dataclass(frozen=True)
class RankedExample:
    """The tokenised responses of one prompt, and which beats which."""

    sequences: list[list[int]]
    pairs: list[tuple[int, int]]
    """(winner, loser) places in `sequences`."""


def response_tokens(tokenizer: Tokenizer, prompt: Prompt, response: str) -> list[int]:
    """Prompt and response as the chat template renders them, up to and including the end of the response's turn."""
    messages = [*as_messages(prompt), {"role": "assistant", "content": response}]
    tokens, assistant = encode_chat(tokenizer, messages)
    return tokens[: max(place for place, flag in enumerate(assistant) if flag) + 1]


def encode_rankings(
    tokenizer: Tokenizer, rankings: Sequence[Ranking], context_length: int
) -> tuple[list[RankedExample], int]:
    """Examples with at least one pair, and how many rankings were left out (all tied, or too long).

    Raises UserError where none is left.
    """
    examples = []
    for ranking in rankings:
        sequences = [response_tokens(tokenizer, ranking.prompt, response) for response in ranking.responses]
        winners = pairs(ranking)
        if winners and max(map(len, sequences)) <= context_length:
            examples.append(RankedExample(sequences, winners))
    if not examples:
        raise UserError(
            f"none of the {len(rankings)} rankings has a pair that fits the context of {context_length} tokens"
        )
    return examples, len(rankings) - len(examples)


@dataclass
class RankedBatch:
    """Several prompts' responses, padded together."""

    tokens: Tensor  # (R, T)
    lengths: Tensor  # (R,)
    winners: Tensor  # (P,) rows of `tokens`
    losers: Tensor  # (P,)
    weights: Tensor  # (P,) 1 / number of pairs of the pair's prompt
    prompts: int


def ranked_batch(examples: Sequence[RankedExample]) -> RankedBatch:
    """Stack the responses of several prompts."""
    rows = [sequence for example in examples for sequence in example.sequences]
    winners, losers, weights, first = [], [], [], 0
    for example in examples:
        for winner, loser in example.pairs:
            winners.append(first + winner)
            losers.append(first + loser)
            weights.append(1 / len(example.pairs))
        first += len(example.sequences)
    lengths = torch.tensor([len(row) for row in rows])
    return RankedBatch(
        pad_right(rows, 0), lengths, torch.tensor(winners), torch.tensor(losers), torch.tensor(weights), len(examples)
    )


def pairwise_objective(model: RewardModel, batch: RankedBatch) -> LossTerms:
    """Sum over prompts of the mean over that prompt's pairs of -log sigmoid(r_winner - r_loser)."""
    scores = model(batch.tokens, batch.lengths)
    margins = scores[batch.winners] - scores[batch.losers]
    loss = -(F.logsigmoid(margins) * batch.weights).sum()
    correct = float((((margins > 0).float() + 0.5 * (margins == 0).float()) * batch.weights).sum())
    return LossTerms(loss, batch.prompts, {"accuracy": correct})


class RankedBatches:
    """Endless batches of ranked prompts with exact state."""

    def __init__(self, examples: Sequence[RankedExample], tokens_per_batch: int, seed: int) -> None:
        self.examples = examples
        lengths = [len(example.sequences) * max(map(len, example.sequences)) for example in examples]
        self.order = LengthGroupedBatches(lengths, tokens_per_batch, seed)

    def __call__(self, state: int | None) -> Iterator[tuple[RankedBatch, int]]:
        """(batch, state after it), from `state` on."""
        for indices, after in self.order(state):
            yield ranked_batch([self.examples[index] for index in indices]), after


def save_reward_model(folder: Path, model: RewardModel, *, end_of_text: int, pad: int) -> None:
    """Write a checkpoint for `transformers.AutoModelForSequenceClassification` (which does not subtract the mean)."""
    config = hugging_face_config(model.transformer.config, end_of_text=end_of_text, pad=pad)
    family = str(config["architectures"][0]).removesuffix("ForCausalLM")
    config["architectures"] = [f"{family}ForSequenceClassification"]
    config["id2label"] = {"0": "reward"}
    config["label2id"] = {"reward": 0}
    config["reward_mean"] = model.mean
    tensors = {f"model.{name}": p.detach().float().contiguous() for name, p in model.transformer.named_parameters()}
    write_checkpoint(folder, config, tensors | {"score.weight": model.score.weight.detach().float()})


def load_reward_model(folder: Path) -> RewardModel:
    """Open a reward model's checkpoint folder."""
    config = read_json(folder / "config.json")
    if "SequenceClassification" not in str(config.get("architectures")):
        raise UserError(f"{folder} is not a reward model (its architecture is {config.get('architectures')})")
    model = RewardModel(Transformer(transformer_config(folder)))
    parameters = dict(model.transformer.named_parameters()) | {"score.weight": model.score.weight}
    load_weights(folder, parameters)
    model.mean = float(config.get("reward_mean", 0.0))
    return model


class RewardModelConfig(Config):
    """How a reward model is trained."""

    rate_scale: float = 0.1
    """Learning rates, as a share of the pre-training ones."""
    tokens_per_batch: int = 4096
    """Most padded tokens a step."""
    rates: LearningRates = LearningRates()
    """Peak learning rates of pre-training."""
    training: TrainingConfig = TrainingConfig(warmup=0.05, decay=0.95)
    """Schedule and clipping."""


@dataclass(frozen=True)
class RewardModelResult:
    """What reward-model training did."""

    model: RewardModel
    steps: int
    seconds: float
    prompts: int
    """Ranked prompts with at least one pair."""
    left_out: int
    """Rankings that were all tied or too long."""


def train_reward_model(
    transformer: Transformer,
    tokenizer: Tokenizer,
    rankings: Sequence[Ranking],
    folder: Path,
    config: RewardModelConfig,
    budget: Budget,
    *,
    metrics: MetricsLog,
    seed: int,
    validation: Sequence[Ranking] = (),
    resume: bool = False,
) -> RewardModelResult:
    """Train a reward model from an instruction-tuned `transformer` (used up), and normalise it.

    The reference responses of the normalisation are the ranked ones. Resume states live in `folder`/training.
    Raises UserError, Interrupted.
    """
    assert transformer.context_length is not None
    examples, left_out = encode_rankings(tokenizer, rankings, transformer.context_length)
    model = RewardModel(transformer)
    model.initialise_head(torch.Generator().manual_seed(seed))
    held_out = encode_rankings(tokenizer, validation, transformer.context_length)[0] if validation else []
    order = RankedBatches(held_out, config.tokens_per_batch, seed).order.epoch(0) if held_out else []
    checks = [ranked_batch([held_out[index] for index in indices]) for indices in order]

    @torch.no_grad()
    def validate() -> dict[str, float]:
        terms = [pairwise_objective(model, batch) for batch in checks]
        count = sum(term.count for term in terms)
        return {
            "validation_loss": sum(float(term.loss_sum) for term in terms) / count,
            "validation_accuracy": sum(term.metrics["accuracy"] for term in terms) / count,
        }

    batches = RankedBatches(examples, config.tokens_per_batch, seed)
    optimizer = Optimizer(parameter_groups(model, config.rates, config.rate_scale), transformer.compute_dtype)
    trainer = Trainer(model, pairwise_objective, batches, optimizer, config.training)
    loop = Loop("reward", budget, TrainingStates(folder / "training"), metrics, validate if checks else None)
    result = loop.run(trainer, resume=resume)
    model.normalise([sequence for example in examples for sequence in example.sequences])
    return RewardModelResult(model, result.steps, result.seconds, len(examples), left_out)
