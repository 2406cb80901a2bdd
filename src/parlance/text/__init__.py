"""Raw text -> clean documents -> tokens.

- `documents`: `Document`, `Corpus`
- `readers`: `FileCorpus(paths)`, text, Markdown, Python, JSONL and Parquet files
- `standard_library`: `StandardLibraryCorpus()`, the running Python's own source code
- `deduplication`: `NearDuplicates`, `content_hash`, `best_of_clusters`
- `splits`: `assign_groups`, `cut_by_position`, `SPLITS`
- `preparation`: `prepare_corpus(corpus, out, PreparationConfig())`, `read_split(folder, split)`
- `tokenizers`: `train_tokenizer(texts, kind, vocab_size)`, `Tokenizer`
- `chat_template`: `encode_chat(tokenizer, messages)`, `render_chat(messages)`, `CHAT_TEMPLATE`
- `token_dataset`: `tokenize_corpus(corpus, tokenizer, out)`, `write_token_dataset`, `TokenDataset`
"""
