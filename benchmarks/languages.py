"""How quick and how right is language identification? Parlance beside fasttext-predict and py3langid, in turns.

    pip install fasttext-predict py3langid
    python benchmarks/languages.py --data ../shared/data --catalogs /usr/share/locale --out results/languages.json

Speed: the same documents of 3 000 characters of English prose, German captions, and (with `--catalogs`) Russian and
Chinese program messages; one thread. Accuracy: Multi30k's test captions in three languages, whole and cut to their
first words, and with `--catalogs` the translated messages of installed programs. py3langid was trained on such
messages, so that its figure there is not one for unseen text. fasttext-predict runs the same model as Parlance: the
largest difference between the probabilities is printed. A peer that is not installed is left out and said to be.
"""

import argparse
import functools
import gettext
import gzip
import importlib.util
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parlance.text.languages import LanguageIdentifier
from parlance.text.normalisation import normalise

Identify = Callable[[list[str]], list[tuple[str, float]]]
LEAST_CHARACTERS, MOST_MESSAGES = 60, 200
SAME = {"nb": "no", "en_GB": "en", "pt_BR": "pt", "pt_PT": "pt", "zh_CN": "zh", "zh_TW": "zh", "zh_HK": "zh"}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with lid176_fasttext, multi30k, gutenberg_ml5")
    parser.add_argument("--catalogs", type=Path, help="a folder of gettext catalogs, such as /usr/share/locale")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=float, default=0.5, help="text a round and kind")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    model = arguments.data / "lid176_fasttext" / "lid.176.ftz"
    identifier, start_seconds = _timed(lambda: _started(model))
    systems: dict[str, Identify] = {"parlance": identifier.identify_batch} | _peers(model)
    messages = _messages(arguments.catalogs) if arguments.catalogs else {}
    captions = {
        language: _read(arguments.data / "multi30k" / f"test_2016_flickr.{language}.gz").splitlines()
        for language in ("en", "de", "fr")
    }
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "start_seconds": start_seconds,
        "speed": _speed(systems, _documents(arguments, messages), arguments.rounds),
        "accuracy": {
            **{f"captions, first {words} words": _accuracy(systems, _cut(captions, words)) for words in (3, 5, 8)},
            "captions": _accuracy(systems, captions),
            "program messages": _accuracy(systems, messages),
        },
    }
    if "fasttext-predict" in systems:
        texts = [text for group in (captions | messages).values() for text in group if len(text) >= LEAST_CHARACTERS]
        pairs = list(zip(systems["parlance"](texts), systems["fasttext-predict"](texts), strict=True))
        result["same_language_as_fasttext"] = sum(ours[0] == theirs[0] for ours, theirs in pairs) / len(pairs)
        result["largest_difference_to_fasttext"] = max(
            abs(ours[1] - min(theirs[1], 1.0))  # fastText's sums can be a little above 1
            for ours, theirs in pairs
            if ours[1] > 0.0
        )
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def _started(model: Path) -> LanguageIdentifier:
    identifier = LanguageIdentifier(model)
    identifier.identify("Once, so that everything is loaded.")
    return identifier


def _peers(model: Path) -> dict[str, Identify]:
    peers: dict[str, Identify] = {}
    if importlib.util.find_spec("fasttext"):
        import fasttext

        loaded = fasttext.load_model(str(model))

        def with_fasttext(texts: list[str]) -> list[tuple[str, float]]:
            answers = [loaded.predict(text.replace("\n", " ")) for text in texts]
            return [(labels[0].removeprefix("__label__"), probabilities[0]) for labels, probabilities in answers]

        peers["fasttext-predict"] = with_fasttext
    if importlib.util.find_spec("py3langid"):
        import py3langid

        peers["py3langid"] = lambda texts: [py3langid.classify(text) for text in texts]
        peers["py3langid"](["Once, so that everything is loaded."])
    for name in ("fasttext-predict", "py3langid"):
        if name not in peers:
            print(f"{name} is not installed and left out")
    return peers


def _read(path: Path) -> str:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read()


def _documents(arguments: argparse.Namespace, messages: dict[str, list[str]]) -> dict[str, list[str]]:
    """Documents of 3 000 characters by kind of text."""
    texts = {
        "English prose": _read(arguments.data / "gutenberg_ml5" / "darwin.txt.gz"),
        "German captions": _read(arguments.data / "multi30k" / "train.de.gz"),
    }
    for name, code in (("Russian", "ru"), ("Chinese", "zh")):
        if code in messages:
            texts[f"{name} messages"] = "\n".join(messages[code] * 10)
    limit = int(arguments.megabytes * 1e6)
    return {
        kind: [text[start : start + 3000] for start in range(0, min(limit, len(text)), 3000)]
        for kind, text in texts.items()
    }


def _messages(folder: Path) -> dict[str, list[str]]:
    """Messages of program catalogs by language: long ones without markup, at most MOST_MESSAGES of each."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in sorted(folder.glob("*/LC_MESSAGES/*.mo")):
        language = path.parts[-3]
        if "@" in language or "." in language:
            continue
        try:
            with path.open("rb") as file:
                catalog = gettext.GNUTranslations(file)
        except (OSError, ValueError, IndexError):  # a broken catalog
            continue
        # The mapping has no public name; `gettext` looks messages up in it one by one.
        for source, message in catalog._catalog.items():  # type: ignore[attr-defined]
            if source and isinstance(message, str) and message != source and not set("%<") & set(message):
                text = " ".join(normalise(message).text.split())
                if len(text) >= LEAST_CHARACTERS:
                    found[SAME.get(language, language.split("_")[0])].add(text)
    chosen = {language: sorted(texts) for language, texts in sorted(found.items()) if len(texts) >= 50}
    return {
        language: texts[:: max(1, len(texts) // MOST_MESSAGES)][:MOST_MESSAGES] for language, texts in chosen.items()
    }


def _cut(groups: dict[str, list[str]], words: int) -> dict[str, list[str]]:
    return {language: [" ".join(text.split()[:words]) for text in texts] for language, texts in groups.items()}


def _accuracy(systems: dict[str, Identify], groups: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Share of right answers, and among those with a probability >= 0.65 where the system gives probabilities."""
    results: dict[str, dict[str, float]] = {}
    for name, identify in systems.items() if groups else ():
        answers = [(language, *answer) for language, texts in groups.items() for answer in identify(texts)]
        results[name] = {"right": sum(a == b for a, b, _ in answers) / len(answers), "texts": len(answers)}
        sure = [(a, b) for a, b, probability in answers if probability >= 0.65]
        if name != "py3langid" and sure:
            results[name] |= {"sure": len(sure) / len(answers), "sure_right": sum(a == b for a, b in sure) / len(sure)}
    return results


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    value = work()
    return value, time.perf_counter() - start


def _speed(
    systems: dict[str, Identify], documents: dict[str, list[str]], rounds: int
) -> dict[str, dict[str, dict[str, float]]]:
    """MB/s of each system in turns, and Parlance's speed divided by each peer's: minimum, median, maximum."""
    results: dict[str, dict[str, dict[str, float]]] = {}
    for kind, texts in documents.items():
        size = sum(len(text.encode()) for text in texts) / 1e6
        seconds: dict[str, list[float]] = {name: [] for name in systems}
        for _ in range(rounds):
            for name, identify in systems.items():
                seconds[name].append(_timed(functools.partial(identify, texts))[1])
        results[kind] = {f"{name}, MB/s": _spread([size / each for each in seconds[name]]) for name in systems}
        for name in systems:
            if name != "parlance":
                ratios = [peer / ours for peer, ours in zip(seconds[name], seconds["parlance"], strict=True)]
                results[kind][f"parlance / {name}"] = _spread(ratios)
    return results


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": round(min(values), 3), "median": round(statistics.median(values), 3), "max": round(max(values), 3)}


if __name__ == "__main__":
    main()
