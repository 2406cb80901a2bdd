"""How well and how fast is personal data found, against presidio's pattern recognisers?

    python benchmarks/pii.py --data ../shared/data --peer-python /path/to/venv/bin/python --out pii.json

`--peer-python`: a Python in which presidio-analyzer (and thereby spaCy, without a model) is installed. Presidio runs
offline with its pattern recognisers, a blank spaCy pipeline, and lower-cased words as lemmas, so that its context
words work. Its scores are cut at the threshold, of 0, 0.4 and 0.5, that is best for it, category by category;
Parlance runs as by default.

Two measures of quality. (1) presidio_pii, in two halves: templates with an even number, which were read while the
rules of Parlance were written, and those with an odd number, which were not. (2) Values made up here, put between the
sentences of real prose (IMDB, Reuters, Gutenberg), half of them after a word that gives them away. A finding is right
when the category is, and the overlap with the label is at least half of their union.

Speed: both on the prose of (2), without the values, in turns; once for the categories that both know, once for the
default categories of Parlance against all of presidio's pattern recognisers for English. The process that runs
presidio is started once and answers one request after another; its start is not timed.
"""

import argparse
import gzip
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

ENTITIES = {
    "PERSON": "PERSON",
    "STREET_ADDRESS": "ADDRESS",
    "CREDIT_CARD": "CREDIT_CARD",
    "PHONE_NUMBER": "PHONE",
    "EMAIL_ADDRESS": "EMAIL",
    "IBAN_CODE": "IBAN",
    "IP_ADDRESS": "IP",
    "US_SSN": "US_SSN",
    "CRYPTO": "CRYPTO",
    "MAC_ADDRESS": "MAC",
}
PATTERN_ENTITIES = [name for name in ENTITIES if name not in ("PERSON", "STREET_ADDRESS")]
THRESHOLDS = (0.0, 0.4, 0.5)
PASSES = 10
Found = tuple[int, int, str, float]
Labels = list[tuple[int, int, str]]


# The peer, in its own process


def serve_presidio() -> None:
    """Answer requests (texts, and whether all recognisers shall run) by seconds and findings, a line of JSON each."""
    import logging

    logging.disable(logging.CRITICAL)
    import spacy
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine
    from spacy.language import Language

    @Language.component("lower_case_lemmas")
    def lower_case_lemmas(document: Any) -> Any:
        for token in document:
            token.lemma_ = token.text.lower()
        return document

    pipeline = spacy.blank("en")
    pipeline.max_length = 10**8
    pipeline.add_pipe("lower_case_lemmas")
    engine = SpacyNlpEngine(models=[{"lang_code": "en", "model_name": "blank"}])
    engine.nlp = {"en": pipeline}
    registry = RecognizerRegistry(supported_languages=["en"])
    registry.load_predefined_recognizers(languages=["en"])
    registry.remove_recognizer("SpacyRecognizer")
    analyzer = AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=["en"])
    for line in sys.stdin:
        request = json.loads(line)
        entities = None if request["all"] else PATTERN_ENTITIES
        start = time.perf_counter()
        results = [analyzer.analyze(text=text, language="en", entities=entities) for text in request["texts"]]
        seconds = time.perf_counter() - start
        found = [[(r.start, r.end, ENTITIES.get(r.entity_type, ""), r.score) for r in result] for result in results]
        print(json.dumps({"seconds": seconds, "found": found}), flush=True)


class Presidio:
    """The peer's process."""

    def __init__(self, python: str) -> None:
        command = [python, "-P", __file__, "--serve-presidio"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.find(["Warm up: ada@lovelace.org"])

    def find(self, texts: list[str], all_entities: bool = False) -> tuple[float, list[list[Found]]]:
        """Seconds, and the findings of every text."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"texts": texts, "all": all_entities}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["seconds"], [[tuple(found) for found in result] for result in answer["found"]]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def find_with_parlance(texts: list[str], categories: tuple[str, ...]) -> tuple[float, list[list[Found]]]:
    """Seconds, and the findings of every text."""
    from parlance.text.pii import PIIConfig, find_pii

    config = PIIConfig(categories=categories)
    start = time.perf_counter()
    found = [find_pii(text, config) for text in texts]
    return time.perf_counter() - start, [[tuple(span) for span in spans] for spans in found]


# Labelled texts


def labelled_set(folder: Path, half: int) -> list[tuple[str, Labels]]:
    """The rows of presidio_pii whose template number is `half` modulo 2."""
    with gzip.open(folder / "presidio_pii" / "synth_dataset_v2.json.gz", "rt", encoding="utf-8") as file:
        rows = [row for row in json.load(file) if row["template_id"] % 2 == half]
    return [
        (
            row["full_text"],
            [
                (span["start_position"], span["end_position"], ENTITIES[span["entity_type"]])
                for span in row["spans"]
                if span["entity_type"] in ENTITIES
            ],
        )
        for row in rows
    ]


def prose(folder: Path, documents: int) -> list[str]:
    """Reviews, newswire and novel pages in turns, about 1 to 3 kB each."""
    with gzip.open(folder / "imdb" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        reviews = [json.loads(line)["text"] for line in file]
    with gzip.open(folder / "reuters21578" / "reut2-021.sgm.gz", "rt", encoding="latin-1") as file:
        news = [
            body.replace("&lt;", "<").replace("&#3;", "")
            for body in re.findall(r"<BODY>(.*?)</BODY>", file.read(), re.S)
        ]
    with gzip.open(folder / "gutenberg_ml5" / "darwin.txt.gz", "rt", encoding="utf-8") as file:
        book = file.read()
    pages = [book[place : place + 2000] for place in range(0, len(book), 2000)]
    return [text for group in zip(reviews, news, pages, strict=False) for text in group][:documents]


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices("0123456789", k=count))


def _luhn(payload: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(payload)):
        doubled = int(digit) * (2 if place % 2 == 0 else 1)
        total += doubled // 10 + doubled % 10
    return payload + str(-total % 10)


def _card(rng: random.Random) -> str:
    prefix = rng.choice(["4", "52", "55", "6011"])
    number = _luhn(prefix + _digits(rng, 15 - len(prefix)))
    grouped = " ".join(number[place : place + 4] for place in range(0, 16, 4))
    return rng.choice([number, grouped, _luhn("37" + _digits(rng, 12))])


def _iban(rng: random.Random) -> str:
    country, length = rng.choice([("DE", 22), ("GB", 22), ("ES", 24), ("NL", 18), ("BE", 16)])
    bank = {"GB": "NWBK", "NL": "ABNA"}.get(country, "")
    body = bank + _digits(rng, length - 4 - len(bank))
    number = int("".join(str(int(character, 36)) for character in body + country + "00"))
    return f"{country}{98 - number % 97:02d}{body}"


def _phone(rng: random.Random) -> str:
    area, exchange, line = rng.choice([212, 415, 617, 312, 206, 713]), rng.randint(220, 989), _digits(rng, 4)
    forms = [f"{area}-{exchange}-{line}", f"({area}) {exchange}-{line}", f"{area}.{exchange}.{line}"]
    forms += [f"+1-{area}-{exchange}-{line}", f"+44 20 7{_digits(rng, 3)} {line}", f"0171 {_digits(rng, 3)} {line}"]
    return rng.choice(
        [*forms, f"+49 30 {_digits(rng, 8)}", f"01 4{_digits(rng, 1)} {_digits(rng, 2)} {_digits(rng, 2)} 17"]
    )


def _base58(rng: random.Random) -> str:
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    payload = b"\0" + rng.randbytes(20)
    payload += sha256(sha256(payload).digest()).digest()[:4]
    number, text = int.from_bytes(payload, "big"), ""
    while number:
        number, rest = divmod(number, 58)
        text = alphabet[rest] + text
    return "1" * (25 - len(payload.lstrip(b"\0"))) + text


def _ip(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return "2600:" + ":".join(f"{rng.randrange(1 << 16):x}" for _ in range(7))
    return ".".join([str(rng.choice([23, 64, 81, 93, 151]))] + [str(rng.randint(11, 254)) for _ in range(3)])


VALUES = {
    "EMAIL": (
        lambda rng: (
            f"{rng.choice(['j.', 'mary_', 'k'])}{rng.choice(['doe', 'olsen', 'wu'])}{rng.randint(1, 99)}@"
            + rng.choice(["gmail.com", "mail.example-corp.co.uk", "uni-bonn.de"])
        ),
        "Email: {}.",
    ),
    "PHONE": (_phone, "His phone number is {}."),
    "CREDIT_CARD": (_card, "The credit card was {}."),
    "IBAN": (_iban, "The IBAN is {}."),
    "IP": (_ip, "The server has the IP address {}."),
    "US_SSN": (
        lambda rng: f"{rng.randint(100, 599)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}",
        "Social security number: {}.",
    ),
    "CRYPTO": (_base58, "Send bitcoin to {}."),
    "MAC": (lambda rng: ":".join(f"{rng.randrange(256):02X}" for _ in range(6)), "The MAC address is {}."),
}


def with_values(texts: list[str], seed: int) -> list[tuple[str, Labels]]:
    """Two made-up values in every text, between its sentences: the first bare, the second after a telling word."""
    rng = random.Random(seed)
    corpus: list[tuple[str, Labels]] = []
    for text in texts:
        ends = [match.end() for match in re.finditer(r"[a-z]{2}\.\s", text)]
        places = sorted(rng.sample(ends, min(2, len(ends))))
        pieces, labels, last, length = [], [], 0, 0
        for turn, place in enumerate(places):
            category = rng.choice(sorted(VALUES))
            make, told = VALUES[category]
            before, _, after = (told if turn else "There was {} on it.").partition("{}")
            value = make(rng)
            lead = text[last:place] + before
            labels.append((length + len(lead), length + len(lead) + len(value), category))
            pieces += [lead, value, after + " "]
            length += len(lead) + len(value) + len(after) + 1
            last = place
        corpus.append(("".join([*pieces, text[last:]]), labels))
    return corpus


# Scores


def scores(corpus: list[tuple[str, Labels]], found: list[list[Found]], threshold: float) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of every category that is labelled in `corpus`; false findings elsewhere count too."""
    right: Counter[str] = Counter()
    marked: Counter[str] = Counter()
    labelled: Counter[str] = Counter(category for _, labels in corpus for *_, category in labels)
    for (_, labels), findings in zip(corpus, found, strict=True):
        free = list(labels)
        for start, end, category, score in findings:
            if score < threshold:
                continue
            marked[category] += 1
            for label in free:
                shared = min(end, label[1]) - max(start, label[0])
                if label[2] == category and 2 * shared >= max(end, label[1]) - min(start, label[0]):
                    right[category] += 1
                    free.remove(label)
                    break
    return {
        category: {
            "labelled": labelled[category],
            "found": marked[category],
            "precision": right[category] / marked[category] if marked[category] else 0.0,
            "recall": right[category] / labelled[category],
            "f1": 2 * right[category] / (marked[category] + labelled[category]),
        }
        for category in sorted(labelled)
    }


def compare(name: str, corpus: list[tuple[str, Labels]], peer: Presidio) -> dict[str, Any]:
    """F1 of both on `corpus`; prints a table."""
    texts = [text for text, _ in corpus]
    categories = tuple(sorted({category for _, labels in corpus for *_, category in labels}))
    ours = scores(corpus, find_with_parlance(texts, categories)[1], 0.0)
    theirs_found = peer.find(texts)[1]
    by_threshold = [scores(corpus, theirs_found, threshold) for threshold in THRESHOLDS]
    theirs = {c: max((table[c] for table in by_threshold), key=lambda row: row["f1"]) for c in categories}
    print(f"\n{name}: {len(texts)} texts")
    print(f"{'category':<14}{'labels':>7}   {'Parlance P':>10}{'R':>7}{'F1':>7}   {'presidio P':>10}{'R':>7}{'F1':>7}")
    for category in categories:
        row = "".join(
            f"   {side[category]['precision']:>10.3f}{side[category]['recall']:>7.3f}{side[category]['f1']:>7.3f}"
            for side in (ours, theirs)
        )
        print(f"{category:<14}{ours[category]['labelled']:>7}{row}")
    return {"parlance": ours, "presidio": theirs}


def rounds(texts: list[str], peer: Presidio, count: int) -> Iterator[dict[str, float]]:
    """MB/s of both on the same texts, in turns."""
    from parlance.text.pii import PIIConfig

    same = tuple(ENTITIES[name] for name in PATTERN_ENTITIES)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    find_with_parlance(texts[:20], PIIConfig().categories)
    for _ in range(count):
        # Parlance's pass takes milliseconds: the best of several, so that one interruption does not decide.
        ours = min(find_with_parlance(texts, same)[0] for _ in range(PASSES))
        theirs = peer.find(texts)[0]
        default = min(find_with_parlance(texts, PIIConfig().categories)[0] for _ in range(PASSES))
        everything = peer.find(texts, all_entities=True)[0]
        yield {
            "Parlance, same categories, MB/s": megabytes / ours,
            "presidio, same categories, MB/s": megabytes / theirs,
            "ratio, same categories": theirs / ours,
            "Parlance, default categories, MB/s": megabytes / default,
            "presidio, all pattern recognisers, MB/s": megabytes / everything,
            "ratio, all": everything / default,
        }


def spread(values: list[float]) -> dict[str, float]:
    """Least, middle and greatest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def main() -> None:
    """Run everything; print tables; write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=300, help="prose texts for the second measure and the speed")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve-presidio", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_presidio:
        serve_presidio()
        return
    peer = Presidio(options.peer_python)
    texts = prose(options.data, options.documents)
    result: dict[str, Any] = {
        "presidio_pii_even_templates": compare("presidio_pii, read while writing", labelled_set(options.data, 0), peer),
        "presidio_pii_odd_templates": compare("presidio_pii, held out", labelled_set(options.data, 1), peer),
        "prose_with_values": compare("prose with made-up values, held out", with_values(texts, seed=12), peer),
    }
    measured = list(rounds(texts, peer, options.rounds))
    result["speed"] = {name: spread([one[name] for one in measured]) for name in measured[0]}
    peer.close()
    print()
    for name, figures in result["speed"].items():
        print(f"{name}: " + ", ".join(f"{kind} {value:.2f}" for kind, value in figures.items()))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
