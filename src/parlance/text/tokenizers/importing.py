"""Tokenizers of other projects, as a `Tokenizer` with the ids they have there.

| source | files |
|---|---|
| Hugging Face | a folder with `tokenizer.json` (and `tokenizer_config.json`), or such a file |
| tiktoken | `*.tiktoken`; OpenAI's are known by their size, for others the pattern must be named |
| SentencePiece | `*.model`: LLaMA's BPE, T5's Unigram |
| GPT-2 | a folder with `encoder.json` and `vocab.bpe`, or `vocab.json` and `merges.txt` |
| GPT-1 | a folder with `encoder_bpe_40000.json` and `vocab_40000.bpe` |
| llama2.c | `*.bin` |

Special tokens keep their ids. A vocabulary without any token for the end of a text gets `<|endoftext|>` behind its last
id, because every document needs one. No chat template is invented: `chat_template="chatml"` adds ours with its two turn
tokens. Files are only read; code that a configuration names is left out.

    import_tokenizer(Path("cl100k_base.tiktoken")).save(Path("cl100k"))
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer as Backend

from parlance.core.errors import UserError
from parlance.text.chat_template import CHAT_TEMPLATE, END_OF_TURN, START_OF_TURN
from parlance.text.tokenizers.assembly import add_special
from parlance.text.tokenizers.gpt_files import gpt_backend
from parlance.text.tokenizers.llama2c_file import read_llama2c
from parlance.text.tokenizers.patterns import PATTERNS, PatternName
from parlance.text.tokenizers.ranks_file import Encoding, known_encoding, ranks_backend, read_ranks
from parlance.text.tokenizers.sentencepiece_model import read_sentencepiece
from parlance.text.tokenizers.sentencepiece_vocabulary import sentencepiece_backend
from parlance.text.tokenizers.special_tokens import END_OF_TEXT, WELL_KNOWN
from parlance.text.tokenizers.tokenizer import FORMAT, Tokenizer, read_backend, read_config

_PAIRS = (
    ("encoder.json", "vocab.bpe"),
    ("vocab.json", "merges.txt"),
    ("encoder_bpe_40000.json", "vocab_40000.bpe"),
)
"""Vocabulary and merges of the GPT family."""

_KEPT = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens", "chat_template")
"""What is taken over from a configuration; what else it says concerns other programs."""

ImportedChatTemplate = Literal["chatml"]


def import_tokenizer(
    path: Path, pattern: PatternName | None = None, chat_template: ImportedChatTemplate | None = None
) -> Tokenizer:
    """Read a tokenizer of another project, a file or a folder; see the table above.

    `pattern`: where tiktoken's and GPT-2's vocabularies cut; None: as OpenAI's of that size, GPT-2's. Raises UserError
    for what is missing, damaged or of no kind that is read here.
    """
    source, backend, config = _read(path, pattern)
    for role, name in _roles(backend).items():
        config.setdefault(role, name)
    if config.get("eos_token") is None:
        backend = _with_tokens(backend, [END_OF_TEXT])
        config["eos_token"] = END_OF_TEXT
    if chat_template is not None:
        backend = _with_tokens(backend, [START_OF_TURN, END_OF_TURN])
        config["chat_template"] = CHAT_TEMPLATE
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "parlance": {"format": FORMAT, **_kind(config, backend), "source": source},
    }
    return Tokenizer(backend, config)


def _read(path: Path, pattern: PatternName | None) -> tuple[str, Backend, dict[str, Any]]:
    """(kind of source, tokenizer, configuration as far as it is known) of a file or folder."""
    file = _file(path)
    if isinstance(file, tuple):
        return "gpt", gpt_backend(*file, PATTERNS[pattern or "gpt2"]), {}
    if file.suffix == ".json":
        config = file.with_name("tokenizer_config.json")
        found = read_config(config) if config.exists() else {}
        kept = {name: found[name] for name in (*_KEPT, "parlance") if found.get(name) is not None}
        return "huggingface", read_backend(file), kept
    if file.suffix == ".tiktoken":
        ranks = read_ranks(file)
        encoding = known_encoding(len(ranks))
        if pattern is not None:
            encoding = Encoding(pattern, encoding.special if encoding else {})
        if encoding is None:
            raise UserError(
                f"{file} has {len(ranks)} ranks, as none of OpenAI's encodings; say with --pattern where it cuts: "
                f"{', '.join(PATTERNS)}"
            )
        return "tiktoken", ranks_backend(ranks, encoding), {}
    flat = file.suffix == ".bin"
    model = read_llama2c(file) if flat else read_sentencepiece(file)
    roles = {role: model.pieces[index].text for role, index in model.roles.items()}
    return "llama2.c" if flat else "sentencepiece", sentencepiece_backend(model), roles


def _file(path: Path) -> Path | tuple[Path, Path]:
    """The file, or the two files, to read. Raises UserError."""
    if path.is_file():
        for names in _PAIRS:
            if path.name in names:
                return path.with_name(names[0]), path.with_name(names[1])
        if path.suffix in (".json", ".tiktoken", ".model", ".bin"):
            return path
    elif path.is_dir():
        if (path / "tokenizer.json").is_file():
            return path / "tokenizer.json"
        for names in _PAIRS:
            if all((path / name).is_file() for name in names):
                return path / names[0], path / names[1]
        found = sorted(file for file in path.iterdir() if file.suffix in (".tiktoken", ".model"))
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{path} holds {len(found)} vocabularies ({', '.join(f.name for f in found)}); name one")
    else:
        raise UserError(f"there is no {path}; name a file or folder with a tokenizer")
    raise UserError(
        f"{path} is no tokenizer that can be imported; there must be a tokenizer.json, a .tiktoken or .model file, "
        "encoder.json with vocab.bpe, vocab.json with merges.txt, or a .bin file of llama2.c"
    )


def _kind(config: Mapping[str, Any], backend: Backend) -> dict[str, str]:
    """What Parlance noted itself, else the class of the model."""
    ours = config.get("parlance")
    kind = ours.get("kind") if isinstance(ours, dict) else None
    return {"kind": type(backend.model).__name__.lower() if kind is None else str(kind)}


def _roles(backend: Backend) -> dict[str, str]:
    """The special tokens that bear a well-known name, by role; entries of a vocabulary become special tokens by it."""
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    vocab = backend.get_vocab(with_added_tokens=True)
    roles = {}
    for role, names in WELL_KNOWN.items():
        known = [name for name in names if name in special] or [name for name in names if name in vocab]
        if known:
            roles[role] = known[0]
    add_special(backend, [name for name in roles.values() if name not in special])
    return roles


def _with_tokens(backend: Backend, names: list[str]) -> Backend:
    """`backend` with special tokens of these names; new ones get the ids behind the last one."""
    present = backend.get_vocab(with_added_tokens=True)
    following = max(present.values()) + 1
    if following > len(present):
        # Some ids have no token, and the library would give them away: say which id each new token has.
        content = json.loads(backend.to_str())
        new = [name for name in names if name not in present]
        content["model"]["vocab"] |= {name: following + place for place, name in enumerate(new)}
        backend = Backend.from_str(json.dumps(content))
    add_special(backend, names)
    return backend
