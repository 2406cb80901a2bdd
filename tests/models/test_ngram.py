"""The n-gram model against a dictionary implementation of the same formulas, and against KenLM where installed."""

import json
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core.artifacts import atomic_directory
from parlance.core.errors import UserError
from parlance.models.contract import LanguageModel
from parlance.models.ngram import NGramModel
from parlance.models.ngram_arpa import write_arpa
from parlance.models.ngram_counts import count_ngrams
from parlance.models.ngram_smoothing import estimate_discount

BEGIN = -7
"""The begin mark of the dictionary implementation; any number that is no token."""


class DictionaryModel:
    """Interpolated modified Kneser-Ney written down as the definitions read, over dictionaries of tuples."""

    def __init__(self, documents: list[list[int]], vocab_size: int, order: int, end: int | None) -> None:
        self.vocab_size = vocab_size
        raw: Counter[tuple[int, ...]] = Counter()
        lefts = defaultdict(set)
        for document in documents:
            text = [BEGIN, *document] + ([] if end is None else [end])
            for stop in range(1, len(text) + 1):
                for start in range(max(0, stop - order), stop):
                    gram = tuple(text[start:stop])
                    raw[gram] += 1
                    if start > 0:
                        lefts[gram].add(text[start - 1])
        del raw[(BEGIN,)]
        adjusted = {gram: n if len(gram) == order or gram[0] == BEGIN else len(lefts[gram]) for gram, n in raw.items()}
        self.methods = []
        self.discounted: dict[tuple[int, ...], float] = {}
        totals: Counter[tuple[int, ...]] = Counter()
        freed: defaultdict[tuple[int, ...], float] = defaultdict(float)
        for k in range(1, order + 1):
            level = {gram: a for gram, a in adjusted.items() if len(gram) == k}
            method, D = self.discount(Counter(level.values()))
            self.methods.append(method)
            for gram, a in level.items():
                totals[gram[:-1]] += a
                freed[gram[:-1]] += D[min(a, 3) - 1]
                self.discounted[gram] = a - D[min(a, 3) - 1]
        self.totals, self.freed = totals, freed

    @staticmethod
    def discount(t: Counter[int]) -> tuple[str, list[float]]:
        if t[1] > 0 and t[2] > 0:
            Y = t[1] / (t[1] + 2 * t[2])
            if t[3] > 0:
                D = [1 - 2 * Y * t[2] / t[1], 2 - 3 * Y * t[3] / t[2], 3 - 4 * Y * t[4] / t[3]]
                if all(d > 0 for d in D):
                    return "closed form", D
            return "absolute", [Y, Y, Y]
        return "fixed", [0.5, 1, 1.5]

    def p(self, word: int, context: tuple[int, ...]) -> float:
        """p(word | context); the context is already cut to order - 1 words."""
        shorter = self.p(word, context[1:]) if context else 1 / self.vocab_size
        if not self.totals[context]:
            return shorter
        return (self.discounted.get((*context, word), 0) + self.freed[context] * shorter) / self.totals[context]


def zipfian_documents(seed: int, vocab_size: int, documents: int = 40, mean_length: int = 50) -> list[list[int]]:
    """Text with repetitions at every order: words follow their predecessor's favourites."""
    rng = np.random.default_rng(seed)
    favourites = rng.integers(vocab_size, size=(vocab_size, 4))
    texts = []
    for _ in range(documents):
        text: list[int] = []
        for _ in range(int(rng.poisson(mean_length))):
            if text and rng.random() < 0.7:
                text.append(int(favourites[text[-1], min(3, rng.geometric(0.5) - 1)]))
            else:
                text.append(int(min(vocab_size - 1, rng.zipf(1.3) - 1)))
        texts.append(text)
    return texts


def trained(order: int = 4, vocab_size: int = 30, end: int | None = 0) -> NGramModel:
    documents = [[w for w in text if w != end] for text in zipfian_documents(1, vocab_size)]
    return NGramModel.train([np.array(d, np.uint16) for d in documents], vocab_size, order, end)


def assert_equals_dictionary(
    documents: list[list[int]], contexts: list[list[int]], V: int, order: int, end: int | None
):
    model = NGramModel.train([np.array(d, np.int64) for d in documents], V, order, end)
    truth = DictionaryModel(documents, V, order, end)
    assert [d.method for d in model.discounts] == truth.methods
    for context in contexts:
        history = tuple([BEGIN, *context][-(order - 1) :]) if order > 1 else ()
        expected = [math.log(truth.p(w, history)) for w in range(V)]
        np.testing.assert_allclose(model.next_log_probs(np.array(context, np.int64)), expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=150, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(1, 4), max_size=12), min_size=1, max_size=8),
    context=st.lists(st.integers(1, 4), max_size=6),
    order=st.integers(1, 5),
    end=st.sampled_from([None, 0]),
)
def test_equals_the_definition_on_small_texts(documents, context, order, end):
    if end is None and not any(documents):
        documents.append([1])
    prefixes = [document[:n] for document in documents for n in range(len(document) + 1)]
    assert_equals_dictionary(documents, [*prefixes, context], V=6, order=order, end=end)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_equals_the_definition_where_the_closed_form_applies(order):
    documents = [[w + 1 for w in text] for text in zipfian_documents(2, 400)]
    assert_equals_dictionary(documents, [text[: 3 + i] for i, text in enumerate(documents)], V=420, order=order, end=0)
    model = NGramModel.train([np.array(d) for d in documents], 420, order, 0)
    assert model.discounts[0].method == "closed form"


def test_discounts_by_hand():
    # t_1..t_4 = 4, 2, 1, 1: Y = 1/2, D = 1 - 2/4, 2 - 3/4, 3 - 4/2
    closed = estimate_discount(np.array([0, 0, 1, 1, 1, 1, 2, 2, 3, 4, 9]))
    assert (closed.method, closed.values) == ("closed form", (0.5, 1.25, 1.0))
    # t_3 = 0: Y = 2/(2 + 2) for all
    absolute = estimate_discount(np.array([1, 1, 2, 8]))
    assert (absolute.method, absolute.values) == ("absolute", (0.5, 0.5, 0.5))
    # t_4 is so large that D_3+ would be negative: 3 - 4 (1/3) 4/1
    assert estimate_discount(np.array([1, 2, 3, 4, 4, 4, 4])).method == "absolute"
    fixed = estimate_discount(np.array([7, 8, 9]))
    assert (fixed.method, fixed.values) == ("fixed", (0.5, 1.0, 1.5))


def test_adjusted_counts_by_hand():
    # <s> 1 2 1 2 0: "1" has left neighbours <s> and 2, "2" only 1; "<s> 1" keeps its one occurrence.
    counts = count_ngrams([np.array([1, 2, 1, 2])], vocab_size=3, order=2, end_of_text=0)
    assert counts.level_starts == (0, 4, 8)
    assert counts.words.tolist() == [0, 1, 2, 3, 2, 0, 1, 1]  # then 1 2, 2 0, 2 1, <s> 1
    assert counts.adjusted.tolist() == [1, 2, 1, 0, 2, 1, 1, 1]
    assert counts.suffixes.tolist() == [-1, -1, -1, -1, 2, 0, 1, 1]
    assert counts.first_child.tolist() == [4, 4, 5, 7, 8]


@pytest.mark.parametrize("order", range(1, 10))
@pytest.mark.parametrize("end", [None, 0])
def test_probabilities_sum_to_one_after_every_kind_of_context(order, end):
    model = trained(order, end=end)
    rng = np.random.default_rng(order)
    seen = [text[:12] for text in zipfian_documents(1, 30)]
    partly = [text[:6] + rng.integers(30, size=2).tolist() for text in seen]
    unseen = rng.integers(30, size=(20, 9)).tolist()
    for context in [[], *seen, *partly, *unseen, [29, 29, 29], [5, 0]]:
        p = np.exp(model.next_log_probs(np.array(context, np.int64)))
        assert abs(p.sum() - 1) < 1e-9
        assert (p > 0).all()


def test_a_token_never_seen_has_the_share_of_the_uniform_distribution():
    model = NGramModel.train([np.array([1, 2, 1, 1])], vocab_size=10, order=1)
    # One each of counts 1 and 3: fixed discounts, 0.5 + 1.5 taken from 4 and spread over 10.
    assert model.discounts[0].method == "fixed"
    np.testing.assert_allclose(
        np.exp(model.next_log_probs(np.array([], np.int64)))[[1, 2, 3, 9]], [0.425, 0.175, 0.05, 0.05]
    )


@pytest.mark.parametrize("order", [1, 2, 4])
def test_forward_agrees_with_log_probs(order):
    model: NGramModel = trained(order)
    contract: LanguageModel = model
    rows = np.random.default_rng(3).integers(30, size=(5, 40))
    rows[:, 0] = 0  # end_of_text: what follows is the beginning of a document
    logits, _ = contract.forward(torch.from_numpy(rows))
    assert logits.shape == (5, 40, contract.vocab_size)
    assert logits.dtype == torch.float32
    assert contract.context_length is None
    predicted = logits[:, :-1].gather(2, torch.from_numpy(rows)[:, 1:, None]).squeeze(2)
    for row, got in zip(rows, predicted, strict=True):
        np.testing.assert_allclose(got, model.log_probs(row[1:]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("end", [None, 0])
def test_pieces_with_state_equal_one_long_forward(order, end):
    model = trained(order, end=end)
    tokens = torch.from_numpy(np.array([text[:20] for text in zipfian_documents(1, 30)[:6]]))
    whole, final = model.forward(tokens)
    for piece in (1, 3, 7):
        state, parts = None, []
        for part in tokens.split(piece, dim=1):
            logits, state = model.forward(part, state)
            parts.append(logits)
        assert torch.equal(torch.cat(parts, dim=1), whole)
        assert torch.equal(state, final)
    assert final.shape == (6, order - 1)


def test_a_state_of_another_model_or_batch_is_refused():
    _, state = trained(3).forward(torch.tensor([[1], [2]]))
    with pytest.raises(ValueError, match="state of shape"):
        trained(4).forward(torch.tensor([[1], [2]]), state)
    with pytest.raises(ValueError, match="state of shape"):
        trained(3).forward(torch.tensor([[1]]), state)


def test_a_stream_with_end_of_text_is_the_documents():
    texts = [[1, 2, 1], [], [3], [2, 2, 1, 3]]
    apart = NGramModel.train([np.array(t, np.int64) for t in texts], 5, 3, end_of_text=0)
    stream = np.array([w for t in texts for w in [*t, 0]])
    together = NGramModel.train([stream], 5, 3, end_of_text=0)
    assert together.config == apart.config
    for one, other in zip(together.trie, apart.trie, strict=True):
        np.testing.assert_array_equal(one, other)
    scores = [apart.log_probs(np.array([*t, 0])) for t in texts]
    np.testing.assert_array_equal(apart.log_probs(stream), np.concatenate(scores))


def test_documents_of_length_zero_and_one():
    model = NGramModel.train([np.array([], np.int64), np.array([4], np.int64)], vocab_size=5, order=5, end_of_text=0)
    assert model.config.counts == (6, 3, 1, 0, 0)  # <s> 0, <s> 4, 4 0; <s> 4 0
    assert model.log_probs(np.array([], np.int64)).shape == (0,)
    logits, state = model.forward(torch.empty((2, 0), dtype=torch.int64))
    assert logits.shape == (2, 0, 5)
    assert torch.equal(model.forward(torch.tensor([[4], [4]]), state)[0], model.forward(torch.tensor([[4], [4]]))[0])


def test_training_is_deterministic_and_takes_any_integer_type(tmp_path):
    documents = zipfian_documents(5, 200)
    folders = []
    for name, dtype in (("a", np.uint16), ("b", np.uint32), ("c", np.int64)):
        folders.append(tmp_path / name)
        with atomic_directory(folders[-1]) as folder:
            NGramModel.train([np.array(d, dtype) for d in documents], 200, 4).save(folder)
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == ["config.json", "first_child.npy", "log_backoffs.npy", "log_values.npy", "words.npy"]
    for name in names:
        assert len({(folder / name).read_bytes() for folder in folders}) == 1


def test_save_and_load(tmp_path):
    model = trained(5)
    model.save(tmp_path)
    loaded = NGramModel.load(tmp_path)
    assert loaded.config == model.config
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "parlance-ngram"
    assert config["discounts"][0] == {"values": list(model.discounts[0].values), "method": model.discounts[0].method}
    tokens = np.array(zipfian_documents(6, 30)[0])
    np.testing.assert_array_equal(loaded.log_probs(tokens), model.log_probs(tokens))
    assert loaded.parameter_count() == model.parameter_count() == model.trie.words.size
    arrays = sum(path.stat().st_size - 128 for path in tmp_path.glob("*.npy"))  # 128: the header of a .npy file
    assert loaded.size_bytes() == model.size_bytes() == arrays


def test_broken_folders_are_the_users_error(tmp_path):
    trained(2).save(tmp_path)
    words = np.load(tmp_path / "words.npy")
    words[-1] = 1000
    np.save(tmp_path / "words.npy", words)
    with pytest.raises(UserError, match=r"do not fit its config\.json"):
        NGramModel.load(tmp_path)
    np.save(tmp_path / "words.npy", words[:-1])
    with pytest.raises(UserError, match=r"do not fit its config\.json"):
        NGramModel.load(tmp_path)
    np.save(tmp_path / "words.npy", np.array([{"a": "pickle"}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"cannot read .*words\.npy"):
        NGramModel.load(tmp_path)
    (tmp_path / "words.npy").unlink()
    with pytest.raises(UserError, match=r"cannot read .*words\.npy"):
        NGramModel.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(UserError, match=r"config\.json: model_type"):
        NGramModel.load(tmp_path)


@pytest.mark.parametrize(
    ("documents", "vocab_size", "order", "end", "message"),
    [
        ([[1, 7, 2]], 7, 3, None, "token 7 is outside the vocabulary of 7"),
        ([[1, -1]], 7, 3, None, "token -1 is outside"),
        ([[0.5]], 7, 3, None, "must be integers"),
        ([[1]], 7, 0, None, "order 0"),
        ([[1]], 7, 10, None, "choose 1 to 9"),
        ([[1]], 7, 3, 7, "end_of_text 7 is outside"),
        ([[1]], 0, 3, None, "vocabulary of 0"),
        ([], 7, 3, 0, "no documents"),
        ([[]], 7, 3, None, "no tokens"),
    ],
)
def test_wrong_input_is_the_users_error(documents, vocab_size, order, end, message):
    with pytest.raises(UserError, match=message):
        NGramModel.train([np.array(d) for d in documents], vocab_size, order, end)


def test_tokens_outside_the_vocabulary_are_refused_when_scoring():
    model = trained()
    with pytest.raises(UserError, match="token 30 is outside"):
        model.log_probs(np.array([1, 30]))
    with pytest.raises(UserError, match="token 30 is outside"):
        model.next_log_probs(np.array([30]))
    with pytest.raises(UserError, match="token -1 is outside"):
        model.forward(torch.tensor([[1, -1]]))


def read_arpa(path: Path) -> dict[tuple[str, ...], tuple[float, float]]:
    """n-gram -> (log10 p, log10 back-off), and a check of the counts in the header."""
    announced, found, table = {}, Counter(), {}
    for line in path.read_text().splitlines():
        if line.startswith("ngram "):
            order, count = line.removeprefix("ngram ").split("=")
            announced[int(order)] = int(count)
        elif "\t" in line:
            score, words, *backoff = line.split("\t")
            table[tuple(words.split(" "))] = (float(score), float(backoff[0]) if backoff else 0.0)
            found[len(words.split(" "))] += 1
    assert announced == dict(found)
    return table


def test_arpa_holds_the_model(tmp_path):
    model = trained(order=3)
    words = [f"w{i}" for i in range(30)]
    write_arpa(model, tmp_path / "model.arpa", words)
    table = read_arpa(tmp_path / "model.arpa")
    tokens = np.append(zipfian_documents(8, 29)[0][:40], -1) + 1
    tokens[-1] = 0
    history: tuple[str, ...] = ("<s>",)
    expected = []
    for token in tokens:
        word, context, score = ("</s>" if token == 0 else words[token]), history, 0.0
        while (*context, word) not in table:
            score += table[context][1] if context in table else 0.0
            context = context[1:]
        expected.append(score + table[(*context, word)][0])
        history = (*history, word)[-2:]
    np.testing.assert_allclose(model.log_probs(tokens) / math.log(10), expected, rtol=1e-6)


def test_arpa_refuses_words_it_cannot_hold(tmp_path):
    model = trained()
    for bad in ("w 1", "", "w2", "<s>"):
        words = [f"w{i}" for i in range(30)]
        words[1] = bad
        with pytest.raises(UserError, match="30 distinct words without white space"):
            write_arpa(model, tmp_path / "model.arpa", words)


def test_kenlm_gives_the_same_scores(tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="the peer is not installed: pip install kenlm")
    model = trained(order=5)
    words = [f"w{i}" for i in range(30)]
    write_arpa(model, tmp_path / "model.arpa", words)
    peer = kenlm.Model(str(tmp_path / "model.arpa"))
    for text in zipfian_documents(9, 29):
        tokens = np.array([w + 1 for w in text] + [0])
        scores = peer.full_scores(" ".join(words[w] for w in tokens[:-1]), bos=True, eos=True)
        ours = model.log_probs(tokens) / math.log(10)
        np.testing.assert_allclose(ours, [score for score, _, _ in scores], rtol=1e-4)
