"""A base model -> an instructed one.

- `supervised`: `finetune(model, tokenizer, train, validation, folder, ...)`
- `demonstrations`: `Demonstration`, `read_demonstrations(path)`, `write_demonstrations`
- `docstrings`: `collect_demonstrations(documents)`: functions and the first sentence of their docstrings
"""
