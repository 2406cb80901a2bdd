"""SentencePiece vocabularies as `tokenizers` objects with the same ids.

BPE: SentencePiece joins any two neighbours whose text is a piece, the best score first. Here every piece is joined
from the one pair that better pieces leave of it, which gives the same result; a piece that no pair gives keeps all its
pairs. Unigram: both search the most probable division; SentencePiece adds scores in 32 bits, `tokenizers` in 64, so
that a near-tie behind a thousand characters can fall differently.

What differs: `tokenizers` looks up the rules of NFKC by grapheme and can lose a combining mark behind a replaced
character (a no-break space with an accent becomes a plain space): one in ten thousand strings of thirty random
characters, none of 91 362 lines of English, German and French. User-defined symbols of BPE models are cut out before
anything else, so that the spaces around them are normalised apart. A text that spells a byte piece of a Unigram model,
such as `<0x0A>`, becomes that byte.
"""

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from parlance.core.errors import UserError
from parlance.text.tokenizers.assembly import add_special
from parlance.text.tokenizers.merges import reductions
from parlance.text.tokenizers.sentencepiece_model import Normaliser, Piece, PieceType, SentencePieceModel
from parlance.text.tokenizers.special_tokens import SPACE

_USER_BONUS = 0.1
"""SentencePiece gives user-defined symbols the best score times their length, less this."""


def sentencepiece_backend(model: SentencePieceModel) -> Backend:
    """The model with its rules and special tokens."""
    pieces = model.pieces
    unknown = model.roles.get("unk_token")
    if model.kind == "bpe":
        vocab = {piece.text: index for index, piece in enumerate(pieces)}
        backend = Backend(
            models.BPE(
                vocab=vocab,
                merges=_merges(pieces),
                fuse_unk=True,
                byte_fallback=model.byte_fallback,
            )
        )
        if unknown is not None:
            backend.model.unk_token = pieces[unknown].text
    else:
        backend = Backend(models.Unigram(_scored(pieces), unk_id=unknown, byte_fallback=model.byte_fallback))
    backend.normalizer = _normaliser(model.normaliser)
    backend.decoder = _decoder(model)
    add_special(backend, [p.text for p in pieces if p.type in (PieceType.CONTROL, PieceType.UNKNOWN)])
    if model.kind == "bpe":
        symbols = [p.text for p in pieces if p.type is PieceType.USER_DEFINED]
        backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in symbols])
    return backend


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """The pairs of every piece that text can become, the best score first."""
    normal = [piece for piece in pieces if piece.type in (PieceType.NORMAL, PieceType.UNUSED)]
    # The order of the file decides between equal scores.
    ranked = [piece.text for piece in sorted(normal, key=lambda piece: -piece.score)]
    known = set(ranked)
    merges: list[tuple[str, str]] = []
    for text, parts in zip(ranked, reductions(ranked), strict=True):
        if len(parts) == 2:
            merges.append((ranked[parts[0]], ranked[parts[1]]))
        elif len(parts) != 1:
            pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
            merges += [pair for pair in pairs if known.issuperset(pair)]
    return merges


def _scored(pieces: Sequence[Piece]) -> list[tuple[str, float]]:
    best = max((piece.score for piece in pieces if piece.type is PieceType.NORMAL), default=0.0)
    return [
        (p.text, len(p.text.encode()) * best - _USER_BONUS if p.type is PieceType.USER_DEFINED else p.score)
        for p in pieces
    ]


def _normaliser(rules: Normaliser) -> normalizers.Normalizer:
    try:
        steps: list[normalizers.Normalizer] = [normalizers.Precompiled(rules.charsmap)] if rules.charsmap else []
    except Exception as error:  # the Rust library raises nothing more precise
        raise UserError(f"the SentencePiece model's normalisation rules are damaged ({error})") from error
    if rules.remove_extra_spaces:
        # SentencePiece strips the end after it has escaped spaces, so that a mark that was typed goes too.
        behind = f"[ {SPACE}]+" if rules.escape_spaces else " +"
        steps += [normalizers.Replace(Regex(rf"\A +|{behind}\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    if rules.escape_spaces:
        steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps)


def _decoder(model: SentencePieceModel) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " ")]
    if model.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if model.normaliser.remove_extra_spaces:
        # Pieces of such a model begin with one space at most; the library takes it from each until a character came.
        steps.append(decoders.Strip(" ", 2**31 - 1, 0))
    elif model.normaliser.dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
