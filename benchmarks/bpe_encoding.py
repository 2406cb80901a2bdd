"""How fast does text become ids on two cores? Parlance, tiktoken and tokenizers in turns, same vocabulary, same ids.

    python benchmarks/bpe_encoding.py --tiktoken cl100k_base.tiktoken --pattern gpt4 --out result.json

The vocabulary is a file of tiktoken's (base64 token, blank, rank), else one of 8 192 merges trained here on the first
tenth of the corpus. Each has two threads and starts from texts in memory. Parlance also writes the ids to a file, as
uint16 (uint32 for vocabularies above 65 536); the peers return Python lists and write nothing. Every id is compared.
"""

import argparse
import base64
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("RAYON_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import numpy as np
import tiktoken
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from bpe_training import THREADS, corpus, spread, timed
from parlance.text.bpe.encoding import Encoder
from parlance.text.bpe.parallel import chunks_of
from parlance.text.bpe.patterns import PATTERNS, pattern_named, scan_arguments, utf8
from parlance.text.bpe.scan_kernels import scan
from parlance.text.bpe.training import train
from parlance.text.tokenizers import merges_of_ranks


def vocabulary(path: Path | None, texts: Sequence[str], pattern: str) -> list[bytes]:
    """Tokens by rank."""
    if path is None:
        return list(dict.fromkeys(train(texts[: max(1, len(texts) // 10)], 8448, pattern, THREADS)))
    rows = [line.split() for line in path.read_bytes().splitlines() if line.strip()]
    return [base64.b64decode(token) for token, _ in sorted(rows, key=lambda row: int(row[1]))]


def backend_of(tokens: Sequence[bytes], expression: str) -> Tokenizer:
    """The same vocabulary for `tokenizers`; the merges are found again from the ranks."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letter_of = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    kept, merges = merges_of_ranks(tokens)

    def name(token: bytes) -> str:
        return "".join(letter_of[byte] for byte in token)

    vocab = {name(token): index for index, token in enumerate(kept)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[(name(a), name(b)) for a, b in merges]))
    split = pre_tokenizers.Split(Regex(expression), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    return backend


def write_shard(encoder: Encoder, texts: Sequence[str], path: Path, dtype: str) -> None:
    """Encode and write at once, part by part."""
    with path.open("wb") as file:
        for part in encoder.encode_stream(texts, THREADS):
            file.write(part.ids.astype(dtype).data)


def flat(lists: Iterable[Sequence[int]]) -> NDArray[np.uint32]:
    """All ids, one behind the other."""
    return np.concatenate([np.asarray(ids, dtype=np.uint32) for ids in lists])


def parts_of_time(encoder: Encoder, texts: Sequence[str], pattern: str) -> dict[str, float]:
    """Seconds on one thread, the least of three: the whole, and what of it is getting bytes and cutting them."""
    rows = list[dict[str, float]]()
    ends = np.empty(1 << 16, dtype=np.int32)
    for _ in range(3):
        seconds = dict.fromkeys(("to UTF-8", "scan", "read once"), 0.0)
        for chunk in chunks_of(texts):
            took, batch = timed(utf8, chunk)
            seconds["to UTF-8"] += took
            seconds["read once"] += timed(batch.data.copy)[0]
            cursor = np.zeros(2, dtype=np.int64)
            found = 1
            while found:
                took, found = timed(
                    scan, batch.words, batch.bounds, cursor, ends, *scan_arguments(pattern_named(pattern))
                )
                seconds["scan"] += took
        seconds["whole"] = timed(encoder.encode_batch, texts, 1)[0]
        rows.append(seconds)
    return {part: min(row[part] for row in rows) for part in rows[0]}


def main() -> None:
    """Print the ratios and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a folder with text files")
    parser.add_argument("--bytes", type=int, default=31_500_000)
    parser.add_argument("--tiktoken", type=Path, help="a file of ranks")
    parser.add_argument("--pattern", choices=PATTERNS, default="parlance")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-tokenizers", action="store_true", help="leave out the slowest")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    texts = corpus(arguments.corpus, arguments.bytes)
    size = sum(len(text.encode()) for text in texts)
    tokens = vocabulary(arguments.tiktoken, texts, arguments.pattern)
    expression = PATTERNS[arguments.pattern].expression
    peer = tiktoken.Encoding(
        "peer",
        pat_str=expression,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={},
    )
    backend = None if arguments.without_tokenizers else backend_of(tokens, expression)
    dtype = "<u2" if len(tokens) <= 1 << 16 else "<u4"
    first_call, _ = timed(Encoder(tokens, arguments.pattern).encode, texts[0])
    seconds: dict[str, list[float]] = {"parlance": [], "parlance, shard written": [], "tiktoken": [], "tokenizers": []}
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "shard.bin"
        for _ in range(arguments.rounds):
            encoder = Encoder(tokens, arguments.pattern)  # nothing remembered from the last round
            took, ours = timed(encoder.encode_batch, texts, THREADS)
            seconds["parlance"].append(took)
            encoder = Encoder(tokens, arguments.pattern)
            took, _ = timed(write_shard, encoder, texts, shard, dtype)
            seconds["parlance, shard written"].append(took)
            equal = equal and np.array_equal(np.fromfile(shard, dtype=dtype), ours.ids)
            took, theirs = timed(partial(peer.encode_ordinary_batch, num_threads=THREADS), texts)
            seconds["tiktoken"].append(took)
            equal = equal and np.array_equal(flat(theirs), ours.ids)
            if backend is not None:
                took, encodings = timed(partial(backend.encode_batch_fast, add_special_tokens=False), texts)
                seconds["tokenizers"].append(took)
                equal = equal and np.array_equal(flat(item.ids for item in encodings), ours.ids)
    base = seconds["parlance, shard written"]
    prompt = "Hello! Please explain in two sentences how byte-pair encoding works, and give an example. " * 3
    encoder.encode(prompt)
    result = {
        "texts": len(texts),
        "bytes": size,
        "ids": len(ours.ids),
        "vocabulary": len(tokens),
        "pattern": arguments.pattern,
        "same_ids": equal,
        "megabytes_per_second": {
            name: spread([size / 1e6 / value for value in values]) for name, values in seconds.items() if values
        },
        "times_faster_with_shard_written": {
            name: spread([peer / own for peer, own in zip(values, base, strict=True)])
            for name, values in seconds.items()
            if values and not name.startswith("parlance")
        },
        "one_thread_seconds": parts_of_time(encoder, texts, arguments.pattern),
        "first_call_seconds": first_call,
        "prompt_of_270_characters_seconds": min(timed(encoder.encode, prompt)[0] for _ in range(200)),
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
