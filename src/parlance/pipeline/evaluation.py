"""The evaluation stage: numbers on held-out modules that nothing was trained or chosen on.

Writes into one folder: `language_modelling.json` (bits per byte of every model on the same bytes), `reward_model.json`
(pairwise accuracy beside length-only and form-only baselines), `policy.json` (instructed against aligned model) and
`samples.json` (the same prompts answered by each).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parlance.alignment import labeller
from parlance.alignment.ppo import pack_episodes, response_activations
from parlance.alignment.ppo_math import exact_kl
from parlance.alignment.preferences import Ranking, pairs, read_rankings
from parlance.alignment.reward_model import RewardModel, ranked_sequences
from parlance.core.artifacts import atomic_directory, write_json
from parlance.core.progress import say
from parlance.evaluation.statistics import bootstrap_interval, distinct_ratio, pairwise_accuracy, win_rate
from parlance.finetuning.demonstrations import Demonstration, read_demonstrations
from parlance.inference.generation import Response
from parlance.inference.sampling import SamplingConfig
from parlance.inference.scoring import document_log_probs
from parlance.models.contract import LanguageModel
from parlance.models.ngram import NGramModel
from parlance.models.transformer import Transformer
from parlance.pipeline.recipe import Recipe, TaskConfig
from parlance.pipeline.stages.corpus import documents
from parlance.pipeline.stages.opening import open_reward_model, open_transformer
from parlance.pipeline.stages.sampling import prompt_tokens, response_text, sample_responses, select
from parlance.text.token_dataset import TokenDataset
from parlance.text.tokenizers import Tokenizer

SAMPLES = 12
"""Prompts shown side by side: the first of the seeded order, not a choice."""
MICRO_BATCH_TOKENS = 2048


def evaluate_run(run: Path, out: Path, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Evaluate whatever models a run directory holds; returns the headline numbers."""
    facts: dict[str, Any] = {}
    with atomic_directory(out) as folder:
        ladder = language_modelling(run, recipe, device)
        write_json(folder / "language_modelling.json", ladder)
        facts["bits_per_byte"] = {model["name"]: model["bits_per_byte"] for model in ladder["models"]}
        if recipe.aligns:
            accuracy = reward_model_accuracy(run, recipe, device)
            write_json(folder / "reward_model.json", accuracy)
            facts["reward_accuracy"] = accuracy.get("accuracy")
        if recipe.instructs:
            policies, samples = compare_policies(run, recipe, device)
            write_json(folder / "samples.json", samples)
            if policies is not None:
                write_json(folder / "policy.json", policies)
                facts["win_rate"] = policies["win_rate"]
    return facts


def language_modelling(run: Path, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Bits per byte of unigram, n-gram and Transformer on the test split: the same bytes, each token scored once."""
    tokenizer = Tokenizer.load(run / "tokenizer")
    test = TokenDataset.open(run / "tokens", "test")
    train = TokenDataset.open(run / "tokens", "train")
    texts = list(documents(test))
    unigram = NGramModel.train(documents(train), tokenizer.vocab_size, 1, tokenizer.end_of_text)
    ngram = NGramModel.load(run / "ngram")
    transformer = open_transformer(run / "base", device).inference_copy()
    models: list[tuple[str, LanguageModel, int]] = [
        ("unigram", unigram, unigram.parameter_count()),
        (f"{recipe.ngram_order}-gram", ngram, ngram.parameter_count()),
        ("Transformer", transformer, transformer.parameter_count()),
    ]
    rows = []
    for name, model, parameters in models:
        scored = document_log_probs(model, [text.tolist() for text in texts], tokenizer.end_of_text)
        nats = -float(sum(part.sum() for part in scored))
        tokens = sum(len(part) for part in scored)
        rows.append(
            {
                "name": name,
                "bits_per_byte": nats / np.log(2) / test.text_bytes,
                "nats_per_token": nats / tokens,
                "parameters": parameters,
            }
        )
    return {"split": "test", "bytes": test.text_bytes, "documents": len(texts), "models": rows}


def reward_model_accuracy(run: Path, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Share of held-out pairs the reward model orders as the labeller does; intervals by bootstrap over prompts."""
    model, tokenizer = open_reward_model(run / "reward", device), Tokenizer.load(run / "reward")
    limit = recipe.pretraining.context_length
    rankings = [
        ranking
        for ranking in read_rankings(run / "rankings" / "test.jsonl")
        if max(map(len, ranked_sequences(tokenizer, ranking))) <= limit
    ]
    ended = [ranking.metadata.get("ended", [True] * len(ranking.responses)) for ranking in rankings]
    flat = iter(model.rewards([tokens for ranking in rankings for tokens in ranked_sequences(tokenizer, ranking)]))
    scores = [[next(flat) for _ in ranking.responses] for ranking in rankings]
    length = [[labeller.length_only(text) for text in ranking.responses] for ranking in rankings]
    form = [
        [labeller.form_only(text, end) for text, end in zip(ranking.responses, ends, strict=True)]
        for ranking, ends in zip(rankings, ended, strict=True)
    ]
    count = sum(len(pairs(ranking)) for ranking in rankings)
    result: dict[str, Any] = {
        "pairs": count,
        "prompts": len(rankings),
        "labeller": labeller.LABELLER if recipe.default_task else "rankings as given by the user",
    }
    if count == 0:
        say("no held-out pair to measure the reward model on: its accuracy is left out")
        return result
    result |= {
        "accuracy": _accuracy(rankings, scores, recipe.seed),
        "baselines": {
            "length only": _accuracy(rankings, length, recipe.seed),
            "form only": _accuracy(rankings, form, recipe.seed),
        },
    }
    if recipe.default_task:
        result["by_gap"] = _accuracy_by_gap(rankings, scores, recipe.seed)
    return result


def _margins(rankings: Sequence[Ranking], scores: Sequence[Sequence[float]]) -> tuple[list[float], list[int]]:
    """Score of the winner minus that of the loser for every pair, and the prompt each pair belongs to."""
    margins, groups = [], []
    for index, (ranking, values) in enumerate(zip(rankings, scores, strict=True)):
        for winner, loser in pairs(ranking):
            margins.append(values[winner] - values[loser])
            groups.append(index)
    return margins, groups


def _accuracy(rankings: Sequence[Ranking], scores: Sequence[Sequence[float]], seed: int) -> dict[str, float]:
    margins, groups = _margins(rankings, scores)
    return pairwise_accuracy(margins, groups=groups, seed=seed).as_dict()


def _accuracy_by_gap(rankings: Sequence[Ranking], scores: Sequence[Sequence[float]], seed: int) -> list[dict[str, Any]]:
    """Accuracy on thirds of the pairs, by how far apart the labeller's own scores are: what bounds the whole."""
    margins, groups = _margins(rankings, scores)
    gaps, _ = _margins(rankings, [ranking.metadata["scores"] for ranking in rankings])
    order = np.argsort(gaps, kind="stable")
    rows = []
    for part in np.array_split(order, min(3, len(order))):
        chosen = part.tolist()
        accuracy = pairwise_accuracy([margins[i] for i in chosen], groups=[groups[i] for i in chosen], seed=seed)
        low, high = float(gaps[chosen[0]]), float(gaps[chosen[-1]])
        rows.append({"gap_low": low, "gap_high": high, "pairs": len(chosen), **accuracy.as_dict()})
    return rows


@dataclass
class _Outputs:
    """What one policy answered to the held-out prompts."""

    responses: list[Response]
    texts: list[str]
    labels: list[float]
    rewards: list[float]
    kls: list[float]


def compare_policies(
    run: Path, recipe: Recipe, device: torch.device
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The instructed and the aligned model on the prompts of the test split, sampled and greedy; and samples.

    Without a policy the comparison is None. Wins are by the simulated labeller's score where there is one, else by the
    reward model, which is what PPO optimises and so no independent judge; the result says which.
    """
    task = recipe.task
    rows: list[Demonstration] = select(
        read_demonstrations(run / "demonstrations" / "test.jsonl"), task.heldout_prompts, recipe.seed
    )
    tokenizer = Tokenizer.load(run / "sft")
    sft = open_transformer(run / "sft", device).inference_copy()
    limit = sft.config.context_length - task.max_tokens
    rows = [row for row in rows if len(prompt_tokens(tokenizer, row.messages[:-1])) <= limit]
    if not rows:
        return None, []
    names = {"sft": sft}
    reward = None
    if recipe.aligns:
        names["ppo"] = open_transformer(run / "policy", device).inference_copy()
        reward = open_reward_model(run / "reward", device)
    outputs = {
        temperature: {
            name: _answers(model, sft, reward, tokenizer, rows, task, temperature, recipe)
            for name, model in names.items()
        }
        for temperature in (task.temperature, 0.0)
    }
    samples = _samples(run, tokenizer, rows, outputs[0.0], recipe, device)
    if not recipe.aligns:
        return None, samples
    judge = labeller.LABELLER if recipe.default_task else "the reward model, which PPO optimises: no independent judge"
    result = {"prompts": len(rows), "temperature": task.temperature, "labeller": judge}
    result |= _comparison(outputs[task.temperature], recipe)
    return result | {"greedy": _comparison(outputs[0.0], recipe)}, samples


def _answers(
    model: Transformer,
    reference: Transformer,
    reward: RewardModel | None,
    tokenizer: Tokenizer,
    rows: Sequence[Demonstration],
    task: TaskConfig,
    temperature: float,
    recipe: Recipe,
) -> _Outputs:
    prompts = [prompt_tokens(tokenizer, row.messages[:-1]) for row in rows]
    sampling = SamplingConfig(max_tokens=task.max_tokens, temperature=temperature, seed=recipe.seed + 2)
    responses = sample_responses(model, prompts, tokenizer, sampling, "evaluation")
    texts = [response_text(tokenizer, response) for response in responses]
    labels = [
        labeller.score(text, row.messages[-1]["content"], response.ended).total
        for text, row, response in zip(texts, rows, responses, strict=True)
    ]
    sequences = [prompt + response.tokens for prompt, response in zip(prompts, responses, strict=True)]
    rewards = reward.rewards(sequences) if reward is not None else [0.0] * len(rows)
    kls = divergence(model, reference, prompts, responses, temperature or 1.0)
    return _Outputs(responses, texts, labels, rewards, kls)


@torch.inference_mode()
def divergence(
    model: Transformer,
    reference: Transformer,
    prompts: Sequence[list[int]],
    responses: Sequence[Response],
    temperature: float,
) -> list[float]:
    """KL(model || reference) in nats along each response: the exact KL over the vocabulary at every step, summed."""
    out = [0.0] * len(prompts)
    for episodes in pack_episodes(prompts, responses, MICRO_BATCH_TOKENS, model.device):
        logits, anchor = (
            each.logits(response_activations(each, episodes)).float() / temperature for each in (model, reference)
        )
        totals = (exact_kl(logits, anchor) * episodes.mask).sum(1)
        for row, total in zip(episodes.rows, totals.tolist(), strict=True):
            out[row] = total
    return out


def _comparison(outputs: dict[str, _Outputs], recipe: Recipe) -> dict[str, Any]:
    policies = {}
    for name, output in outputs.items():
        policies[name] = {
            "reward_score": bootstrap_interval(output.rewards, seed=recipe.seed).as_dict(),
            "kl_to_sft": float(np.mean(output.kls)),
            "ended_share": float(np.mean([response.ended for response in output.responses])),
            "distinct_ratio": distinct_ratio(output.texts),
            "mean_words": float(np.mean([len(text.split()) for text in output.texts])),
        }
        if recipe.default_task:
            policies[name]["labeller_score"] = bootstrap_interval(output.labels, seed=recipe.seed).as_dict()
    judged = {name: output.labels if recipe.default_task else output.rewards for name, output in outputs.items()}
    return {"policies": policies, "win_rate": win_rate(judged["ppo"], judged["sft"], seed=recipe.seed).as_dict()}


def _samples(
    run: Path,
    tokenizer: Tokenizer,
    rows: Sequence[Demonstration],
    outputs: dict[str, _Outputs],
    recipe: Recipe,
    device: torch.device,
) -> list[dict[str, Any]]:
    """The first prompts of the seeded order with every model's greedy answer."""
    shown = rows[:SAMPLES]
    base = open_transformer(run / "base", device)
    prompts = [tokenizer.encode(base_prompt(row.messages[-2]["content"])) for row in shown]
    sampling = SamplingConfig(max_tokens=recipe.task.max_tokens, temperature=0.0)
    fits = [prompt[-(base.config.context_length - sampling.max_tokens) :] for prompt in prompts]
    continued = sample_responses(base, fits, tokenizer, sampling, "base samples")
    samples = []
    for index, (row, response) in enumerate(zip(shown, continued, strict=True)):
        sample: dict[str, Any] = {
            "prompt": row.messages[-2]["content"],
            "reference": row.messages[-1]["content"],
            "base": response_text(tokenizer, response).split('"""')[0].strip(),
        }
        for name, output in outputs.items():
            sample[name] = output.texts[index]
        if recipe.default_task:
            # The labeller's rule is about docstrings: it says nothing of answers to other prompts.
            sample["scores"] = {name: output.labels[index] for name, output in outputs.items()}
        samples.append(sample)
    return samples


def base_prompt(source: str) -> str:
    """How a base model, which knows no chat, is asked for a docstring: the source up to its first line's end, and an
    opening triple quote. Text that is no function is continued as it is."""
    lines = source.split("\n")
    end = next((number for number, line in enumerate(lines) if line.rstrip().endswith(":")), None)
    if end is None or not any(line.lstrip().startswith(("def ", "async def ")) for line in lines[: end + 1]):
        return source + "\n"
    return "\n".join(lines[: end + 1]) + '\n    """'
