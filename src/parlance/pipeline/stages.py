"""The stages of a run: each a function from folders to one folder, used by `parlance run` and by the single commands.

Every function returns a small dictionary of facts (for the summary) and raises UserError or Interrupted. Folders are
complete when the function returns; what a killed process left is replaced or resumed by the next call.
"""

import hashlib
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from parlance.alignment import labeller
from parlance.alignment.ppo import PolicyWithValue, PPOTrainer, TokenReward
from parlance.alignment.preferences import Prompt, Ranking, as_messages, pairs, read_rankings, write_rankings
from parlance.alignment.reward import Reward
from parlance.alignment.reward_model import (
    RewardModel,
    RewardModelConfig,
    encode_rankings,
    load_reward_model,
    save_reward_model,
    train_reward_model,
)
from parlance.core.artifacts import atomic_directory, write_json
from parlance.core.devices import fast_bfloat16, release_free_memory
from parlance.core.errors import UserError
from parlance.core.metrics import MetricsLog
from parlance.core.progress import Progress, say
from parlance.evaluation.statistics import distinct_ratio
from parlance.finetuning.demonstrations import (
    Demonstration,
    parse_demonstration,
    read_demonstrations,
    write_demonstrations,
)
from parlance.finetuning.docstrings import collect_demonstrations, drop_leaks
from parlance.finetuning.supervised import FinetuningConfig, encode_demonstrations, finetune
from parlance.inference.generation import Response, generate_batch
from parlance.inference.sampling import SamplingConfig
from parlance.models.checkpoints import load_transformer
from parlance.models.exact import ConditionalFrequencies
from parlance.models.ngram import NGramModel
from parlance.models.ngram_smoothing import NGramTraining
from parlance.models.transformer import Transformer
from parlance.pipeline.base_model import save_checkpoint
from parlance.pipeline.division import divide_prompts, prompt_key
from parlance.pipeline.recipe import PolicyConfig, TaskConfig, TokenizerConfig
from parlance.text.chat_template import encode_chat
from parlance.text.preparation import PreparationConfig, prepare_corpus, read_split
from parlance.text.preparation.sources import named_corpora
from parlance.text.splits import SPLITS
from parlance.text.token_dataset import TokenDataset, tokenize_corpus
from parlance.text.tokenizers import Tokenizer, train_tokenizer
from parlance.training.checkpointing import TrainingStates
from parlance.training.loop import CHECKPOINT_SECONDS, Budget, Loop
from parlance.training.optimizers import Optimizer
from parlance.training.rates import parameter_groups

SAMPLING_BATCH = 64
"""Sequences generated at once."""
REFERENCE_PROMPTS = 256
"""Prompts whose responses set the scale of PPO's reward (Ziegler et al. 2019 use as many)."""
RANKING_CHUNK = 256
"""Prompts whose responses are sampled before the clock is looked at again."""


class Stage(Protocol):
    """A step of a recipe: from the artifacts of earlier stages to one folder, whole or not at all."""

    def __call__(self, out: Path) -> dict[str, Any]:
        """Make the folder `out`; returns facts for the summary."""
        ...


def open_transformer(folder: Path, device: torch.device) -> Transformer:
    """A checkpoint on `device` in its fast precision."""
    model = load_transformer(folder).to(device)
    model.compute_dtype = torch.bfloat16 if fast_bfloat16(device) else torch.float32
    return model


def make_corpus(
    sources: Sequence[str], out: Path, config: PreparationConfig, *, skip_bad: bool, seed: int
) -> dict[str, Any]:
    """Read, filter, deduplicate and divide; what a killed process has done is not done again."""
    corpora = named_corpora(sources, skip_bad=skip_bad, text_field=config.text_field)
    card = prepare_corpus(corpora, out, config, seed=seed, resume=True)
    return {"splits": card["splits"]}


def make_tokenizer(corpus: Path, out: Path, tokens: Path, config: TokenizerConfig) -> dict[str, Any]:
    """Train the tokenizer on the training split, and write the token shards of all splits to `tokens`."""
    texts = (document.text for document in read_split(corpus, "train"))
    tokenizer = train_tokenizer(texts, config.kind, config.vocab_size, config.pattern)
    test = tokenize_corpus(corpus, tokenizer, tokens)["splits"]["test"]
    report = {
        "kind": config.kind,
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": test["text_bytes"] / test["tokens"],
    }
    with atomic_directory(out) as folder:
        tokenizer.save(folder)
        write_json(folder / "report.json", report)
    return report


def make_ngram(tokens: Path, tokenizer: Tokenizer, out: Path, training: NGramTraining) -> dict[str, Any]:
    """Train an n-gram model on the training split."""
    train = TokenDataset.open(tokens, "train")
    model = NGramModel.train_as(training, documents(train), tokenizer.vocab_size, tokenizer.end_of_text)
    with atomic_directory(out) as folder:
        model.save(folder)
        tokenizer.save(folder)
    return {"order": training.order, "ngrams": model.parameter_count()}


def make_exact(tokens: Path, tokenizer: Tokenizer, out: Path) -> dict[str, Any]:
    """The exact frequencies of the training split, which must be small."""
    train = TokenDataset.open(tokens, "train")
    texts = (text.tolist() for text in documents(train))
    model = ConditionalFrequencies.from_documents(texts, tokenizer.entries(), tokenizer.end_of_text)
    with atomic_directory(out) as folder:
        model.save(folder)
        tokenizer.save(folder)
    return {"tokens": model.parameter_count()}


def documents(dataset: TokenDataset) -> Iterator[np.ndarray]:
    """Each document's tokens, without the end-of-text that follows it."""
    ends = [*dataset.documents[1:].tolist(), len(dataset.tokens)]
    for start, end in zip(dataset.documents.tolist(), ends, strict=True):
        yield dataset.tokens[start : end - 1].astype(np.int64)


def fit_source(tokenizer: Tokenizer, source: str, limit: int) -> str:
    """The longest run of whole lines from the start of `source` that encodes to at most `limit` tokens.

    The first line stays even where it alone is longer; it is then cut to the limit.
    """
    tokens = tokenizer.encode(source)
    if len(tokens) <= limit:
        return source
    text = tokenizer.decode(tokens[:limit])
    lines = text.rstrip("�").split("\n")
    return "\n".join(lines[:-1]) if len(lines) > 1 else lines[0]


def make_docstring_demonstrations(corpus: Path, tokenizer: Tokenizer, out: Path, task: TaskConfig) -> dict[str, Any]:
    """Demonstrations (source without docstring -> its first sentence) of every split, from the corpus itself."""
    extractions = {
        split: collect_demonstrations((document.text, document.id) for document in read_split(corpus, split))
        for split in SPLITS
    }
    for extraction in extractions.values():
        for record in extraction.records:
            record["prompt"] = fit_source(tokenizer, record["prompt"], task.prompt_tokens)
    held_out = extractions["validation"].records + extractions["test"].records
    records = {split: extraction.records for split, extraction in extractions.items()}
    records["train"] = drop_leaks(records["train"], held_out)
    with atomic_directory(out) as folder:
        for split, rows in records.items():
            write_demonstrations(folder / f"{split}.jsonl", [parse_demonstration(row) for row in rows])
        write_json(folder / "report.json", {split: extraction.counts for split, extraction in extractions.items()})
    return {f"{split}_demonstrations": len(rows) for split, rows in records.items()}


def make_user_demonstrations(
    demonstrations: Path | None, preferences: Path | None, out: Path, *, skip_bad: bool, seed: int
) -> dict[str, Any]:
    """A user's demonstrations divided by prompt, 90 / 5 / 5; without any, the best-ranked responses of the preferences.

    What is held out here is held out by `make_user_rankings` of the same files too. Raises UserError where there are
    fewer than three different prompts.
    """
    rows, rankings = _user_files(demonstrations, preferences, skip_bad=skip_bad)
    if demonstrations is None:
        say("no demonstrations: the best-ranked responses of the preferences serve as demonstrations")
    prompts = len({_key(row) for row in rows})
    if prompts < 3:
        raise UserError(
            f"{demonstrations or preferences} gives {len(rows)} demonstrations; give at least 3 with different prompts "
            f"(here: {prompts}), one each for training, validation and test"
        )
    splits = _user_splits(rows, rankings, seed)
    parts = {split: [row for row in rows if splits[_key(row)] == split] for split in SPLITS}
    with atomic_directory(out) as folder:
        for split, part in parts.items():
            write_demonstrations(folder / f"{split}.jsonl", part)
    return {f"{split}_demonstrations": len(part) for split, part in parts.items()}


def _user_files(
    demonstrations: Path | None, preferences: Path | None, *, skip_bad: bool
) -> tuple[list[Demonstration], list[Ranking]]:
    """A user's demonstrations (without a file: the best-ranked responses) and rankings (without a file: none)."""
    rankings = [] if preferences is None else read_rankings(preferences, skip_bad=skip_bad)
    if demonstrations is None:
        return best_demonstrations(rankings), rankings
    return read_demonstrations(demonstrations, skip_bad=skip_bad), rankings


def _key(row: Demonstration) -> str:
    return prompt_key(row.messages[:-1])


def _user_splits(rows: Sequence[Demonstration], rankings: Sequence[Ranking], seed: int) -> dict[str, str]:
    """The split of every prompt of both files; see `divide_prompts`."""
    preferred = [prompt_key(ranking.prompt) for ranking in rankings if pairs(ranking)]
    return divide_prompts([_key(row) for row in rows], preferred, seed)


def best_demonstrations(rankings: Sequence[Ranking]) -> list[Demonstration]:
    """The first response of the best rank of each ranking; where that makes no demonstration (it is empty, or the
    prompt has no user), the ranking gives none."""
    rows = []
    for ranking in rankings:
        best = ranking.responses[ranking.ranks.index(min(ranking.ranks))]
        messages = [*as_messages(ranking.prompt), {"role": "assistant", "content": best}]
        try:
            rows.append(parse_demonstration({"messages": messages}))
        except UserError:
            continue
    return rows


def check_demonstrations(file: Path, tokenizer: Tokenizer, context_length: int, answer_tokens: int | None) -> None:
    """Raise UserError where no demonstration fits the context or, with `answer_tokens`, no prompt leaves room for an
    answer of that length: before anything is trained."""
    rows = read_demonstrations(file)
    examples, _ = encode_demonstrations(tokenizer, rows, context_length)
    if not examples:
        raise UserError(
            f"none of the {len(rows)} training demonstrations fits the context of {context_length} tokens; "
            "shorten them or set a larger pretraining.context_length"
        )
    if answer_tokens is not None:
        shortest = min(len(prompt_tokens(tokenizer, row.messages[:-1])) for row in rows)
        if shortest + answer_tokens > context_length:
            raise UserError(
                f"the shortest prompt has {shortest} tokens, which leaves no room for {answer_tokens} of an answer in "
                f"the context of {context_length}; set a larger pretraining.context_length"
            )


def check_rankings(file: Path, tokenizer: Tokenizer, context_length: int) -> None:
    """Raise UserError where no ranking has a pair of responses that fits the context: before anything is trained."""
    rankings = read_rankings(file)
    examples, _ = encode_rankings(tokenizer, rankings, context_length)
    if not examples:
        raise UserError(
            f"none of the {len(rankings)} training rankings fits the context of {context_length} tokens; "
            "shorten them or set a larger pretraining.context_length"
        )


def make_instructed(
    base: Path,
    demonstrations: Path,
    out: Path,
    config: FinetuningConfig,
    budget: Budget,
    *,
    metrics: MetricsLog,
    seed: int,
    device: torch.device,
    resume: bool,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, Any]:
    """Instruction-tune `base` on `demonstrations`/train.jsonl."""
    tokenizer = Tokenizer.load(base)
    model = open_transformer(base, device)
    train = read_demonstrations(demonstrations / "train.jsonl")
    validation = read_demonstrations(demonstrations / "validation.jsonl")
    result = finetune(
        model,
        tokenizer,
        train,
        validation,
        out,
        config,
        budget,
        metrics=metrics,
        seed=seed,
        resume=resume,
        checkpoint_seconds=checkpoint_seconds,
    )
    save_checkpoint(out, model, tokenizer, chats=True)
    return {
        "steps": result.steps,
        "seconds": result.seconds,
        "examples": result.examples,
        "too_long": result.too_long,
        "validation_loss": result.validation_loss,
    }


def prompt_tokens(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """A prompt as tokens up to where the assistant begins."""
    return encode_chat(tokenizer, as_messages(prompt), add_generation_prompt=True)[0]


def sample_responses(
    model: Transformer, prompts: Sequence[list[int]], tokenizer: Tokenizer, sampling: SamplingConfig, label: str
) -> list[Response]:
    """One response to each prompt, in batches; deterministic in `sampling.seed`."""
    model = model.inference_copy()
    generator = torch.Generator().manual_seed(sampling.seed)
    stop = {tokenizer.end_of_turn, tokenizer.end_of_text}
    # Prompts of similar length together: less padding.
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    responses: dict[int, Response] = {}
    with Progress(label, len(prompts), "responses") as bar:
        for start in range(0, len(order), SAMPLING_BATCH):
            chosen = order[start : start + SAMPLING_BATCH]
            batch = generate_batch(model, [prompts[index] for index in chosen], sampling, stop, generator)
            responses.update(zip(chosen, batch, strict=True))
            bar.update(len(chosen))
    release_free_memory()
    return [responses[index] for index in range(len(prompts))]


def response_text(tokenizer: Tokenizer, response: Response) -> str:
    """A response as text, without special tokens."""
    return tokenizer.decode(response.tokens).strip()


def make_rankings(
    model_folder: Path,
    demonstrations: Path,
    out: Path,
    task: TaskConfig,
    *,
    seed: int,
    device: torch.device,
    seconds: float | None = None,
) -> dict[str, Any]:
    """K sampled responses a prompt, ranked by the simulated labeller: test.jsonl (held-out prompts) and train.jsonl.

    With `seconds`, training prompts stop being sampled after that time, at the end of a chunk.
    """
    tokenizer, model = Tokenizer.load(model_folder), open_transformer(model_folder, device)
    started = time.monotonic()
    facts: dict[str, Any] = {"labeller": labeller.LABELLER}
    with atomic_directory(out) as folder:
        for split, limit in (("test", task.heldout_prompts), ("train", task.ranked_prompts)):
            rows = select(read_demonstrations(demonstrations / f"{split}.jsonl"), limit, seed)
            rankings: list[Ranking] = []
            for start in range(0, len(rows), RANKING_CHUNK):
                late = seconds is not None and time.monotonic() - started > seconds
                if late and split == "train" and rankings:
                    break
                sampling = SamplingConfig(
                    max_tokens=task.max_tokens, temperature=task.temperature, seed=derived_seed(seed, split, start)
                )
                chunk = rows[start : start + RANKING_CHUNK]
                rankings += rank_samples(
                    model, tokenizer, chunk, task, sampling, f"{split} {start}-{start + len(chunk)}"
                )
            write_rankings(folder / f"{split}.jsonl", rankings)
            facts[f"{split}_prompts"] = len(rankings)
    return facts


def derived_seed(seed: int, *parts: str | int) -> int:
    """A seed of its own for each named use of the run's seed."""
    return int.from_bytes(hashlib.sha256(repr((seed, *parts)).encode()).digest()[:4])


def rank_samples(
    model: Transformer,
    tokenizer: Tokenizer,
    rows: Sequence[Demonstration],
    task: TaskConfig,
    sampling: SamplingConfig,
    label: str,
) -> list[Ranking]:
    """Sample K responses to each demonstration's prompt and rank them by the simulated labeller."""
    prompts = [prompt_tokens(tokenizer, row.messages[:-1]) for row in rows for _ in range(task.responses)]
    sampled = sample_responses(model, prompts, tokenizer, sampling, label)
    rankings = []
    for index, row in enumerate(rows):
        mine = sampled[index * task.responses : (index + 1) * task.responses]
        texts = [response_text(tokenizer, response) for response in mine]
        scores = [
            labeller.score(text, row.messages[-1]["content"], response.ended).total
            for text, response in zip(texts, mine, strict=True)
        ]
        metadata = {
            "labeller": labeller.LABELLER,
            "scores": [round(score, 4) for score in scores],
            "ended": [response.ended for response in mine],
            **row.metadata,
        }
        rankings.append(Ranking(row.messages[0]["content"], texts, labeller.rank(scores, task.tie_margin), metadata))
    return rankings


def select(rows: Sequence[Any], limit: int, seed: int) -> list[Any]:
    """At most `limit` rows, a seeded choice, in a seeded order."""
    order = list(rows)
    random.Random(seed).shuffle(order)
    return order[:limit]


def make_user_rankings(
    demonstrations: Path | None, preferences: Path, out: Path, *, skip_bad: bool, seed: int
) -> dict[str, Any]:
    """A person's rankings divided by prompt: train.jsonl, and test.jsonl with about a tenth.

    test.jsonl has the prompts that `make_user_demonstrations` of the same files holds out for validation or test, so
    none of them is trained on by any stage. A ranking that is one tie tests nothing and teaches nothing, and is left
    out. Raises UserError where there are too few to divide.
    """
    rows, everything = _user_files(demonstrations, preferences, skip_bad=skip_bad)
    rankings = [ranking for ranking in everything if pairs(ranking)]
    prompts = len({prompt_key(ranking.prompt) for ranking in rankings})
    if prompts < 3:
        raise UserError(
            f"{preferences} prefers one response to another for {prompts} prompts; give rankings of at least 3"
        )
    splits = _user_splits(rows, rankings, seed)
    with atomic_directory(out) as folder:
        test = [ranking for ranking in rankings if splits[prompt_key(ranking.prompt)] != "train"]
        train = [ranking for ranking in rankings if splits[prompt_key(ranking.prompt)] == "train"]
        write_rankings(folder / "train.jsonl", train)
        write_rankings(folder / "test.jsonl", test)
    return {"labeller": "as given", "train_prompts": len(train), "test_prompts": len(test)}


def make_reward(
    model_folder: Path,
    rankings: Path,
    out: Path,
    config: RewardModelConfig,
    budget: Budget,
    *,
    metrics: MetricsLog,
    seed: int,
    device: torch.device,
    resume: bool,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, Any]:
    """Train the reward model on `rankings`/train.jsonl, but for a twentieth that the curve of its loss is measured on.

    `rankings`/test.jsonl is not looked at: it is for the evaluation.
    """
    tokenizer = Tokenizer.load(model_folder)
    ranked = read_rankings(rankings / "train.jsonl")
    held_out = len(ranked) // 20
    train, validation = ranked[held_out:], ranked[:held_out]
    result = train_reward_model(
        open_transformer(model_folder, device),
        tokenizer,
        train,
        out,
        config,
        budget,
        metrics=metrics,
        seed=seed,
        validation=validation,
        resume=resume,
        checkpoint_seconds=checkpoint_seconds,
    )
    tokenizer.save(out)
    save_reward_model(out, result.model, end_of_text=tokenizer.end_of_text, pad=tokenizer.pad)
    return {
        "steps": result.steps,
        "seconds": result.seconds,
        "prompts": result.prompts,
        "left_out": result.left_out,
    }


def open_reward_model(folder: Path, device: torch.device) -> RewardModel:
    """A reward model in the device's fast precision."""
    model = load_reward_model(folder).to(device)
    model.transformer.compute_dtype = torch.bfloat16 if fast_bfloat16(device) else torch.float32
    return model


def model_reward(model: RewardModel, prompts: Sequence[list[int]]) -> TokenReward:
    """A reward model as PPO's reward, on the very tokens that were sampled."""

    def reward(chosen: list[int], responses: list[Response]) -> list[float]:
        rows = [prompts[index] + response.tokens for index, response in zip(chosen, responses, strict=True)]
        return model.rewards(rows)

    return reward


def standardised(reward: TokenReward, references: Sequence[float]) -> TokenReward:
    """`reward` less the mean of its values for reference responses, over their standard deviation (where not 0)."""
    mean, deviation = float(np.mean(references)), float(np.std(references)) or 1.0
    return lambda chosen, responses: [(value - mean) / deviation for value in reward(chosen, responses)]


def text_reward(function: Reward, tokenizer: Tokenizer, texts: Sequence[str]) -> TokenReward:
    """A Python function of prompts and responses as PPO's reward."""

    def reward(chosen: list[int], responses: list[Response]) -> list[float]:
        return function([texts[index] for index in chosen], [response_text(tokenizer, each) for each in responses])

    return reward


def make_policy(
    model_folder: Path,
    prompts_file: Path,
    reward: Path | Reward,
    out: Path,
    config: PolicyConfig,
    budget: Budget,
    *,
    metrics: MetricsLog,
    seed: int,
    device: torch.device,
    resume: bool,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    score_labeller: bool = False,
) -> dict[str, Any]:
    """Optimise the instructed model against a reward with PPO.

    The reward is standardised to mean 0 and deviation 1 over sampled responses of the model as it is before, so that
    the KL coefficient and the score of a response that never ends mean the same for every reward.
    `prompts_file` holds demonstrations (their prompts are used). With `score_labeller`, the simulated labeller's score
    of the sampled responses is logged; it is never seen by the policy or the reward model.
    """
    tokenizer = Tokenizer.load(model_folder)
    policy = PolicyWithValue(open_transformer(model_folder, device))
    reference = open_transformer(model_folder, device).inference_copy()
    rows = read_demonstrations(prompts_file)
    limit = reference.config.context_length - config.ppo.max_tokens
    prompts = [prompt_tokens(tokenizer, row.messages[:-1]) for row in rows]
    kept = [index for index, prompt in enumerate(prompts) if len(prompt) <= limit]
    if not kept:
        raise UserError(f"no prompt of {prompts_file} leaves room for {config.ppo.max_tokens} tokens in the context")
    prompts, rows = [prompts[index] for index in kept], [rows[index] for index in kept]
    if isinstance(reward, Path):
        raw_reward = model_reward(open_reward_model(reward, device), prompts)
    else:
        raw_reward = text_reward(reward, tokenizer, [row.messages[-2]["content"] for row in rows])
    chosen = select(range(len(prompts)), REFERENCE_PROMPTS, seed)
    sampling = SamplingConfig(
        max_tokens=config.ppo.max_tokens,
        temperature=config.ppo.temperature,
        seed=derived_seed(seed, "reference"),
    )
    sampled = sample_responses(reference, [prompts[index] for index in chosen], tokenizer, sampling, "reference")
    token_reward = standardised(raw_reward, raw_reward(chosen, sampled))

    def observe(chosen: list[int], responses: list[Response]) -> dict[str, float]:
        texts = [response_text(tokenizer, response) for response in responses]
        figures = {"distinct_ratio": distinct_ratio(texts)}
        if score_labeller:
            scores = [
                labeller.score(text, rows[index].messages[-1]["content"], response.ended).total
                for index, text, response in zip(chosen, texts, responses, strict=True)
            ]
            figures["labeller_score"] = sum(scores) / len(scores)
        return figures

    optimizer = Optimizer(parameter_groups(policy, config.rates, config.rate_scale), reference.compute_dtype)
    stop = frozenset({tokenizer.end_of_turn, tokenizer.end_of_text})
    trainer = PPOTrainer(policy, reference, prompts, token_reward, stop, optimizer, config.ppo, seed, observe)
    states = TrainingStates(out / "training")
    loop = Loop("ppo", budget, states, metrics, checkpoint_seconds=checkpoint_seconds, log_seconds=0.0, background=True)
    result = loop.run(trainer, resume=resume)
    save_checkpoint(out, policy.transformer, tokenizer, chats=True)
    return {"updates": result.steps, "episodes": trainer.episodes, "seconds": result.seconds, "last": result.last}
