"""The reward model: a Transformer with a scalar head, trained on rankings with the pairwise logistic loss.

For a prompt x and responses y_1..y_K with a ranking, the loss is the mean over all pairs (winner, loser) of
-log sigmoid(r(x, winner) - r(x, loser)); all pairs of a prompt are in one batch element (Ouyang et al. 2022, eq. 1), so
each response is read once. Ties are left out. The score is read at the last token of the response.

After training the score is normalised: divided by its standard deviation over reference responses (folded into the
head) and centred on their mean (`reward_mean` in `config.json`), so that the reference policy's mean reward is 0 and a
KL coefficient has the same meaning in every run.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from parlance.alignment.preferences import Prompt, Ranking, as_messages, pairs
from parlance.core.artifacts import read_json
from parlance.core.config import Config
from parlance.core.errors import UserError
from parlance.core.metrics import MetricsLog
from parlance.models.checkpoints import (
    assign,
    checkpoint_tensors,
    checkpoint_values,
    family_for,
    read_config,
    read_parameters,
    shapes_of,
    write_checkpoint,
)
from parlance.models.padding import pad_right
from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import Layout, Linear
from parlance.models.transformer_config import TransformerConfig
from parlance.text.chat_template import encode_chat
from parlance.text.tokenizers import Tokenizer
from parlance.training.anomalies import BatchStore
from parlance.training.batching import LengthGroupedBatches
from parlance.training.checkpointing import TrainingStates
from parlance.training.loop import CHECKPOINT_SECONDS, Budget, Loop
from parlance.training.objectives import LossTerms, layout_part
from parlance.training.optimizers import Optimizer
from parlance.training.precision import set_precision
from parlance.training.rates import LearningRates, parameter_groups
from parlance.training.trainer import Trainer, TrainingConfig

REFERENCES = 512
"""Responses whose scores are made to have mean 0 and deviation 1 (Ziegler et al. 2019 use 256)."""


class RewardModel(nn.Module):
    """r(x, y): a Transformer without its language-model head, and a linear head on the last token's activation."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer
        transformer.lm_head = None
        self.score = Linear(transformer.config.width, 1).to(transformer.device)
        self.mean = 0.0
        """Mean score of the reference responses, subtracted by `rewards`."""

    def initialise_head(self, generator: torch.Generator) -> None:
        """Weights N(0, 1/(D+1)) (standard deviation 1/sqrt(D+1); Stiennon et al. 2020)."""
        with torch.no_grad():
            # Drawn on the CPU, where the generator is.
            weight = torch.empty(self.score.weight.shape)
            weight.normal_(0.0, (weight.shape[1] + 1) ** -0.5, generator=generator)
            self.score.weight.copy_(weight)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Scores (B,) fp32 of sequences (B, T) padded on the right, read at position `lengths` - 1."""
        hidden = self.transformer.hidden(tokens)
        last = hidden[torch.arange(len(tokens), device=hidden.device), lengths.to(hidden.device) - 1]
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


def response_tokens(tokenizer: Tokenizer, prompt: Prompt, response: str, ended: bool = True) -> list[int]:
    """Prompt and response as the chat template renders them, with the end of the response's turn only if it `ended`."""
    messages = [*as_messages(prompt), {"role": "assistant", "content": response}]
    tokens, assistant = encode_chat(tokenizer, messages)
    end = max(place for place, flag in enumerate(assistant) if flag)
    return tokens[: end + 1] if ended else tokens[:end]


def ranked_sequences(tokenizer: Tokenizer, ranking: Ranking) -> list[list[int]]:
    """The tokens of each response after its prompt; responses cut off by the sampler are told by the metadata."""
    ended = ranking.metadata.get("ended", [True] * len(ranking.responses))
    return [
        response_tokens(tokenizer, ranking.prompt, response, end)
        for response, end in zip(ranking.responses, ended, strict=True)
    ]


def encode_rankings(
    tokenizer: Tokenizer, rankings: Sequence[Ranking], context_length: int
) -> tuple[list[RankedExample], int]:
    """Examples with at least one pair, and how many rankings were left out (all tied, or too long)."""
    examples = []
    for ranking in rankings:
        sequences = ranked_sequences(tokenizer, ranking)
        winners = pairs(ranking)
        if winners and max(map(len, sequences)) <= context_length:
            examples.append(RankedExample(sequences, winners))
    return examples, len(rankings) - len(examples)


@dataclass
class RankedBatch:
    """Several prompts with their responses. A row is what a prompt's sequences have in common, once, then the rest of
    each: every rest sees the common part and itself, so the prompt is read once and the scores are those of the
    sequences read one by one."""

    tokens: Tensor  # (B, T)
    layout: Layout
    rows: Tensor  # (R,) the row of each response
    ends: Tensor  # (R,) where its last token is
    winners: Tensor  # (P,) places among the R responses
    losers: Tensor  # (P,)
    weights: Tensor  # (P,) 1 / number of pairs of the pair's prompt

    def __len__(self) -> int:
        """Prompts."""
        return len(self.tokens)

    def part(self, start: int, stop: int) -> "RankedBatch":
        """The prompts `start` to `stop` with their responses and pairs."""
        responses = (self.rows >= start) & (self.rows < stop)
        pairs = responses[self.winners]
        first = int((self.rows < start).sum())  # responses stand in the order of their prompts
        return RankedBatch(
            self.tokens[start:stop],
            layout_part(self.layout, start, stop),
            self.rows[responses] - start,
            self.ends[responses],
            self.winners[pairs] - first,
            self.losers[pairs] - first,
            self.weights[pairs],
        )

    def texts(self) -> list[Tensor]:
        """The prompts with their responses."""
        return [self.tokens]


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many first tokens all sequences share, leaving each at least one of its own."""
    shortest = min(map(len, sequences)) - 1
    first = sequences[0]
    return next(
        (place for place in range(shortest) if any(sequence[place] != first[place] for sequence in sequences)), shortest
    )


def packed_length(example: RankedExample) -> int:
    """Tokens of an example's row."""
    shared = common_length(example.sequences)
    return shared + sum(len(sequence) - shared for sequence in example.sequences)


def ranked_batch(examples: Sequence[RankedExample]) -> RankedBatch:
    """One row an example."""
    tokens, positions, segments = list[list[int]](), list[list[int]](), list[list[int]]()
    rows, ends, winners, losers, weights = list[int](), list[int](), list[int](), list[int](), list[float]()
    for row, example in enumerate(examples):
        shared = common_length(example.sequences)
        line, place, segment = list(example.sequences[0][:shared]), list(range(shared)), [0] * shared
        first = len(rows)
        for number, sequence in enumerate(example.sequences, start=1):
            line += sequence[shared:]
            place += range(shared, len(sequence))
            segment += [number] * (len(sequence) - shared)
            rows.append(row)
            ends.append(len(line) - 1)
        for winner, loser in example.pairs:
            winners.append(first + winner)
            losers.append(first + loser)
            weights.append(1 / len(example.pairs))
        tokens.append(line)
        positions.append(place)
        segments.append(segment)
    parts = pad_right(segments, 0)  # padding comes last, so nothing real attends to it
    causal = torch.ones(parts.shape[1], parts.shape[1], dtype=torch.bool).tril()
    visible = (parts.unsqueeze(1) == 0) | (parts.unsqueeze(1) == parts.unsqueeze(2))
    return RankedBatch(
        pad_right(tokens, 0),
        Layout(pad_right(positions, 0), visible & causal),
        torch.tensor(rows),
        torch.tensor(ends),
        torch.tensor(winners),
        torch.tensor(losers),
        torch.tensor(weights),
    )


def pairwise_objective(model: RewardModel, batch: RankedBatch) -> LossTerms:
    """Sum over prompts of the mean over that prompt's pairs of -log sigmoid(r_winner - r_loser)."""
    device = model.transformer.device
    layout = Layout(batch.layout.positions.to(device), batch.layout.dense_mask().to(device))
    hidden = model.transformer.hidden(batch.tokens.to(device), layout=layout)
    scores = F.linear(hidden[batch.rows, batch.ends].float(), model.score.weight).squeeze(-1)
    margins = scores[batch.winners] - scores[batch.losers]
    weights = batch.weights.to(device)
    loss = -(F.logsigmoid(margins) * weights).sum()
    correct = float((((margins > 0).float() + 0.5 * (margins == 0).float()) * weights).sum())
    return LossTerms(loss, len(batch.tokens), {"accuracy": correct})


class RankedBatches:
    """Endless batches of ranked prompts with exact state."""

    def __init__(self, examples: Sequence[RankedExample], tokens_per_batch: int, seed: int) -> None:
        self.examples = examples
        self.order = LengthGroupedBatches([packed_length(example) for example in examples], tokens_per_batch, seed)

    def __call__(self, state: int | None) -> Iterator[tuple[RankedBatch, int]]:
        """(batch, state after it), from `state` on."""
        for indices, after in self.order(state):
            yield ranked_batch([self.examples[index] for index in indices]), after


def save_reward_model(folder: Path, model: RewardModel, *, end_of_text: int, pad: int) -> None:
    """Write a checkpoint for `transformers.AutoModelForSequenceClassification` (which does not subtract the mean)."""
    config = model.transformer.config
    family = family_for(config)
    values = checkpoint_values(config, end_of_text=end_of_text, pad=pad, family=family)
    values["architectures"] = [values["architectures"][0].replace("ForCausalLM", "ForSequenceClassification")]
    values |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, "reward_mean": model.mean}
    tensors = checkpoint_tensors(family.table(_headless(config)), dict(model.transformer.named_parameters()))
    write_checkpoint(folder, values, tensors | {"score.weight": model.score.weight.detach().float().cpu()})


def _headless(config: TransformerConfig) -> TransformerConfig:
    """A configuration whose table of tensors has no output matrix."""
    return config.model_copy(update={"tie_embeddings": True})


def load_reward_model(folder: Path) -> RewardModel:
    """Open a reward model's checkpoint folder."""
    config = read_json(folder / "config.json")
    if "SequenceClassification" not in str(config.get("architectures")):
        raise UserError(f"{folder} is not a reward model (its architecture is {config.get('architectures')})")
    family, shape = read_config(folder)
    model = RewardModel(Transformer(shape))
    shapes = shapes_of(model.transformer) | {"score.weight": model.score.weight.shape}
    tensors = read_parameters(folder, family, family.table(_headless(shape)), shapes, torch.float32, ["score.weight"])
    model.score.weight = torch.nn.Parameter(tensors.pop("score.weight"))
    assign(model.transformer, tensors)
    model.mean = float(config.get("reward_mean", 0.0))
    return model


class RewardModelConfig(Config):
    """How a reward model is trained."""

    rate_scale: float = Field(default=0.4, gt=0)
    """Learning rates, as a share of the pre-training ones."""
    tokens_per_batch: int = Field(default=2048, ge=1)
    """Most padded tokens a step."""
    epochs: float = Field(default=1.0, gt=0)
    """Most passes over the rankings within a budget of time; more than one over-fits (docs/lab-notebook.md)."""
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
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> RewardModelResult:
    """Train a reward model from an instruction-tuned `transformer` (used up), and normalise it.

    The reference responses of the normalisation are the first `REFERENCES` ranked ones. Resume states live in
    `folder`/training. Raises UserError, Interrupted.
    """
    assert transformer.context_length is not None
    examples, left_out = encode_rankings(tokenizer, rankings, transformer.context_length)
    if not examples:
        raise UserError(
            f"none of the {len(rankings)} rankings has a pair of responses that differ in rank and fit the model's"
            f" context of {transformer.context_length} tokens"
        )
    set_precision(transformer, config.training.precision)
    model = RewardModel(transformer)
    model.initialise_head(torch.Generator().manual_seed(seed))
    held_out, _ = encode_rankings(tokenizer, validation, transformer.context_length)
    order = RankedBatches(held_out, config.tokens_per_batch, seed).order.epoch(0) if held_out else []
    checks = [ranked_batch([held_out[index] for index in indices]) for indices in order]

    def validate() -> dict[str, float]:
        with torch.no_grad(), trainer.evaluated():
            terms = [pairwise_objective(model, batch) for batch in checks]
        count = sum(term.count for term in terms)
        return {
            "validation_loss": sum(float(term.loss_sum) for term in terms) / count,
            "validation_accuracy": sum(term.metrics["accuracy"] for term in terms) / count,
        }

    batches = RankedBatches(examples, config.tokens_per_batch, seed)
    if budget.steps is None:
        most = max(1, math.ceil(config.epochs * len(batches.order.epoch(0))))
        budget = Budget(steps=most, seconds=budget.seconds)
    optimizer = Optimizer(parameter_groups(model, config.rates, config.rate_scale), transformer.compute_dtype)
    store = BatchStore(folder / "anomalies", tokenizer.decode)
    trainer = Trainer(model, pairwise_objective, batches, optimizer, config.training, anomalies=store)
    states = TrainingStates(folder / "training")
    loop = Loop(
        "reward",
        budget,
        states,
        metrics,
        validate if checks else None,
        checkpoint_seconds=checkpoint_seconds,
        background=True,
    )
    result = loop.run(trainer, resume=resume)
    trainer.finish()
    references = [sequence for example in examples for sequence in example.sequences]
    model.normalise(references[:REFERENCES])
    return RewardModelResult(model, result.steps, result.seconds, len(examples), left_out)
