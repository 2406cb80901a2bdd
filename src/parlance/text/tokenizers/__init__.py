"""Text <-> token ids: byte-level BPE, plain bytes, characters and words, trained here or imported from elsewhere.

- `training`: `train_tokenizer(texts, kind, vocab_size, pattern)`
- `tokenizer`: `Tokenizer`: `encode`, `decode`, `save`, `load`
- `importing`: `import_tokenizer(path)`: Hugging Face, tiktoken, SentencePiece, GPT-1 and GPT-2, llama2.c
- `compression`: `compare_compression(tokenizers, texts)`: bytes per token, tokens per word, dead tokens
- `display`: `tokens_html(tokens)`, `tokens_page(tokens, title)`, `visible(data)`
- `patterns`: `PATTERNS`, where BPE never joins across; `PATTERN`, our own
"""

from parlance.text.tokenizers.importing import import_tokenizer
from parlance.text.tokenizers.merges import merges_of_ranks
from parlance.text.tokenizers.patterns import PATTERN, PATTERNS, PatternName
from parlance.text.tokenizers.special_tokens import END_OF_TEXT, PAD, SPECIAL_TOKENS, UNKNOWN
from parlance.text.tokenizers.tokenizer import Tokenizer
from parlance.text.tokenizers.training import Kind, train_tokenizer

__all__ = [
    "END_OF_TEXT",
    "PAD",
    "PATTERN",
    "PATTERNS",
    "SPECIAL_TOKENS",
    "UNKNOWN",
    "Kind",
    "PatternName",
    "Tokenizer",
    "import_tokenizer",
    "merges_of_ranks",
    "train_tokenizer",
]
