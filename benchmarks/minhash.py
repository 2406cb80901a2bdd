"""MinHash: how fast are signatures and text-to-bands beside rensa and datasketch, and what do the bands find?

    python benchmarks/minhash.py --data ../shared/data --rounds 9 --out benchmarks/results/minhash.json

Needs `pip install rensa datasketch`. One thread each, in turns, on the same input, in seconds of the processor, which
other programs disturb less than those of the clock; a ratio is the peer's time over Parlance's, so that above 1
Parlance is faster. Four questions:

1. `hashes`: signatures of sets of ready 64-bit hashes, at 112 and 128 places and several sizes. rensa's full-set
   R-MinHash (its `rho` sketch samples positions and is no MinHash of the set); datasketch at one size, for it is slow.
2. `words`: documents of about 1 kB as ready lists of words, which rensa hashes and signs. Parlance does more in its
   turn: from the raw text it finds the words, hashes their 5-grams, signs, and keys the bands.
3. `text`: raw text to band keys with 5-grams for both. For rensa the words are found by a regular expression and the
   5-grams joined in Python, as its users do; its bands are keyed in numpy.
4. `quality`: on Reuters-21578, the exact Jaccard similarity of all pairs with a common 5-gram against the pairs that
   share a band: recall and precision at thresholds, the recall that the closed form predicts for these pairs, and the
   bias and spread of the estimates, for the signatures of both libraries.
"""

import argparse
import gzip
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"

import datasketch
import numpy as np
import rensa
from numpy.typing import NDArray

from parlance.text.minhash import MinHasher, collision_probability, equal_keys
from parlance.text.shingling import shingle_hashes
from turns import in_turns

ROOT = Path(__file__).resolve().parent.parent
WORD = re.compile(r"\w+")
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def main() -> None:
    """Answer the four questions and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with reuters21578")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    texts = newswire(arguments.data)
    result = {
        "hashes": compare_hashes(arguments.rounds),
        "texts": compare_texts(texts, arguments.rounds),
        "quality": quality(texts),
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def newswire(data: Path) -> list[str]:
    """Bodies of the Reuters articles."""
    files = sorted((data / "reuters21578").glob("*.sgm.gz"))
    whole = "".join(gzip.decompress(path.read_bytes()).decode("latin-1") for path in files)
    return re.findall(r"<BODY>(.*?)</BODY>", whole, flags=re.DOTALL)


def report(title: str, seconds: dict[str, list[float]], documents: dict[str, int]) -> dict[str, Any]:
    """Documents a second of each, and the ratio of each peer to Parlance, round by round."""
    rates = {name: documents[name] / statistics.median(times) for name, times in seconds.items()}
    print(f"{title}: " + ", ".join(f"{name} {rate:,.0f}/s" for name, rate in rates.items()))
    ratios = {}
    for name, times in seconds.items():
        if name == "parlance":
            continue
        each = [
            (theirs / documents[name]) / (ours / documents["parlance"])
            for ours, theirs in zip(seconds["parlance"], times, strict=True)
        ]
        ratios[name] = {"min": min(each), "median": statistics.median(each), "max": max(each)}
        print(f"    ratio to {name}: {ratios[name]['median']:.2f} ({min(each):.2f} to {max(each):.2f})")
    return {"documents_per_second": rates, "ratio": ratios}


def compare_hashes(rounds: int) -> dict[str, Any]:
    """Signing only, from flat buffers of 64-bit hashes."""
    generator = np.random.default_rng(0)
    result = {}
    for size in (20, 60, 166, 500, 1660, 10_000):
        documents = 3_000_000 // size
        hashes = generator.integers(2**64, size=size * documents, dtype=np.uint64, endpoint=False)
        for places in (112, 128):
            title = f"{size} hashes, {places} places"
            functions, counts = signers(hashes, size, places)
            result[title] = report(title, in_turns(rounds, functions, time.process_time), counts)
    return result


def signers(
    hashes: NDArray[np.uint64], size: int, places: int
) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """What signs sets of `size` hashes each, and how many of them."""
    documents = len(hashes) // size
    offsets = np.arange(documents + 1) * size
    unsigned = offsets.astype(np.uint64)
    hasher = MinHasher(1, places // 8, 8)
    functions: dict[str, Callable[[], object]] = {
        "parlance": lambda: hasher.signatures(hashes, offsets),
        "rensa": lambda: rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, unsigned, places, 1),
    }
    counts = {"parlance": documents, "rensa": documents}
    if size == 166:
        sets = [[hash_.tobytes() for hash_ in hashes[i * size : (i + 1) * size]] for i in range(40)]
        functions["datasketch"] = lambda: [datasketch.MinHash(places).update_batch(each) for each in sets]
        counts["datasketch"] = len(sets)
    return functions, counts


def compare_texts(texts: list[str], rounds: int) -> dict[str, Any]:
    """Documents of about 1 kB: ready words for rensa, and raw text for both."""
    whole = "\n".join(texts)[:2_000_000]
    documents = [whole[i : i + 1000] for i in range(0, len(whole), 1000)]
    words = [WORD.findall(document.lower()) for document in documents]
    hasher = MinHasher(1, 16, 8)
    counts = {"parlance": len(documents), "rensa": len(documents)}

    def rensa_from_text() -> NDArray[np.uint64]:
        shingles = []
        for document in documents:
            found = WORD.findall(document.lower())
            shingles.append([" ".join(found[i : i + 5]) for i in range(len(found) - 4)])
        return rensa_bands(rensa.RMinHash.digest_matrix_from_token_sets(shingles, 128, 1), 16)

    def parlance_from_text() -> NDArray[np.uint64]:
        return hasher.bands_of_texts(documents)

    signing = in_turns(
        rounds,
        {
            "parlance": parlance_from_text,
            "rensa": lambda: rensa.RMinHash.digest_matrix_from_token_sets(words, 128, 1),
        },
        time.process_time,
    )
    both = in_turns(rounds, {"parlance": parlance_from_text, "rensa": rensa_from_text}, time.process_time)
    return {
        "words": report("1 kB, parlance from text to bands, rensa signs ready words, 128 places", signing, counts),
        "text": report("1 kB, from text to bands, 128 places", both, counts),
    }


def rensa_bands(matrix: Any, bands: int) -> NDArray[np.uint64]:
    """One key a band from rensa's digests: (documents, bands)."""
    digests = np.array(matrix.to_rows(), dtype=np.uint64)
    grouped = digests.reshape(len(digests), bands, -1)
    factors = MinHasher(7, 1, grouped.shape[2])._rows[:-1]
    return (grouped * factors).sum(axis=2, dtype=np.uint64)


def exact_pairs(sets: list[NDArray[np.uint64]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """All pairs of documents with a common shingle, as first * D + second, and their Jaccard similarities."""
    documents = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
    hashes = np.concatenate(sets)
    order = np.argsort(hashes, kind="stable")
    documents, hashes = documents[order], hashes[order]
    edges = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1], True])
    found = []
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if end - begin > 1:
            group = documents[begin:end]  # ascending
            first, second = np.triu_indices(end - begin, 1)
            found.append(group[first] * len(sets) + group[second])
    pairs, common = np.unique(np.concatenate(found), return_counts=True)
    lengths = np.array([len(s) for s in sets])
    return pairs, common / (lengths[pairs // len(sets)] + lengths[pairs % len(sets)] - common)


def banded_pairs(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """All pairs that share a band, as first * D + second."""
    found = []
    for column in range(keys.shape[1]):
        first, second = equal_keys(keys[:, column : column + 1])
        group = np.arange(len(keys))
        for a, b in zip(first.tolist(), second.tolist(), strict=True):  # chains within ascending groups
            group[b] = group[a]
        members = np.flatnonzero(np.isin(group, group[second]))
        members = members[np.argsort(group[members], kind="stable")]
        for cluster in np.split(members, np.flatnonzero(np.diff(group[members])) + 1):
            i, j = np.triu_indices(len(cluster), 1)
            found.append(cluster[i] * len(keys) + cluster[j])
    return np.unique(np.concatenate(found))


def quality(texts: list[str]) -> dict[str, Any]:
    """Recall and precision of shared bands against exact similarities, for the signatures of both."""
    sets = [np.unique(shingle_hashes(text, 5)) for text in texts]
    sets = [s for s in sets if len(s)]
    pairs, similarity = exact_pairs(sets)
    offsets = np.cumsum([0, *map(len, sets)])
    flat = np.concatenate(sets)
    likely = similarity > 0.2
    first, second = pairs[likely] // len(sets), pairs[likely] % len(sets)
    hasher = MinHasher(1)
    rows = rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets.astype(np.uint64), 112, 1)
    signatures = {"parlance": hasher.signatures(flat, offsets), "rensa": np.array(rows.to_rows(), dtype=np.uint32)}
    keys = {"parlance": np.stack([hasher.bands(s) for s in sets]), "rensa": rensa_bands(rows, 14)}
    print(f"quality: {len(sets)} articles, {len(pairs)} pairs share a 5-gram")
    result: dict[str, Any] = {"articles": len(sets), "pairs": len(pairs)}
    biases = [
        float((signed[first] == signed[second]).mean() - similarity[likely].mean())
        for signed in (MinHasher(seed).signatures(flat, offsets) for seed in range(30))
    ]
    error = statistics.stdev(biases) / len(biases) ** 0.5
    print(f"    parlance: bias over 30 seeds {statistics.mean(biases):+.4f}, standard error {error:.4f}")
    result["bias_over_30_seeds"] = {"mean": statistics.mean(biases), "standard_error": error}
    for name in ("parlance", "rensa"):
        errors = (signatures[name][first] == signatures[name][second]).mean(axis=1) - similarity[likely]
        spread = np.sqrt((similarity[likely] * (1 - similarity[likely]) / 112).mean())
        caught = banded_pairs(keys[name])
        print(
            f"    {name}: {len(caught)} pairs share a band; estimates of {len(errors)} pairs above 0.2: "
            f"bias {errors.mean():+.4f}, root mean square {np.sqrt((errors**2).mean()):.4f} (independent: {spread:.4f})"
        )
        table = []
        for threshold in THRESHOLDS:
            wanted = similarity >= threshold
            hits = int(np.isin(pairs[wanted], caught).sum())
            expected = sum(collision_probability(s) for s in similarity[wanted].tolist())
            row = {
                "threshold": threshold,
                "pairs": int(wanted.sum()),
                "recall": hits / max(int(wanted.sum()), 1),
                "recall_predicted": expected / max(int(wanted.sum()), 1),
                "precision": hits / max(len(caught), 1),
            }
            table.append(row)
            print(
                f"        Jaccard >= {threshold}: {row['pairs']} pairs, recall {row['recall']:.3f} "
                f"(closed form {row['recall_predicted']:.3f}), precision {row['precision']:.3f}"
            )
        result[name] = {
            "caught": len(caught),
            "bias": float(errors.mean()),
            "root_mean_square": float(np.sqrt((errors**2).mean())),
            "root_mean_square_of_independent_places": float(spread),
            "thresholds": table,
        }
    return result


if __name__ == "__main__":
    main()
