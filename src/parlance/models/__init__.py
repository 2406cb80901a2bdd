"""Every language model, behind one contract.

- `contract`: `LanguageModel`, what sampling, scoring and evaluation are written against
- `exact`: `ConditionalFrequencies.from_text(text)`, relative frequencies after a context of any length
- `ngram`: `NGramModel.train(documents, vocab_size, order)`, Kneser-Ney and others (`ngram_*`: its parts)
- `neural`: `NeuralLanguageModel`, what all networks have in common; `conditional` of encoder-decoders
- `feedforward`, `convolutional`, `recurrent`, `recurrent_attention`: networks that a `Config` of theirs describes
- `transformer`: `Transformer(TransformerConfig(...))`, one for every family; `encoder_decoder`, `masked` (an encoder
  as a language model), `mixture_of_experts`, `attention`, `dilated_attention`, `positions`
- `memory`: how many bytes a network takes, before it runs
- `checkpoints`: `save_model`, `load_model`, `load_language_model`; `families`: what published checkpoints are made of;
  `conversion`: `convert(source, out)`, `llama2c` and `character_rnn` files
- `building`: `build(config)`; `padding`: `pad_right(rows, value)`
"""
