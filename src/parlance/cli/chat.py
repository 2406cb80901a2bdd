"""`parlance chat`: talk to a model."""

import sys

from parlance.cli import options


def chat(
    model: options.ModelFolder,
    max_tokens: options.MaxTokens = 128,
    temperature: options.Temperature = 0.7,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    overflow: options.Overflow = "error",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> None:
    """Talk to a model. End a message with an empty line; Ctrl-C stops an answer; /quit leaves.

    Where standard input is no terminal, all of it is one message, and one answer is printed.

    Example: parlance chat runs/demo

    Example: parlance chat runs/demo < function.py
    """
    from parlance.cli import inputs
    from parlance.cli.conversation import Conversation, converse
    from parlance.cli.output import stream, tell_ending, tell_unknown
    from parlance.inference.model import load

    inputs.torch_device(device)
    sampling = inputs.sampling_of(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, overflow=overflow, seed=seed
    )
    conversation = Conversation(load(model, device, precision), sampling)
    if sys.stdin.isatty():
        converse(conversation)
    else:
        stream(conversation.answer(inputs.standard_input()))
        if conversation.last is not None:
            tell_unknown(conversation.last.unknown, "message")
            tell_ending(conversation.last)
