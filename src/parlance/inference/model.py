"""A language model with its tokenizer: what a user loads and talks to.

model = load("runs/demo/base")
print(model.generate("def dedent("))
print(model.score("import os\n").bits_per_byte)
"""

import math
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from parlance.core.artifacts import read_json
from parlance.core.devices import fast_bfloat16, select_device
from parlance.core.errors import UserError
from parlance.inference.constraints import Constraint
from parlance.inference.embedding import Pooling, embed_tokens
from parlance.inference.generation import Ending, draws
from parlance.inference.reading import checked_prompt
from parlance.inference.sampler import Draw
from parlance.inference.sampling import SamplingConfig
from parlance.inference.scoring import document_log_probs
from parlance.inference.speculative import Drafter, PromptLookup, drafter_of
from parlance.inference.text_stream import TextStream
from parlance.models.checkpoints import load_language_model, read_values
from parlance.models.conditional import ConditionalLanguageModel
from parlance.models.contract import LanguageModel
from parlance.models.conversion import is_foreign, open_foreign
from parlance.models.families.family import Values
from parlance.models.masked import MaskedLanguageModel
from parlance.models.neural import NeuralLanguageModel
from parlance.models.ngram import NGramModel
from parlance.models.ngram_words import WordTable, score_sentences, word_table
from parlance.models.quantised_checkpoint import is_quantised, read_quantised
from parlance.models.quantised_tensors import QuantisedTensor
from parlance.models.tensor_files import weight_bytes_of
from parlance.models.transformer import Transformer
from parlance.text.chat_template import END_OF_TURN, encode_chat
from parlance.text.documents import replace_surrogates
from parlance.text.tokenizers import Tokenizer, import_tokenizer
from parlance.text.tokenizers.assembly import surrounded
from parlance.text.tokenizers.special_tokens import SPACE
from parlance.text.tokenizers.tokenizer import read_config

MASK = "[MASK]"
"""The mask of tokenizers that were made for encoders."""
Precision = Literal["auto", "float32", "bfloat16"]

SMALL_BYTES = 64_000_000
"""Files up to this size are computed in float32: 16 million parameters are read so fast that less is no gain."""
BEGINNING = ("llama", "mistral", "mixtral", "opt")
"""Families whose texts begin with a token of their own, where no file says otherwise."""
ENDING = ("t5",)
"""Families whose sources end with one."""
MOST_ADVANCED = ("policy", "sft", "base", "ngram", "exact")
"""A run directory stands for the first of these it holds."""


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text."""

    nats: float
    """-log p(text), natural logarithm."""
    tokens: int
    bytes: int
    log_probs: list[float]
    """log p of each token, nats."""
    unknown: int = 0
    """How many of the tokens are `<unk>`: they cost nats and count no bytes."""

    @property
    def bits_per_byte(self) -> float:
        """Nats over `bytes`, in bits: comparable between models and tokenizers, except where `<unk>` hides text."""
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(self.nats / self.tokens)


class Continuation(Iterator[str]):
    """A text piece by piece as it is generated; pieces never end inside a character."""

    def __init__(self, drawn: Generator[Draw, None, Ending], text: TextStream, unknown: int = 0) -> None:
        """`drawn`: the tokens; `text`: what makes text of them."""
        self.draws: list[Draw] = []
        """The tokens so far, with their log-probabilities; one that ended the text is not among them, but those of a
        stop string are."""
        self.unknown = unknown
        """How many tokens of the prompt are `<unk>`: what the vocabulary lacks."""
        self.ended: Ending | None = None
        """Why the text ended; None while it goes on."""
        self._pieces = self._written(drawn, text)

    def __next__(self) -> str:
        return next(self._pieces)

    def _written(self, drawn: Generator[Draw, None, Ending], text: TextStream) -> Iterator[str]:
        while not text.stopped:
            try:
                self.draws.append(next(drawn))
            except StopIteration as end:
                ended: Ending = end.value
                break
            if piece := text.push(self.draws[-1].token):
                yield piece
        else:
            ended = "stop"
        if piece := text.finish():
            # A stop string may be complete only with the U+FFFD of a character that was cut.
            yield piece
        self.ended = "stop" if text.stopped else ended


@dataclass(frozen=True)
class Candidate:
    """One of several continuations of a prompt."""

    text: str
    tokens: int
    log_prob: float
    """Of all its tokens, nats, by the model itself."""
    ended: Ending

    @property
    def mean_log_prob(self) -> float:
        """Nats a token."""
        return self.log_prob / max(1, self.tokens)


class Model:
    """A `LanguageModel`, its tokenizer, and the folder they came from."""

    def __init__(
        self, language_model: LanguageModel, tokenizer: Tokenizer, folder: Path, stop: Collection[int] = ()
    ) -> None:
        """`stop`: ids that end a text, besides those that the tokenizer knows."""
        self.language_model, self.tokenizer, self.folder = language_model, tokenizer, folder
        # A tokenizer from elsewhere may have no turns.
        turns = {END_OF_TURN} & tokenizer.special_tokens.keys()
        self.stop = frozenset({tokenizer.end_of_text, *map(tokenizer.special_id, turns), *stop})

    def stream(
        self,
        prompt: str,
        sampling: SamplingConfig | None = None,
        *,
        constraint: Constraint | None = None,
        draft: "Draft | None" = None,
    ) -> Continuation:
        """The continuation of `prompt`, piece by piece.

        `constraint`: the form that it has (`constraints.py`). `draft`: a model of the same tokenizer that guesses ahead
        for this one to check, or "prompt" to guess what followed before (`speculative.py`): the text keeps its law.
        """
        return self._continued(self.prompt_tokens(prompt), sampling, constraint, draft)

    def generate(
        self,
        prompt: str,
        sampling: SamplingConfig | None = None,
        *,
        constraint: Constraint | None = None,
        draft: "Draft | None" = None,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """The continuation of `prompt` (without the prompt); `on_text` is called with each piece. See `stream`."""
        return _joined(self.stream(prompt, sampling, constraint=constraint, draft=draft), on_text)

    def chat_stream(
        self,
        messages: Sequence[dict[str, str]],
        sampling: SamplingConfig | None = None,
        *,
        constraint: Constraint | None = None,
        draft: "Draft | None" = None,
    ) -> Continuation:
        """The assistant's next turn, piece by piece; `messages` are {"role", "content"}, the user's last."""
        tokens, _ = encode_chat(self.tokenizer, list(messages), add_generation_prompt=True)
        return self._continued(tokens, sampling, constraint, draft)

    def chat(
        self,
        messages: Sequence[dict[str, str]],
        sampling: SamplingConfig | None = None,
        *,
        constraint: Constraint | None = None,
        draft: "Draft | None" = None,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """The assistant's next turn; `on_text` is called with each piece."""
        return _joined(self.chat_stream(messages, sampling, constraint=constraint, draft=draft), on_text).strip()

    def best_of(self, prompt: str, count: int, sampling: SamplingConfig | None = None) -> list[Candidate]:
        """`count` continuations, the one of the highest mean log-probability a token first.

        The i-th is what `generate` gives with `seed` + i. Raises UserError for a count below 1.
        """
        if count < 1:
            raise UserError(f"best of {count}: draw at least one text")
        sampling = sampling or SamplingConfig()
        found = []
        for number in range(count):
            config = sampling.model_copy(update={"seed": (sampling.seed + number) % 2**63})
            pieces = self.stream(prompt, config)
            text = "".join(pieces)
            log_prob = sum(draw.log_prob for draw in pieces.draws)
            found.append(Candidate(text, len(pieces.draws), log_prob, pieces.ended or "stop"))
        return sorted(found, key=lambda candidate: -candidate.mean_log_prob)

    def beam_search(
        self, prompt: str, width: int, sampling: SamplingConfig | None = None, length_penalty: float = 1.0
    ) -> list[Candidate]:
        """The likeliest continuations that `width` beams find, the best first; see `beam.py`. Of `sampling`, the limits
        count. Raises UserError for other settings, a width below 1, and models that cannot follow several texts."""
        from parlance.inference.beam import beam_search

        found = beam_search(
            self.language_model,
            self.prompt_tokens(prompt),
            sampling or SamplingConfig(),
            self.stop,
            width=width,
            length_penalty=length_penalty,
            vocab_size=self.tokenizer.vocab_size,
        )
        candidates = []
        for beam in found:
            text = TextStream(self.tokenizer)
            written = "".join([*map(text.push, beam.tokens), text.finish()])
            candidates.append(Candidate(written, len(beam.tokens), beam.log_prob, beam.ending))
        return candidates

    def embed(self, texts: Sequence[str], *, pooling: Pooling = "mean") -> NDArray[np.float32]:
        """Vectors (N, D) of length 1 of texts; see `embedding.py`. Raises UserError for an empty text, one longer than
        the context, and a model that has no activations."""
        before, after = self.tokenizer.surrounding
        tokens = [[*before, *ids, *after] if ids else [] for ids in self.tokenizer.encode_batch(texts)]
        return embed_tokens(self.language_model, tokens, pooling=pooling)

    def prompt_tokens(self, prompt: str) -> list[int]:
        """The ids that the model reads for a prompt, with those that its tokenizer puts before a text."""
        before, after = self.tokenizer.surrounding
        whole = isinstance(self.language_model, ConditionalLanguageModel)  # a source is a text, not its beginning
        return [*before, *self.tokenizer.encode(prompt), *(after if whole else [])]

    def _continued(
        self,
        tokens: list[int],
        sampling: SamplingConfig | None,
        constraint: Constraint | None,
        draft: "Draft | None",
    ) -> Continuation:
        sampling = sampling or SamplingConfig()
        drawn = draws(
            self.language_model,
            tokens,
            sampling,
            self.stop,
            self.tokenizer.vocab_size,
            constraint=constraint,
            drafter=None if draft is None else self._drafter(draft, sampling),
        )
        unknown = tokens.count(-1 if self.tokenizer.unknown is None else self.tokenizer.unknown)
        return Continuation(drawn, TextStream(self.tokenizer, sampling.stop), unknown)

    def _drafter(self, draft: "Draft", sampling: SamplingConfig) -> Drafter:
        if draft == "prompt":
            return PromptLookup()
        if draft.tokenizer.sha256 != self.tokenizer.sha256:
            raise UserError(
                f"the tokenizer of {draft.folder} is not that of {self.folder}: a model that guesses for another needs "
                "the same one; train it with --tokenizer and the other model's folder"
            )
        return drafter_of(draft.language_model, sampling, self.tokenizer.vocab_size)

    def score(self, text: str) -> Score:
        """Score a text as a document: its first token is predicted after the end-of-text mark.

        A text longer than the context is read in windows that overlap by half, each token scored once, with at least
        half a context before it. N-gram models of other toolkits (ARPA files of words) read each line as a sentence, as
        those toolkits do: its end is a token that is predicted too, of no bytes. Bytes are those that the tokens stand
        for: what a vocabulary without them all reads as `<unk>` does not count. Raises UserError for an empty text.
        """
        if not text:
            raise UserError("there is nothing to score: the text is empty")
        if isinstance(self.language_model, NGramModel) and self._words is not None:
            tokens, log_probs = score_sentences(replace_surrogates(text)[0].encode(), self._words, self.language_model)
        else:
            ids = self.tokenizer.encode(text)
            before, _ = self.tokenizer.surrounding
            start = before[-1] if before else self.tokenizer.end_of_text
            checked_prompt(self.language_model, [start, *ids])
            log_probs = document_log_probs(self.language_model, [ids], start)[0]
            tokens = np.array(ids)
        size = int(self.tokenizer.token_byte_lengths[tokens].sum())
        unknown = 0 if self.tokenizer.unknown is None else int((tokens == self.tokenizer.unknown).sum())
        if not size and not unknown:
            raise UserError("there is nothing to score: the text has no words")
        if not size:
            raise UserError("the vocabulary knows nothing of this text: every token is <unk>")
        return Score(-float(log_probs.sum()), tokens.size, size, log_probs.tolist(), unknown)

    @cached_property
    def quantised(self) -> dict[str, QuantisedTensor]:
        """The matrices that the checkpoint has as integers, which the engine computes with; empty for most."""
        folder = self.folder
        if not (folder / "config.json").exists() or not is_quantised(read_values(folder)):
            return {}
        return read_quantised(folder)

    @cached_property
    def _words(self) -> WordTable | None:
        """The words of a vocabulary of an n-gram toolkit, for its texts; None for any other."""
        if not self.tokenizer.reads_lines:
            return None
        known = self.language_model.vocab_size  # a model without <unk> has a tokenizer with it all the same
        words = [entry.removeprefix(SPACE) for entry in self.tokenizer.entries()[:known]]
        unknown = self.tokenizer.unknown
        unknown = None if unknown is None or unknown >= known else unknown
        return word_table(words, unknown=unknown, end=self.tokenizer.end_of_text)


Draft = Model | Literal["prompt"]
"""What guesses ahead: a model, or what the text says already."""


def _joined(pieces: Continuation, on_text: Callable[[str], None] | None) -> str:
    text = ""
    for piece in pieces:
        text += piece
        if on_text is not None:
            on_text(piece)
    return text


def resolve_model_folder(path: Path) -> Path:
    """The checkpoint folder `path` is or, for a run directory, its most advanced model. Raises UserError."""
    if (path / "config.json").exists():
        return path
    for name in MOST_ADVANCED:
        if (path / name / "config.json").exists():
            return path / name
    raise UserError(
        f"{path} holds no model"
        + ("" if path.exists() else " (there is no such folder)")
        + "; name a checkpoint folder "
        "or a run directory"
    )


def load(path: str | Path, device: str = "auto", precision: Precision = "auto") -> Model:
    """Open a checkpoint folder, a run directory's most advanced model, or a foreign file (llama2.c, ARPA, CharRNN).

    `precision`: what a network is computed in; auto: bfloat16 where the machine is fast at it, but float32 for small
    models, which are no faster for less. Raises UserError for anything else, or a tokenizer that is not the model's.
    """
    place = select_device(device)
    if is_foreign(Path(path)):
        folder = Path(path)
        dtype = _dtype(precision, small=True, device=place)
        model, tokenizer = open_foreign(folder)
        if isinstance(model, NeuralLanguageModel):
            model = model.to(dtype)
        values: Values = {}
    else:
        folder = resolve_model_folder(Path(path))
        values = read_values(folder)
        if "SequenceClassification" in str(values.get("architectures")):
            raise UserError(
                f"{folder} is a reward model: it scores answers and writes none; use it with `parlance align --reward`"
            )
        dtype = _dtype(precision, small=weight_bytes_of(folder) <= SMALL_BYTES, device=place)
        # Weights come from the file in the type that they are computed in: where that is theirs, nothing is copied.
        model = load_language_model(folder, dtype)
        tokenizer = tokenizer_of(folder, str(values.get("model_type")))
    if isinstance(model, NeuralLanguageModel):
        model.compute_dtype = dtype
        model = model.to(place).requires_grad_(False)
    if isinstance(model, Transformer) and not model.config.causal:
        model = _masked(model, tokenizer, values, folder)
    ordinary = tokenizer.vocab_size - len(tokenizer.special_tokens)
    if ordinary > model.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens and the model knows {model.vocab_size}; "
            "put the tokenizer beside it that it was made for"
        )
    return Model(model, tokenizer, folder, _ends(folder, values))


def _dtype(precision: Precision, *, small: bool, device: torch.device) -> torch.dtype:
    if precision == "auto":
        return torch.bfloat16 if fast_bfloat16(device) and not small else torch.float32
    return torch.float32 if precision == "float32" else torch.bfloat16


def tokenizer_of(folder: Path, family: str) -> Tokenizer:
    """The tokenizer of a checkpoint folder, in whatever form; one without a token that ends texts gets one.

    A tokenizer.json says what stands around a text; other forms leave that to tokenizer_config.json, and it to the
    habits of the family.
    """
    if (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer.load(folder)
        if tokenizer.ends_texts:
            return tokenizer
    try:
        tokenizer = import_tokenizer(folder)
        if (folder / "tokenizer.json").exists():
            return tokenizer
        path = folder / "tokenizer_config.json"
        said = read_config(path) if path.exists() else {}
        return surrounded(
            tokenizer,
            begins=bool(said.get("add_bos_token", family in BEGINNING)),
            ends=bool(said.get("add_eos_token", family in ENDING)),
        )
    except UserError as error:
        raise UserError(f"{folder} holds a model without its tokenizer: {error}") from error


def _ends(folder: Path, values: Values) -> list[int]:
    """The ids that end a text, as the checkpoint's generation settings (or its configuration) name them."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    found = (generation if isinstance(generation, dict) else {}).get("eos_token_id", values.get("eos_token_id"))
    ids = [] if found is None else found if isinstance(found, list) else [found]
    wrong = [index for index in ids if isinstance(index, bool) or not isinstance(index, int)]
    if wrong or not isinstance(generation, dict):
        raise UserError(
            f"{path if path.exists() else folder}: eos_token_id {found!r} is not a token id or a list of them"
        )
    return ids


def _masked(encoder: Transformer, tokenizer: Tokenizer, values: Values, folder: Path) -> MaskedLanguageModel:
    """The language model that an encoder makes. Raises UserError where nothing says which token is the mask, or where
    the encoder has no head that was trained to see behind it."""
    if values.get("model_type") == "bert" and not encoder.config.head_transform:
        raise UserError(f"{folder} is an encoder without a head for masked tokens, so it cannot say what comes next")
    mask = values.get("mask_token_id")
    if mask is None and MASK in tokenizer.special_tokens:
        mask = tokenizer.special_id(MASK)
    if not isinstance(mask, int):
        raise UserError(
            f"{folder} is an encoder, and nothing says which token hides another: its tokenizer has no {MASK}, and its "
            "config.json no mask_token_id"
        )
    before, after = tokenizer.surrounding
    return MaskedLanguageModel(encoder, vocab_size=tokenizer.vocab_size, mask_token=mask, before=before, after=after)
