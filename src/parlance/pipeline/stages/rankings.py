"""The stage that ranks sampled responses by the simulated labeller, for the default recipe.

make_rankings(Path("sft"), Path("demonstrations"), Path("rankings"), TaskConfig(), seed=0, device=device)
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from parlance.alignment import labeller
from parlance.alignment.preferences import Ranking, write_rankings
from parlance.core.artifacts import atomic_directory
from parlance.finetuning.demonstrations import Demonstration, read_demonstrations
from parlance.inference.sampling import SamplingConfig
from parlance.models.transformer import Transformer
from parlance.pipeline.recipe import TaskConfig
from parlance.pipeline.stages.opening import open_transformer
from parlance.pipeline.stages.sampling import derived_seed, prompt_tokens, response_text, sample_responses, select
from parlance.text.tokenizers import Tokenizer

RANKING_CHUNK = 256
"""Prompts whose responses are sampled before the clock is looked at again."""


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
