"""How long do training and scoring with a 5-gram model take? Parlance and KenLM in turns on the same words.

    python benchmarks/ngram.py --kenlm KENLM/build/bin --rounds 5 --out benchmarks/results/ngram.json

KenLM's `lmplz`, `build_binary` and `query` are built from its source by cmake. The corpus is `--text`, else Python
sources (the standard library and the packages beside it, up to `--bytes`, files of which every twentieth is held out);
lines are sentences, words are what white space separates.

What is compared. Both programs start from the text file, as processes of their own. Training ends with a model on disk:
ARPA text for `lmplz`, the mapped arrays for Parlance. Wall time, processor time and peak memory are those of the whole
process. Scoring is `query` with a probing model, mapped, against a Parlance process that loads the model and its words
and scores the bytes of the text; then without start: KenLM's time less that for an empty text, and Parlance's as taken
within the process, from the text's bytes to its log-probabilities, and once more from the words' numbers alone. `query`
works on one thread; Parlance is measured on one and on all. Both are run once before they are timed, so that files are
cached and kernels compiled. What Parlance's start consists of is given part by part.

What must be equal. Held-out perplexity of orders 1 to 5, with words not seen in training (`<unk>`, which has its share
of the uniform distribution) and without them; sentences begin with `<s>`, end with a predicted `</s>`. `query` opens
no model of order 1: there, the sum is taken over the lines of lmplz's file. Parlance's
vocabulary has `<unk>` as a token that never occurs, `</s>`, and the words of the text: as many as KenLM counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

UNKNOWN, END = 0, 1
ORDER = 5


def words_of(text: Path) -> Any:
    """Words, with </s> at the end of each line, as an Arrow array."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    data = text.read_bytes().replace(b"\n", b" </s> ").strip()
    if not data:
        return pa.array([], pa.string())
    ends = pa.py_buffer(np.array([0, len(data)], np.int32))
    return pc.ascii_split_whitespace(pa.Array.from_buffers(pa.string(), 1, [None, ends, pa.py_buffer(data)])).flatten()


def train(text: Path, folder: Path, order: int) -> dict[str, Any]:
    """In a process of its own: text to a saved model."""
    started = time.perf_counter()
    import numpy as np
    import pyarrow as pa

    from parlance.models.ngram import NGramModel

    imported = time.perf_counter()
    words = pa.chunked_array([pa.array(["<unk>", "</s>"]), words_of(text)]).dictionary_encode().combine_chunks()
    ids, vocabulary = words.indices.to_numpy()[2:].astype(np.int32), words.dictionary
    del words
    encoded = time.perf_counter()
    model = NGramModel.train([ids], len(vocabulary), order, END)
    trained = time.perf_counter()
    model.save(folder)
    (folder / "words.txt").write_text("\n".join(vocabulary.to_pylist()))
    return {
        "import": imported - started,
        "words to numbers": encoded - imported,
        "train": trained - encoded,
        "save": time.perf_counter() - trained,
        "bytes per n-gram": sum(path.stat().st_size for path in folder.glob("*.npy")) / model.parameter_count(),
        "n-grams": model.parameter_count(),
    }


def score(folder: Path, text: Path, *, again: bool) -> dict[str, Any]:
    """In a process of its own: perplexity of a text by a saved model; `again`: from its words' numbers too."""
    started = time.perf_counter()
    import numpy as np

    from parlance.models.ngram import NGramModel
    from parlance.models.ngram_words import score_sentences, word_table

    imported = time.perf_counter()
    model = NGramModel.load(folder)
    words = (folder / "words.txt").read_text().split("\n")
    opened = time.perf_counter()
    table = word_table(words, unknown=UNKNOWN, end=END)
    score_sentences(b"a", table, model)  # load what is compiled
    loaded = time.perf_counter()
    ids, log_probs = score_sentences(text.read_bytes(), table, model)
    done = time.perf_counter()
    if again:
        model.log_probs(ids)
    ended = time.perf_counter()
    known = log_probs[ids != UNKNOWN]
    return {
        "including OOVs": float(np.exp(-log_probs.mean())) if ids.size else 1.0,
        "excluding OOVs": float(np.exp(-known.mean())) if known.size else 1.0,
        "tokens": ids.size,
        "import": imported - started,
        "open": opened - imported,
        "table of words, compiled code": loaded - opened,
        "score words": done - loaded,
        "score numbers": ended - done,
    }


def run(command: Sequence[str | Path], **redirect: Any) -> tuple[str, dict[str, float]]:
    """(what it printed, wall and processor seconds and peak memory of the process)."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as output:
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=errors, **redirect)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        output.seek(0)
        errors.seek(0)
        if status:
            raise RuntimeError(f"{command}: {errors.read().decode()[-2000:]}")
        printed = errors.read().decode() + output.read().decode()
    return printed, {"wall": seconds, "cpu": usage.ru_utime + usage.ru_stime, "MB": usage.ru_maxrss / 1024}


def parlance(*arguments: str | Path, threads: int | None = None) -> tuple[dict[str, Any], dict[str, float]]:
    """One of the functions of this file, in a process of its own; `threads` None: one a core."""
    environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    printed, took = run([sys.executable, __file__, *arguments], env=os.environ | environment)
    return json.loads(printed.strip().splitlines()[-1]), took


def perplexities(printed: str) -> dict[str, float]:
    """What `query -v summary` prints."""
    names = {"Perplexity including OOVs:": "including OOVs", "Perplexity excluding OOVs:": "excluding OOVs"}
    lines = (line.rsplit("\t", 1) for line in printed.splitlines() if "\t" in line)
    return {names[line[0]]: float(line[1]) for line in lines if line[0] in names}


def unigram_perplexities(arpa: Path, text: Path) -> dict[str, float]:
    """The same from lmplz's file of order 1, which `query` does not open."""
    rows = (line.split(b"\t") for line in arpa.read_bytes().splitlines())
    scores = {row[1]: float(row[0]) for row in rows if len(row) > 1}
    words = text.read_bytes().replace(b"\n", b" </s> ").split()
    every = [scores.get(word, scores[b"<unk>"]) for word in words]
    known = [scores[word] for word in words if word in scores]
    return {
        "including OOVs": 10 ** -statistics.fmean(every),
        "excluding OOVs": 10 ** -statistics.fmean(known),
    }


def corpus(limit: int) -> tuple[bytes, bytes]:
    """(training text, held-out text): lines without the words that mean something to KenLM, one kind of white space."""
    from bpe_training import corpus as texts

    parts: tuple[list[str], list[str]] = ([], [])
    for number, text in enumerate(texts(None, limit)):
        parts[number % 20 == 9].append(text)

    def clean(texts: Sequence[str]) -> bytes:
        lines = (line.rstrip() for text in texts for line in text.split("\n"))
        kept = (line for line in lines if line and not {"<s>", "</s>", "<unk>"} & set(line.split()))
        return "".join(f"{line}\n" for line in kept).encode().translate(None, b"\0\v\f")

    return clean(parts[0]), clean(parts[1])


def prepare(work: Path, score_lines: int, *source: str) -> dict[str, int]:
    """In a process of its own, as a child's peak memory is never below its parent's: the texts into `work`."""
    texts = [Path(path).read_bytes() for path in source] if len(source) > 1 else corpus(int(source[0]))
    (work / "train.txt").write_bytes(texts[0])
    (work / "held_out.txt").write_bytes(texts[1])
    (work / "lines.txt").write_bytes(b"".join(texts[0].splitlines(keepends=True)[:score_lines]))
    (work / "empty.txt").write_bytes(b"")
    return {"bytes": len(texts[0]), "words": len(texts[0].split()), "held-out words": len(texts[1].split())}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def ratios(ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]], what: str) -> dict[str, float]:
    """KenLM's time over ours, round by round: above 1, Parlance is faster."""
    return spread([b[what] / a[what] for a, b in zip(ours, theirs, strict=True)])


def main() -> None:
    """Print the ratios and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kenlm", type=Path, required=True, help="folder with lmplz, build_binary and query")
    parser.add_argument("--memory", default="1G", help="lmplz -S")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--held-out", type=Path)
    parser.add_argument("--bytes", type=int, default=33_200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--score-lines", type=int, default=200_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        text, held_out, lines = work / "train.txt", work / "held_out.txt", work / "lines.txt"
        made = [arguments.text, arguments.held_out] if arguments.text else [str(arguments.bytes)]
        result: dict[str, Any] = parlance("prepare", work, str(arguments.score_lines), *made)[0]
        print(result, flush=True)

        def lmplz(order: int) -> dict[str, float]:
            command = [
                arguments.kenlm / "lmplz",
                "-o",
                str(order),
                "-S",
                arguments.memory,
                "--temp_prefix",
                f"{work}/t",
            ]
            return run([*command, "--text", text, "--arpa", work / f"{order}.arpa"])[1]

        def query(model: Path, text: Path) -> tuple[str, dict[str, float]]:
            with text.open("rb") as file:
                return run([arguments.kenlm / "query", "-v", "summary", model], stdin=file)

        # 1. Equality, order by order; leaves the models of the highest order.
        result["perplexity"] = {}
        for order in range(1, ORDER + 1):
            folder = work / str(order)
            folder.mkdir()
            lmplz(order)
            parlance("train", text, folder, str(order))
            ours, _ = parlance("score", folder, held_out)
            if order == 1:
                theirs = unigram_perplexities(work / "1.arpa", held_out)
            else:
                run([arguments.kenlm / "build_binary", "probing", work / f"{order}.arpa", work / f"{order}.binary"])
                theirs = perplexities(query(work / f"{order}.binary", held_out)[0])
            result["perplexity"][order] = {
                name: {"parlance": ours[name], "kenlm": theirs[name], "relative": ours[name] / theirs[name] - 1}
                for name in theirs
            }
            print(order, result["perplexity"][order], flush=True)
        binary, folder = work / f"{ORDER}.binary", work / str(ORDER)
        result["bytes on disk"] = {
            "kenlm probing": binary.stat().st_size,
            "parlance": sum(path.stat().st_size for path in folder.glob("*.npy")),
            "arpa": (work / f"{ORDER}.arpa").stat().st_size,
        }

        # 2. Training, in turns.
        ours, theirs, parts = [], [], []
        for _ in range(arguments.rounds):
            part, took = parlance("train", text, folder, str(ORDER))
            parts.append(part)
            ours.append(took)
            theirs.append(lmplz(ORDER))
        result["training"] = {
            "parlance": {what: spread([row[what] for row in ours]) for what in ours[0]},
            "kenlm": {what: spread([row[what] for row in theirs]) for what in theirs[0]},
            "kenlm / parlance, wall": ratios(ours, theirs, "wall"),
            "kenlm / parlance, cpu": ratios(ours, theirs, "cpu"),
            "parts of parlance": parts[-1],
        }
        print(json.dumps(result["training"], indent=1), flush=True)

        # 3. Scoring, in turns.
        rows: dict[str, list[Any]] = {"kenlm": [], "empty": [], "all threads": [], "one thread": []}
        for _ in range(arguments.rounds):
            rows["kenlm"].append(query(binary, lines)[1])
            rows["empty"].append(query(binary, work / "empty.txt")[1])
            for name, threads in (("all threads", None), ("one thread", 1)):
                part, took = parlance("score", folder, lines, threads=threads)
                numbers = parlance("score", folder, lines, "again", threads=threads)[0]["score numbers"]
                rows[name].append(part | took | {"score numbers": numbers})
        inner = [{"wall": a["wall"] - b["wall"]} for a, b in zip(rows["kenlm"], rows["empty"], strict=True)]
        tokens = rows["one thread"][0]["tokens"]
        result["scoring"] = {
            "tokens": tokens,
            "perplexity": {"parlance": rows["one thread"][0], "kenlm": perplexities(query(binary, lines)[0])},
            "kenlm": {what: spread([row[what] for row in rows["kenlm"]]) for what in ("wall", "cpu", "MB")},
            "kenlm, tokens per second without start": spread([tokens / row["wall"] for row in inner]),
        }
        for name in ("one thread", "all threads"):
            ours = rows[name]
            measured = [key for key in ours[0] if key not in ("including OOVs", "excluding OOVs", "tokens")]
            from_words = [{"wall": row["score words"]} for row in ours]
            from_numbers = [{"wall": row["score numbers"]} for row in ours]
            result["scoring"][f"parlance, {name}"] = {
                **{what: spread([row[what] for row in ours]) for what in measured},
                "kenlm / parlance, from words": ratios(from_words, inner, "wall"),
                "kenlm / parlance, from numbers": ratios(from_numbers, inner, "wall"),
                "kenlm / parlance, whole process, wall": ratios(ours, rows["kenlm"], "wall"),
                "kenlm / parlance, whole process, cpu": ratios(ours, rows["kenlm"], "cpu"),
                "tokens per second, from words": spread([tokens / row["wall"] for row in from_words]),
            }
        print(json.dumps(result["scoring"], indent=1), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    match sys.argv[1:2]:
        case ["train"]:
            print(json.dumps(train(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
        case ["score"]:
            print(json.dumps(score(Path(sys.argv[2]), Path(sys.argv[3]), again=sys.argv[4:] == ["again"])))
        case ["prepare"]:
            print(json.dumps(prepare(Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])))
        case _:
            main()
