"""Raw text -> clean documents -> tokens.

- `documents`: `Document`, `Corpus`, `ShardedCorpus`
- `readers`: `FileCorpus(paths)`: text, source code, JSON lines, CSV, Parquet, HTML, WARC, PDF; `shards`: `open_shard`
- `standard_library`: `StandardLibraryCorpus()`, the running Python's own source code
- `normalisation`: `normalise(text)`; `languages`: `LanguageIdentifier().identify(text)`
- `filters`: `judge(text, names, config)`, and `gopher_quality`, `gopher_repetition`, `c4`, `fineweb`
- `pii`: `find_pii(text, config)`, `Redactor(config).redact(text)`
- `decontamination`: `OverlapIndex(sets).find(text)`, `load_evaluation_set(name, path)`
- `shingling`, `minhash`: word n-grams and `MinHasher().bands_of_texts(texts)`, for near duplicates
- `suffix_array`, `repeated_spans`: `suffix_array(tokens)`, `repeated_spans_of_texts(read)`
- `preparation`: `prepare_corpus(corpus, out, PreparationConfig())`, `read_split(folder, split)`, `Engine`
- `splits`: `assign_groups`, `cut_by_position`, `SPLITS`
- `tokenizers`: `train_tokenizer(texts, kind, vocab_size)`, `import_tokenizer(path)`, `Tokenizer`; `bpe`: its core
- `chat_template`: `encode_chat(tokenizer, messages)`, `render_chat(messages)`, `CHAT_TEMPLATE`
- `token_dataset`: `tokenize_corpus(corpus, tokenizer, out)`, `TokenDataset`; `token_shards`, `packing`: its parts
"""
