"""A model -> tokens.

- `model`: `load(path)`, `Model` with `generate`, `chat`, `score`, `embed`, `best_of`, `beam_search`
- `generation`: `draws(model, prompt, SamplingConfig(), stop)`, `stream`, `generate_batch`; `reading`: `Reader`
- `sampling`: `SamplingConfig`, `sample`, `filtered_logits`; `sampler`: `Sampler`, the draws of one text
- `constraints`: `json_schema`, `regular_expression`, `choice`; `text_stream`: `TextStream`, stop strings
- `speculative`: `PromptLookup`, `NGramDrafter`, `ModelDrafter`; `beam`: `beam_search`
- `engine`: `open_engine(model)`, `Engine`; `requests`: `Request`, `Stream`; `backends`, `kernels`: what computes
- `quantisation`: `quantise(...)`, models of whole numbers
- `scoring`: `document_log_probs`
"""
