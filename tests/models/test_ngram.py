"""The n-gram model against dictionary implementations of the same formulas."""

import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core.artifacts import atomic_directory
from parlance.core.errors import UserError
from parlance.inference.generation import stream
from parlance.inference.sampling import SamplingConfig
from parlance.models import ngram_trie
from parlance.models.contract import LanguageModel
from parlance.models.ngram import NGramModel
from parlance.models.ngram_counts import count_ngrams
from parlance.models.ngram_smoothing import NGramTraining, estimate_discount
from parlance.models.ngram_trie import Trie, trie_of

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


def trained(
    order: int = 4,
    vocab_size: int = 30,
    end: int | None = 0,
    smoothing: str = "kneser-ney",
    add_k: float = 1.0,
    prune: tuple[int, ...] = (),
) -> NGramModel:
    documents = [np.array([w for w in text if w != end], np.uint16) for text in zipfian_documents(1, vocab_size)]
    return NGramModel.train(documents, vocab_size, order, end, smoothing=smoothing, add_k=add_k, prune=prune)


def next_log_probs(model: NGramModel, context: list[int]) -> np.ndarray:
    """log p(w | context) in nats for every w, (V,), after a document's first tokens."""
    if context:
        return model.forward(torch.tensor([context]))[0][0, -1].numpy()
    return np.array([model.log_probs(np.array([word]))[0] for word in range(model.vocab_size)])


def assert_equals_dictionary(
    documents: list[list[int]], contexts: list[list[int]], V: int, order: int, end: int | None
):
    model = NGramModel.train([np.array(d, np.int64) for d in documents], V, order, end)
    truth = DictionaryModel(documents, V, order, end)
    assert [d.method for d in model.discounts] == truth.methods
    for context in contexts:
        history = tuple([BEGIN, *context][-(order - 1) :]) if order > 1 else ()
        expected = [math.log(truth.p(w, history)) for w in range(V)]
        np.testing.assert_allclose(next_log_probs(model, context), expected, rtol=1e-6, atol=1e-6)


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
    first, second = count_ngrams([np.array([1, 2, 1, 2])], vocab_size=3, order=2, end_of_text=0)
    assert first.words.tolist() == [0, 1, 2, 3]
    assert first.occurrences.tolist() == [1, 2, 2, 1]
    assert first.adjusted.tolist() == [1, 2, 1, 0]
    assert second.words.tolist() == [2, 0, 1, 1]  # 1 2, 2 0, 2 1, <s> 1
    assert second.adjusted.tolist() == second.occurrences.tolist() == [2, 1, 1, 1]
    assert second.suffixes.tolist() == [2, 0, 1, 1]
    assert second.offsets.tolist() == [0, 0, 1, 3, 4]
    assert (first.begin, second.begin) == (3, 3)


@pytest.mark.parametrize("order", range(1, 10))
@pytest.mark.parametrize("end", [None, 0])
@pytest.mark.parametrize("prune", [(), (0, 0, 1)])
@pytest.mark.parametrize("smoothing", ["kneser-ney", "stupid-backoff", "add-k"])
def test_probabilities_sum_to_one_after_every_kind_of_context(order, end, prune, smoothing):
    model = trained(order, end=end, smoothing=smoothing, prune=prune[:order])
    rng = np.random.default_rng(order)
    seen = [text[:12] for text in zipfian_documents(1, 30)]
    partly = [text[:6] + rng.integers(30, size=2).tolist() for text in seen]
    unseen = rng.integers(30, size=(20, 9)).tolist()
    for context in [[], *seen, *partly, *unseen, [29, 29, 29], [5, 0]]:
        p = np.exp(next_log_probs(model, context).astype(np.float64))
        assert abs(p.sum() - 1) < 1e-6
        assert (p > 0).all()


def test_a_token_never_seen_has_the_share_of_the_uniform_distribution():
    model = NGramModel.train([np.array([1, 2, 1, 1])], vocab_size=10, order=1)
    # One each of counts 1 and 3: fixed discounts, 0.5 + 1.5 taken from 4 and spread over 10.
    assert model.discounts[0].method == "fixed"
    np.testing.assert_allclose(np.exp(next_log_probs(model, []))[[1, 2, 3, 9]], [0.425, 0.175, 0.05, 0.05])


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
    assert loaded.parameter_count() == model.parameter_count() == model.trie.log_values.size


def test_broken_folders_are_the_users_error(tmp_path):
    trained(2).save(tmp_path)
    words = np.load(tmp_path / "words.npy")
    for array in (words ^ np.uint32(4), words[:-1]):
        np.save(tmp_path / "words.npy", array)
        with pytest.raises(UserError, match=r"do not fit its config\.json"):
            NGramModel.load(tmp_path)
    np.save(tmp_path / "words.npy", np.array([{"a": "pickle"}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"cannot read .*words\.npy"):
        NGramModel.load(tmp_path)
    (tmp_path / "words.npy").unlink()
    with pytest.raises(UserError, match=r"cannot read .*words\.npy"):
        NGramModel.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"counts": [31, -1]}, "counts do not fit"),
        ({"counts": [31, 5, 5]}, "counts do not fit"),
        ({"end_of_text": 30}, "end_of_text 30 is outside"),
        ({"model_type": "qwen3"}, r"config\.json: model_type"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        np.save(tmp_path / "words.npy", words)
        with pytest.raises(UserError, match=message):
            NGramModel.load(tmp_path)


def test_a_model_of_the_earlier_form_is_refused_in_one_sentence(tmp_path):
    old = {
        "model_type": "parlance-ngram",
        "order": 1,
        "vocab_size": 2,
        "end_of_text": None,
        "discounts": [],
        "counts": [3],
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="earlier version: train it again"):
        NGramModel.load(tmp_path)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), end=st.sampled_from([None, 0]))
def test_damage_that_is_not_noticed_is_never_read_out_of_bounds(seed, end):
    # Above 64 MiB no checksum is taken: whatever the arrays hold, nodes and words stay within them.
    model, rng = trained(4, end=end), np.random.default_rng(seed)
    trie = model.trie
    kinds = (
        rng.integers(2**32, size=trie.first_child.size, dtype=np.uint32),
        rng.integers(trie.log_values.size, size=trie.first_child.size, dtype=np.uint32),
        (np.arange(trie.first_child.size) % 2 * trie.log_values.size).astype(np.uint32),  # all, from 0 on
    )
    for first_child in kinds:
        words = rng.integers(2**32, size=trie.words.size, dtype=np.uint32)
        damaged = NGramModel(
            model.config,
            trie_of(4, 30, end, words, first_child, trie.log_values.copy(), trie.log_backoffs.copy()),
        )
        tokens = rng.integers(30, size=40)
        checked = _checked_python(damaged.trie, tokens)
        np.testing.assert_allclose(damaged.log_probs(tokens), checked, rtol=1e-6)
        damaged.forward(torch.from_numpy(tokens)[None])


class Guarded(np.ndarray):
    """An array for which a negative index is out of bounds too."""

    def __getitem__(self, place: int) -> np.generic:
        if place < 0:
            raise IndexError(place)
        return super().__getitem__(place)


def _checked_python(trie: Trie, tokens: np.ndarray) -> list[float]:
    """Scores by the same functions without compilation, in which an index out of bounds is an error."""
    functions = {
        name: getattr(ngram_trie, name) for name in ("_word", "_children", "_find", "_advance", "_score", "_fill")
    }
    scores, out = np.empty(tokens.size), np.empty((1, 1, trie.begin), np.float32)
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        guarded = {name: getattr(trie, name).view(Guarded) for name in ngram_trie.ARRAYS}
        trie = trie._replace(**guarded)
        for name, function in functions.items():
            patch.setattr(ngram_trie, name, function.py_func)
        ngram_trie._score(tokens.astype(np.int32), 0, tokens.size, trie, scores)
        ngram_trie._fill(tokens[None, -4:-1], tokens[None, -1:], trie, out)
    return scores.tolist()


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
    with pytest.raises(UserError, match="token -1 is outside"):
        model.forward(torch.tensor([[1, -1]]))


def counted(documents: list[list[int]], order: int, end: int | None) -> Counter[tuple[int, ...]]:
    """Occurrences of all n-grams of 0 to `order` words; of contexts, only where a word follows, at length n - 1."""
    raw: Counter[tuple[int, ...]] = Counter()
    for document in documents:
        text = [BEGIN, *document] + ([] if end is None else [end])
        for stop in range(2, len(text) + 1):
            for start in range(max(0, stop - order), stop):
                raw[tuple(text[start:stop])] += 1
    return raw


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=12), min_size=1, max_size=8),
    context=st.lists(st.integers(1, 4), max_size=6),
    order=st.integers(1, 4),
    end=st.sampled_from([None, 0]),
    threshold=st.integers(0, 2),
    k=st.sampled_from([0.1, 1.0]),
)
def test_add_k_equals_the_definition(documents, context, order, end, threshold, k):
    prune = (0, *[threshold] * (order - 1))
    V, raw = 6, counted(documents, order, end)
    arrays = [np.array(d) for d in documents]
    model = NGramModel.train(arrays, V, order, end, smoothing="add-k", add_k=k, prune=prune)
    for text in [*documents, context]:
        history = tuple([BEGIN, *text][-(order - 1) :]) if order > 1 else ()
        counts = [raw[(*history, w)] for w in range(V)]
        counts = [c if c > threshold or order == 1 or not history else 0 for c in counts]
        expected = [(c + k) / (sum(counts) + k * V) for c in counts]
        np.testing.assert_allclose(np.exp(next_log_probs(model, text)), expected, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=12), min_size=1, max_size=8),
    context=st.lists(st.integers(1, 4), max_size=6),
    order=st.integers(1, 4),
    end=st.sampled_from([None, 0]),
    threshold=st.integers(0, 2),
)
def test_stupid_backoff_is_proportional_to_the_scores_of_its_authors(documents, context, order, end, threshold):
    V, raw = 6, counted(documents, order, end)
    prune = (0, *[threshold] * (order - 1))
    model = NGramModel.train([np.array(d) for d in documents], V, order, end, smoothing="stupid-backoff", prune=prune)

    def score(word: int, history: tuple[int, ...]) -> float:
        n = raw[(*history, word)]
        if n > (threshold if history else 0):
            return n / sum(raw[(*history, w)] for w in range(V))
        return 0.4 * (score(word, history[1:]) if history else 1 / V)

    for text in [*documents, context]:
        history = tuple([BEGIN, *text][-(order - 1) :]) if order > 1 else ()
        scores = np.array([score(w, history) for w in range(V)])
        got = np.exp(next_log_probs(model, text))
        np.testing.assert_allclose(got, scores / scores.sum(), rtol=1e-5)


def test_pruning_drops_what_occurs_at_most_so_often():
    whole, pruned = trained(4), trained(4, prune=(0, 0, 1))
    levels = list(count_ngrams([np.array(d, np.int64) for d in _documents(0)], 30, 4, 0))
    assert whole.config.counts == tuple(level.words.size for level in levels)
    kept = [int((level.occurrences > threshold).sum()) for level, threshold in zip(levels, (0, 0, 1, 1), strict=True)]
    assert pruned.config.counts == (31, *kept[1:])
    assert pruned.discounts == whole.discounts  # dropped n-grams still count for these


def _documents(end: int) -> list[list[int]]:
    return [[w for w in text if w != end] for text in zipfian_documents(1, 30)]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"smoothing": "katz"}, "smoothing: input should be 'kneser-ney', 'stupid-backoff' or 'add-k'"),
        ({"add_k": 0.0}, "add_k: input should be greater than 0"),
        ({"prune": (1, 1)}, "prune must begin with 0"),
        ({"prune": (0, 2, 1)}, "prune must not decrease"),
        ({"prune": (0, 0, 0, 1)}, "prune has 4 numbers for 3 orders"),
    ],
)
def test_wrong_choices_are_the_users_error(choice, message):
    with pytest.raises(UserError, match=message):
        trained(3, **choice)


def test_one_object_holds_the_choices_and_is_saved(tmp_path):
    training = NGramTraining(order=3, smoothing="add-k", add_k=0.5, prune=(0, 1))
    model = NGramModel.train_as(training, [np.array([1, 2, 1])], 4, 0)
    model.save(tmp_path)
    assert NGramModel.load(tmp_path).config.training == training


def test_discounts_that_had_to_be_replaced_are_said(capsys):
    NGramModel.train([np.array([1, 2, 1, 1])], vocab_size=10, order=2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "order 1 fixed (0.5/1/1.5), order 2" in said
    NGramModel.train([np.array([1, 2, 1, 1])], vocab_size=10, order=2, smoothing="add-k")
    assert not capsys.readouterr().err


def test_a_long_stream_is_scored_in_parts_with_the_same_result(monkeypatch):
    model = trained(5)
    stream = np.concatenate([[*text, 0] for text in _documents(0)])[:300]  # trained on: the longest n-grams match
    alone = model.log_probs(stream)
    monkeypatch.setattr(ngram_trie, "_TOKENS_A_THREAD", 3)
    monkeypatch.setattr(ngram_trie, "usable_cores", lambda: 1000)
    np.testing.assert_array_equal(model.log_probs(stream), alone)


def test_a_block_goes_on_where_the_one_before_ended():
    model = trained(5)
    stream = np.concatenate([[*text, 0] for text in _documents(0)])
    for start in range(60):  # so that the blocks' ends fall on other places
        moved = np.concatenate((stream[-start:], stream)) if start else stream
        np.testing.assert_array_equal(model.log_probs(moved)[start + 8 :], model.log_probs(stream)[8:])


@pytest.mark.parametrize(("order", "expected"), [(1, ", , , ,"), (2, "sir , sir ,"), (3, "but no .")])
def test_pardon_me_is_continued(order, expected):
    # Greedily. The unigram model repeats the most frequent token; order 2 knows that "sir" follows a comma most often,
    # and is led in a circle; order 3 that after "me ," it does not.
    texts = ["Pardon me , but no .", "Pardon me , but no .", "Well , sir , no , sir , sir , yes , sir , go ."]
    words = ["<end>", *dict.fromkeys(word for text in texts for word in text.split())]
    documents = [np.array([words.index(word) for word in text.split()]) for text in texts]
    model = NGramModel.train(documents, len(words), order, 0, smoothing="stupid-backoff")
    prompt = [words.index(word) for word in ("Pardon", "me", ",")]
    tokens = stream(model, prompt, SamplingConfig(max_tokens=4, temperature=0), stop={0})
    assert " ".join(words[token] for token in tokens) == expected
