"""A model -> tokens.

- `model`: `load(path)`, `Model` with `generate`, `chat`, `score`
- `generation`: `stream(model, prompt, SamplingConfig(), stop)`, `generate_batch`
- `sampling`: `SamplingConfig`, `sample`, `filtered_logits`; `scoring`: `document_log_probs`
"""
