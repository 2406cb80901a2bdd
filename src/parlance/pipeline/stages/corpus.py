"""The stages before any training: text -> corpus -> tokenizer and token shards -> the counted models.

make_corpus(("texts",), Path("corpus"), PreparationConfig(), skip_bad=False, seed=0)
make_tokenizer(Path("corpus"), Path("tokenizer"), Path("tokens"), TokenizerConfig())
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parlance.core.artifacts import atomic_directory, write_json
from parlance.models.exact import ConditionalFrequencies
from parlance.models.ngram import NGramModel
from parlance.models.ngram_smoothing import NGramTraining
from parlance.pipeline.recipe import TokenizerConfig
from parlance.text.preparation import PreparationConfig, prepare_corpus, read_split
from parlance.text.preparation.sources import named_corpora
from parlance.text.token_dataset import TokenDataset, tokenize_corpus
from parlance.text.tokenizers import Tokenizer, train_tokenizer


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
