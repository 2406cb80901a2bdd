"""ARPA files out and in, and KenLM: numbers that lmplz printed, and the peer's own scores where it is installed."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from parlance.core.errors import UserError
from parlance.models import ngram_arpa
from parlance.models.ngram import NGramModel
from parlance.models.ngram_arpa import read_arpa, write_arpa

UNKNOWN, END = 0, 1


def sentences() -> list[list[int]]:
    """Words that follow each other with preferences, from a congruential generator; the last word is new."""
    x, previous, lines = 1, 0, []
    for n in range(120):
        line = []
        for _ in range(3 + n % 7):
            x = (x * 1103515245 + 12345) % 2**31
            u = x / 2**31
            previous = (previous * 3 + 1) % 11 if u < 0.4 else int(400 * ((u - 0.4) / 0.6) ** 2.5)
            line.append(previous)
        lines.append(line)
    return [*lines, [400]]


def trained(order: int = 3, **choices: object) -> tuple[NGramModel, list[str]]:
    """A model of the sentences over <unk>, </s> and their words; and the words."""
    numbers = {word: i for i, word in enumerate(dict.fromkeys(w for line in sentences() for w in line), start=2)}
    documents = [np.array([numbers[word] for word in line]) for line in sentences()]
    words = ["<unk>", "</s>", *(f"w{word}" for word in numbers)]
    return NGramModel.train(documents, len(words), order, END, **choices), words


def table(path: Path) -> dict[tuple[str, ...], tuple[float, float]]:
    """n-gram -> (log10 p, log10 back-off), and a check of the counts in the header."""
    announced, found, grams = {}, Counter(), {}
    for line in path.read_text().splitlines():
        if line.startswith("ngram "):
            order, count = line.removeprefix("ngram ").split("=")
            announced[int(order)] = int(count)
        elif "\t" in line:
            score, words, *backoff = line.split("\t")
            grams[tuple(words.split(" "))] = (float(score), float(backoff[0]) if backoff else 0.0)
            found[len(words.split(" "))] += 1
    assert announced == dict(found)
    return grams


# What `lmplz -o 3` of KenLM prints for `sentences()`, each word N spelt wN; the second with `--prune 0 1 2`.
OF_LMPLZ = {
    (): {
        "counts": (220, 561, 633),
        "<unk>": (-2.7057297, 0),
        "</s>": (-0.91928536, 0),
        "w0": (-1.2363037, -0.36380273),
        "w1": (-1.7685907, -0.13771878),
        "w400": (-2.554113, -0.046017475),
        "w1 w4": (-0.79909176, -0.22457877),
        "w4 w2": (-0.6157736, -0.3682742),
        "<s> w0": (-0.99243027, -0.36358973),
        "<s> w1": (-1.127963, -0.15988554),
        "<s> w1 w4": (-0.4091492, 0),
        "w0 w1 w4": (-0.31887212, 0),
        "w1 w4 w2": (-0.28367728, 0),
        "w4 w2 w7": (-0.49504584, 0),
        "<s> w0 w1": (-0.14591876, 0),
    },
    (0, 1, 2): {
        "counts": (220, 63, 16),
        "<unk>": (-2.7057297, 0),
        "</s>": (-0.91928536, 0),
        "w0": (-1.2363037, -0.32445395),
        "w1": (-1.7685907, -0.097126566),
        "w400": (-2.554113, 0),
        "w1 w4": (-0.7916582, -0.20478463),
        "w4 w2": (-0.6139507, -0.35426295),
        "<s> w0": (-0.9830649, -0.34863624),
        "<s> w1": (-1.1241823, -0.14260826),
        "<s> w1 w4": (-0.40203848, 0),
        "w0 w1 w4": (-0.30574656, 0),
        "w1 w4 w2": (-0.27756912, 0),
        "w4 w2 w7": (-0.4885599, 0),
        "<s> w0 w1": (-0.14227952, 0),
    },
}


@pytest.mark.parametrize("prune", OF_LMPLZ)
def test_the_numbers_of_lmplz(tmp_path, prune):
    model, words = trained(prune=prune)
    write_arpa(model, tmp_path / "model.arpa", words)
    grams = table(tmp_path / "model.arpa")
    expected = dict(OF_LMPLZ[prune])
    assert model.config.counts == expected.pop("counts")
    # lmplz computes in single precision.
    for gram, numbers in expected.items():
        assert grams[tuple(gram.split())] == pytest.approx(numbers, rel=1e-5, abs=1e-6), gram


def test_arpa_holds_the_model(tmp_path):
    model, words = trained()
    write_arpa(model, tmp_path / "model.arpa", words)
    grams = table(tmp_path / "model.arpa")
    numbers = {word: i for i, word in enumerate(words)}
    for line in sentences()[:20]:
        tokens = [numbers[f"w{word}"] for word in reversed(line)] + [END]
        history: tuple[str, ...] = ("<s>",)
        expected = []
        for token in tokens:
            context, score = history, 0.0
            while (*context, words[token]) not in grams:
                score += grams[context][1] if context in grams else 0.0
                context = context[1:]
            expected.append(score + grams[(*context, words[token])][0])
            history = (*history, words[token])[-2:]
        np.testing.assert_allclose(model.log_probs(np.array(tokens)) / math.log(10), expected, rtol=1e-6)


@pytest.mark.parametrize("choices", [{}, {"prune": (0, 1)}, {"smoothing": "stupid-backoff"}, {"smoothing": "add-k"}])
@pytest.mark.parametrize("order", [1, 3])
def test_logits_are_equal_after_the_round_trip(tmp_path, monkeypatch, order, choices):
    monkeypatch.setattr(ngram_arpa, "_LINES", 100)  # several blocks
    model, words = trained(order, **(choices if order > 1 or "prune" not in choices else {}))
    write_arpa(model, tmp_path / "model.arpa", words)
    again, spelling = read_arpa(tmp_path / "model.arpa")
    assert spelling == words
    assert again.config.counts == model.config.counts
    tokens = torch.from_numpy(np.random.default_rng(0).integers(len(words), size=(3, 30)))
    assert torch.equal(again.forward(tokens)[0], model.forward(tokens)[0])
    again.save(tmp_path)
    assert torch.equal(NGramModel.load(tmp_path).forward(tokens)[0], model.forward(tokens)[0])


SMALL = """\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-1.0\t<unk>\t0
0\t<s>\t-0.5
-0.75\t</s>\t0
-0.25\tb\t-0.125
-2e0\ta

\\2-grams:
-0.1\tb </s>
-0.2\t<s> a
-0.3\ta b

\\end\\
"""


def test_a_file_of_another_program(tmp_path):
    path = tmp_path / "model.arpa"
    path.write_text(SMALL)
    model, words = read_arpa(path)
    assert words == ["<unk>", "</s>", "b", "a"]
    assert (model.order, model.vocab_size, model.config.end_of_text) == (2, 4, 1)
    # <s> a, a b, b </s>, then <s> and no bigram: its back-off weight and the word's own.
    scores = model.log_probs(np.array([3, 2, 1, 0, 2])) / math.log(10)
    np.testing.assert_allclose(scores, [-0.2, -0.3, -0.1, -0.5 - 1.0, -0.25], rtol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (SMALL, "", "is not an ARPA file"),
        ("ngram 2=3", "ngram 3=3", "line 3: not the number of n-grams of order 2"),
        ("ngram 2=3", "ngram 2=4", "not a line for each of the 4 n-grams of order 2"),
        ("ngram 2=3", "ngram 2=2", "expected after the 2 n-grams of order 2"),
        ("-0.3\ta b\n\n\\end\\\n", "", "ends within the n-grams of order 2"),
        ("\n\\end\\\n", "", r"ends before \\end"),
        ("<s>", "s", "has no <s>"),
        ("a b", "a c", "'c' in an n-gram of order 2 is not one"),
        ("a b", "a b c", "not a line for each"),
        ("a b", "a <s>", "has <s> after its first word"),
        ("a b", "<s> a", "is there twice"),
        ("-0.3", "x", "not a line for each"),
        ("-0.3", "nan", "above 1 or not a number"),
        ("-0.3", "0.5", "above 1"),
        ("\ta\n\n", "\tb\n\n", "the word 'b' is there twice"),
        ("b\t-0.125", "b\t400", r"back-off weight of order 1 is beyond all numbers \(10 to the 400\)"),
    ],
)
def test_damaged_files_are_the_users_error(tmp_path, old, new, message):
    assert old in SMALL
    path = tmp_path / "model.arpa"
    path.write_text(SMALL.replace(old, new) if old != "<s>" else SMALL.replace("<s>", "s"))
    with pytest.raises(UserError, match=message):
        read_arpa(path)


def test_gaps_are_refused(tmp_path):
    model, words = trained()
    path = tmp_path / "model.arpa"
    write_arpa(model, path, words)
    lines = path.read_text().splitlines(keepends=True)
    gap = next(line for line in lines if "\tw1 w4\t" in line)
    path.write_text("".join(line for line in lines if line != gap).replace("ngram 2=561", "ngram 2=560"))
    with pytest.raises(UserError, match=r"words of an n-gram of order 3 are not an n-gram of the file"):
        read_arpa(path)


def test_words_that_arpa_cannot_hold_are_refused(tmp_path):
    model, words = trained()
    for bad in ("w 1", "", words[3], "<s>"):
        with pytest.raises(UserError, match="219 distinct words without white space"):
            write_arpa(model, tmp_path / "model.arpa", [*words[:2], bad, *words[3:]])
    assert not list(tmp_path.iterdir())


def test_kenlm_gives_the_same_scores(tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="the peer is not installed: pip install kenlm")
    model, words = trained(order=5)
    write_arpa(model, tmp_path / "model.arpa", words)
    peer = kenlm.Model(str(tmp_path / "model.arpa"))
    rng = np.random.default_rng(0)
    for _ in range(20):
        tokens = np.append(rng.integers(2, len(words), size=30), END)
        scores = peer.full_scores(" ".join(words[w] for w in tokens[:-1]), bos=True, eos=True)
        ours = model.log_probs(tokens) / math.log(10)
        np.testing.assert_allclose(ours, [score for score, _, _ in scores], rtol=1e-5)
