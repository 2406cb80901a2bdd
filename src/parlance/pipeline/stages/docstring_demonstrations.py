"""The stage that makes the default recipe's demonstrations: source code and its docstring, from the corpus itself.

make_docstring_demonstrations(Path("corpus"), tokenizer, Path("demonstrations"), TaskConfig())
"""

from pathlib import Path
from typing import Any

from parlance.core.artifacts import atomic_directory, write_json
from parlance.finetuning.demonstrations import parse_demonstration, write_demonstrations
from parlance.finetuning.docstrings import collect_demonstrations, drop_leaks
from parlance.pipeline.recipe import TaskConfig
from parlance.text.preparation import read_split
from parlance.text.splits import SPLITS
from parlance.text.tokenizers import Tokenizer


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
