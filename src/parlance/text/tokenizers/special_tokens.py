"""The special tokens of the tokenizers that are trained here, and the names that others give theirs."""

from parlance.text.chat_template import END_OF_TURN, START_OF_TURN

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
UNKNOWN = "<unk>"
"""Stands for what a char or word vocabulary lacks."""

SPECIAL_TOKENS = (END_OF_TEXT, PAD, START_OF_TURN, END_OF_TURN)
"""Appended, in this order, behind the ordinary vocabulary."""

WELL_KNOWN = {
    "bos_token": ("<s>", "<|begin_of_text|>", "<|startoftext|>", "<bos>", "[CLS]"),
    "eos_token": (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "[EOS]", "[SEP]"),
    "unk_token": (UNKNOWN, "[UNK]"),
    "pad_token": (PAD, "<pad>", "[PAD]"),
}
"""By role, the names under which tokenizers without a configuration hide their special tokens; the first found counts.
"""


def name_of(token: object) -> str:
    """Configurations write a special token as its name, or as an object with the name in `content`."""
    return str(token.get("content")) if isinstance(token, dict) else str(token)


SPACE = "\u2581"
"""How SentencePiece spells a space."""
