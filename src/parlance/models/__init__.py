"""Every language model, behind one contract.

- `contract`: `LanguageModel`, what sampling, scoring and evaluation are written against
- `ngram`: `NGramModel.train(documents, vocab_size, order)`, modified Kneser-Ney (`ngram_counts`, `ngram_arpa`)
- `transformer`: `Transformer(TransformerConfig(...))`, decoder-only, Qwen3- or LLaMA-like
- `checkpoints`: `save_model`, `load_model`, `load_language_model`: Hugging Face folders
- `padding`: `pad_right(rows, value)`
"""
