"""Families of published checkpoints, read and written through one Transformer.

- `family`: what a family is: two translations of `config.json` and one table of tensors
- `llama`: LLaMA 1-3 (Alpaca, Vicuna, GPT4All), Mistral, Qwen2, Qwen3
- `mixtral`: Mixtral, Qwen3-MoE
- `falcon`, `bloom`, `mpt`
- `gpt2` (Cerebras-GPT too), `opt`, `neox` (Pythia), `gptj`
- `bert`, `t5`: encoders, and encoder-decoders
- `own`: what no published family can say
"""

from parlance.models.families import bert, bloom, falcon, gpt2, gptj, llama, mixtral, mpt, neox, opt, own, t5
from parlance.models.families.family import Family

FAMILIES: tuple[Family, ...] = (
    llama.QWEN3,
    llama.LLAMA,
    llama.MISTRAL,
    llama.QWEN2,
    mixtral.MIXTRAL,
    mixtral.QWEN3_MOE,
    gpt2.GPT2,
    opt.OPT,
    neox.NEOX,
    gptj.GPTJ,
    falcon.FALCON,
    bloom.BLOOM,
    mpt.MPT,
    bert.BERT,
    t5.T5,
    own.TRANSFORMER,
    own.RECURRENT,
    own.CONVOLUTIONAL,
    own.FEEDFORWARD,
    own.ENCODER_DECODER,
    own.RECURRENT_ATTENTION,
)
"""In the order in which they are tried for a model that several could express."""
