"""N-gram model -> ARPA text, the format that KenLM, SRILM and speech recognisers read.

Writes only; the whole file is built in memory, so it suits models up to some millions of n-grams.

    write_arpa(model, Path("model.arpa"), words=["</s>", "a", "b"])
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from parlance.core.artifacts import write_text
from parlance.core.errors import UserError
from parlance.models.ngram import NGramModel

_NEVER = -99.0
"""How ARPA files write the log-probability of <s>."""


def write_arpa(model: NGramModel, path: Path, words: Sequence[str]) -> None:
    """Write `model` to `path`. words: the spelling of each token id; the begin mark is written <s>, `end_of_text` </s>.

    Raises UserError where a word is empty, holds white space, or is spelt like another.
    """
    spelling = [*words, "<s>"]
    if model.config.end_of_text is not None:
        spelling[model.config.end_of_text] = "</s>"
    if len(set(spelling)) != model.vocab_size + 1 or any(word.split() != [word] for word in spelling):
        raise UserError(f"ARPA needs {model.vocab_size} distinct words without white space, none of them <s>")
    scores = model.trie.log_values / np.log(10)
    scores[model.vocab_size] = _NEVER
    backoffs = model.trie.log_backoffs / np.log(10)
    offsets = np.concatenate(([0], model.trie.first_child))  # the children of the root, then of each node

    lines = ["\\data\\", *(f"ngram {k}={count}" for k, count in enumerate(model.config.counts, start=1))]
    texts = [""]
    stop = 0
    parent = 0
    for k, count in enumerate(model.config.counts, start=1):
        start, stop = stop, stop + count
        followers = np.diff(offsets[parent : parent + len(texts) + 1])
        parent += len(texts)
        prefixes = [text for text, n in zip(texts, followers, strict=True) for _ in range(n)]
        texts = [
            f"{prefix} {spelling[word]}".lstrip()
            for prefix, word in zip(prefixes, model.trie.words[start:stop], strict=True)
        ]
        lines += ["", f"\\{k}-grams:"]
        for node, text in enumerate(texts, start=start):
            lines.append(f"{scores[node]:.9g}\t{text}" + (f"\t{backoffs[node]:.9g}" if k < model.order else ""))
    write_text(path, "\n".join([*lines, "", "\\end\\", ""]))
