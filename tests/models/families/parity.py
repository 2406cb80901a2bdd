"""What every family of checkpoints must do, checked against `transformers` on small random models.

    check_family(transformers.GPT2Config(n_embd=32, ...), tmp_path)

`check_family` runs all checks; each is a function of its own for families that need some of them differently.
No weight is left at zero or one, so that no part of a model is hidden.
"""

import inspect
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import transformers

from parlance.core.errors import UserError
from parlance.models.building import build
from parlance.models.checkpoints import (
    checkpoint_tensors,
    checkpoint_values,
    family_for,
    load_model,
    read_config,
    save_model,
    write_checkpoint,
)
from parlance.models.families import FAMILIES
from parlance.models.families.family import ConfigReader, Entry
from parlance.models.neural import NeuralLanguageModel
from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import padding_layout

TOLERANCE = 1e-4
"""Largest difference of two logits in fp32."""
END, PAD = 3, 5
"""Token ids that exports name."""


def check_family(
    peer_config: Any,
    tmp_path: Path,
    *,
    lengths: Sequence[int] = (1, 7, 33),
    cached: bool = True,
    padded: bool = True,
    kind: Any = transformers.AutoModelForCausalLM,
    strict: bool = True,
    attention: str = "eager",
) -> Transformer:
    """Run every check on a random model of `peer_config`; the opened model.

    `lengths`: those at which logits are compared, the longest for padding and the cache too. `cached`, `padded`:
    whether those checks run. `strict`: whether a tensor of the file that is missing, mis-shaped or unknown must be
    refused (the slow part: once a family is enough). `attention`: the peer's implementation.
    """
    peer = random_peer(peer_config, kind, attention=attention)
    folder = tmp_path / "peer"
    peer.save_pretrained(folder)
    ours = opened(folder)
    assert ours.parameter_count() == sum(parameter.numel() for parameter in peer.parameters())
    check_logits(ours, peer, lengths)
    if padded:
        check_padding(ours, peer, max(lengths))
    if cached:
        check_cache(ours, peer, max(lengths))
    check_bfloat16(ours)
    check_export(ours, peer, tmp_path / "exported", kind, max(lengths), attention)
    check_shards(ours, peer, tmp_path / "shards")
    check_without_prefix(ours, folder, tmp_path / "short")
    check_without_head(ours, peer, tmp_path / "headless")
    check_unknown_field(folder, tmp_path / "field")
    if strict:
        check_tensors_of_the_file(folder, tmp_path / "tensors")
    return ours


# --- models and tokens -----------------------------------------------------------------------------------------------


def random_peer(
    peer_config: Any, kind: Any = transformers.AutoModelForCausalLM, seed: int = 0, attention: str = "eager"
) -> Any:
    """A model of `transformers` in fp32 with every parameter random: norms around 1, biases around 0."""
    peer = kind.from_config(peer_config, attn_implementation=attention, dtype=torch.float32).eval()
    randomise(peer, seed)
    return peer


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Draw every parameter; shared ones once."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.3, generator=generator)
            else:
                parameter.normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5, generator=generator)


def opened(folder: Path) -> Transformer:
    """The Transformer of a checkpoint folder, as Parlance opens it."""
    model = load_model(folder)
    assert isinstance(model, Transformer)
    return model


def tokens(vocab_size: int, length: int, rows: int = 2, seed: int = 0) -> Tensor:
    """(rows, length) random ids."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(0, vocab_size, (rows, length), generator=generator)


def peer_logits(peer: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits (B, T, V) of a model of `transformers`; `mask` (B, T) bool says what is a token, the rest is padding."""
    more: dict[str, Tensor] = {}
    if mask is not None:
        more["attention_mask"] = mask.long()
        if "position_ids" in inspect.signature(peer.forward).parameters:
            more["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        out: Tensor = peer(input_ids=ids, **more).logits
    return out.float()


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Equal shapes, numbers, and no difference above the tolerance. Logits that all agree by being 0 do not count."""
    assert ours.shape == theirs.shape
    assert theirs.isfinite().all()
    assert theirs.std() > 0.05
    assert float((ours.detach() - theirs).abs().max()) <= TOLERANCE


# --- checks ----------------------------------------------------------------------------------------------------------


def check_logits(ours: NeuralLanguageModel, peer: Any, lengths: Sequence[int]) -> None:
    """The same logits at several lengths, with and without a state."""
    for length in lengths:
        ids = tokens(ours.vocab_size, length)
        with torch.inference_mode():
            theirs = peer_logits(peer, ids)
            assert_close(ours.forward(ids)[0], theirs)
            assert_close(ours.logits(ours.hidden(ids)), theirs)


def padding_mask(length: int) -> Tensor:
    """(4, T) bool: no padding, on the left, on the right, on both sides."""
    few, many = max(1, length // 6), max(1, length // 3)
    mask = torch.ones(4, length, dtype=torch.bool)
    mask[1, :many] = False
    mask[2, length - few :] = False
    mask[3, :few] = False
    mask[3, length - many :] = False
    return mask


def check_padding(ours: Transformer, peer: Any, length: int) -> None:
    """Rows padded on the left, the right and both sides: the same logits at every real token."""
    mask = padding_mask(length)
    ids = tokens(ours.vocab_size, length, rows=len(mask))
    theirs = peer_logits(peer, ids, mask)
    with torch.inference_mode():
        logits = ours.logits(ours.hidden(ids, layout=padding_layout(mask)))
        assert logits.isfinite().all()
        assert_close(logits[mask], theirs[mask])
        # On the right no layout is needed: what follows a token never reaches it.
        assert_close(ours.logits(ours.hidden(ids))[2][mask[2]], theirs[2][mask[2]])
        # And both agree with the row alone, which the peer need not be asked for.
        for row in range(1, len(mask)):
            assert_close(ours.logits(ours.hidden(ids[row : row + 1, mask[row]]))[0], theirs[row][mask[row]])


def check_cache(ours: NeuralLanguageModel, peer: Any, length: int) -> None:
    """Token by token and in pieces, from a state too small for it all: the logits of the peer's one pass."""
    ids = tokens(ours.vocab_size, length)
    theirs = peer_logits(peer, ids)
    uneven = [1, *[size for size in (length // 2, 1) if size], length]
    for sizes in ([1] * length, uneven):
        state, logits = ours.new_state(len(ids), 2), []
        for piece in ids.split([*_cut(sizes, length)], dim=1):
            with torch.inference_mode():
                out, state = ours.forward(piece, state)
            logits.append(out)
        assert_close(torch.cat(logits, dim=1), theirs)


def _cut(sizes: Sequence[int], total: int) -> list[int]:
    """`sizes` until they sum to `total`, the last one shortened."""
    out: list[int] = []
    for size in sizes:
        size = min(size, total - sum(out))
        if size:
            out.append(size)
    return out


def check_bfloat16(ours: Transformer) -> None:
    """In bfloat16 the logits are near those in fp32, with and without a state and padding, and gradients are fp32."""
    ids, mask = tokens(ours.vocab_size, 12, rows=4), padding_mask(12)
    layout = padding_layout(mask)
    with torch.no_grad():
        exact = ours.logits(ours.hidden(ids))
        exact_padded = ours.logits(ours.hidden(ids, layout=layout))[mask]
    ours.compute_dtype = torch.bfloat16
    try:
        logits = ours.logits(ours.hidden(ids))
        assert logits.dtype == torch.bfloat16
        state, pieces = ours.new_state(len(ids), 12), []
        with torch.no_grad():
            padded = ours.logits(ours.hidden(ids, layout=layout))[mask]
            for piece in ids.split([5, 1, 6], dim=1):
                out, state = ours.forward(piece, state)
                pieces.append(out)
        for one, other in ((logits, exact), (torch.cat(pieces, dim=1), exact), (padded, exact_padded)):
            assert float((one.detach() - other).abs().mean()) <= 0.05 * float(other.std())
        logits.float().square().mean().backward()
        for name, parameter in ours.named_parameters():
            # What has no part in the logits (the bias of the keys, by symmetry, has a gradient of 0) may have none.
            if parameter.grad is not None:
                assert parameter.grad.dtype == parameter.dtype == torch.float32, name
                assert parameter.grad.isfinite().all(), name
        assert ours.embed_tokens.weight.grad is not None
    finally:
        ours.compute_dtype = torch.float32
        ours.zero_grad(set_to_none=True)


def check_export(
    ours: NeuralLanguageModel,
    peer: Any,
    folder: Path,
    kind: Any = transformers.AutoModelForCausalLM,
    length: int = 33,
    attention: str = "eager",
) -> None:
    """`transformers` opens what we write, knows every tensor of it, and gives the same logits; so do we, bit for bit.

    Once as `save_model` chooses the family, and once as the peer's where that is another.
    """
    names = {family_for(ours.config).name, peer.config.model_type}
    ids = tokens(ours.vocab_size, length)
    theirs = peer_logits(peer, ids)
    for name in sorted(names):
        if name == family_for(ours.config).name:
            save_model(folder / name, ours, end_of_text=END, pad=PAD)
        else:
            save_as(folder / name, ours, name)
        again, information = kind.from_pretrained(
            folder / name, output_loading_info=True, attn_implementation=attention
        )
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            assert not information[problem], (name, problem, information[problem])
        assert again.config.model_type == name
        assert_close(peer_logits(again.eval(), ids), theirs)
        assert sum(p.numel() for p in again.parameters()) == ours.parameter_count()
        returned = load_model(folder / name)
        assert returned.config.canonical() == ours.config.canonical()
        assert_same_bits(returned, ours)


def save_as(folder: Path, model: NeuralLanguageModel, name: str) -> None:
    """Write a model as family `name`."""
    family = family_for(model.config, name)
    values = checkpoint_values(model.config, end_of_text=END, pad=PAD, family=family)
    write_checkpoint(folder, values, checkpoint_tensors(family.table(model.config), dict(model.named_parameters())))


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    """Equal parameters, by name."""
    first, second = dict(one.named_parameters()), dict(other.named_parameters())
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def check_shards(ours: NeuralLanguageModel, peer: Any, folder: Path) -> None:
    """A checkpoint in several files opens as the one in one file does."""
    size = max(tensor.nbytes for tensor in peer.state_dict().values())
    peer.save_pretrained(folder, max_shard_size=size)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    assert_same_bits(load_model(folder), ours)


def check_without_prefix(ours: NeuralLanguageModel, folder: Path, short: Path) -> None:
    """A file whose names lack the prefix of the model with its head opens too."""
    family, _ = read_config(folder)
    assert family.prefix
    tensors = load_file(folder / "model.safetensors")
    assert any(name.startswith(family.prefix) for name in tensors)
    copy_with(folder, short, tensors={name.removeprefix(family.prefix): value for name, value in tensors.items()})
    assert_same_bits(load_model(short), ours)


def check_without_head(ours: NeuralLanguageModel, peer: Any, folder: Path) -> None:
    """A dump of the model without its head opens where the head is the embedding; else what is missing is named."""
    peer.base_model.save_pretrained(folder)
    family, config = read_config(folder)
    stored = {name.removeprefix(family.prefix) for name in load_file(folder / "model.safetensors")}
    named = [entry.theirs for entry in family.table(config) if isinstance(entry, Entry) and not entry.optional]
    missing = sorted(name for name in named if name.removeprefix(family.prefix) not in stored)
    if missing:
        assert f"no tensor {missing[0]}" in refusal(folder)
    else:
        assert_same_bits(load_model(folder), ours)


def check_unknown_field(folder: Path, copy: Path) -> None:
    """A field of the configuration that nobody knows is named."""
    copy_with(folder, copy, config={"surprise": 3})
    with pytest.raises(UserError, match="surprise"):
        load_model(copy)


def check_tensors_of_the_file(folder: Path, copy: Path) -> None:
    """Each tensor of the file is named when it is missing or has another shape, and one too many is named.

    Of tensors that differ by the number of their block (or expert) alone, the last.
    """
    tensors = load_file(folder / "model.safetensors")
    copy_with(folder, copy, tensors=tensors | {"surprise.weight": torch.ones(2)})
    with pytest.raises(UserError, match=r"surprise\.weight"):
        load_model(copy)
    for name in {re.sub(r"\.\d+\.", ".N.", name): name for name in sorted(tensors)}.values():
        tensor = tensors[name]
        copy_with(folder, copy, tensors={other: tensors[other] for other in tensors if other != name})
        assert name in refusal(copy)
        for grown in (torch.cat((tensor, tensor[:1])), tensor.unsqueeze(-1)):
            copy_with(folder, copy, tensors=tensors | {name: grown.contiguous()})
            message = refusal(copy)
            assert name in message
            assert str(tuple(grown.shape)) in message


def refusal(folder: Path) -> str:
    """The sentence with which a folder is refused."""
    with pytest.raises(UserError) as problem:
        load_model(folder)
    return str(problem.value)


def copy_with(
    source: Path, target: Path, *, config: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None
) -> None:
    """A copy of a checkpoint folder with fields changed (None removes one) or other tensors."""
    target.mkdir(parents=True, exist_ok=True)
    values = json.loads((source / "config.json").read_text()) | (config or {})
    values = {name: value for name, value in values.items() if value is not None}
    (target / "config.json").write_text(json.dumps(values))
    if tensors is None:
        tensors = load_file(source / "model.safetensors")
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, target / "model.safetensors")


# --- published sizes -------------------------------------------------------------------------------------------------


def read_values(values: dict[str, Any]) -> Any:
    """Our configuration for a `config.json`."""
    family = next(family for family in FAMILIES if family.name == values["model_type"])
    return family.read(ConfigReader(values, Path("config.json")))


def parameter_count(values: dict[str, Any]) -> int:
    """Number of weights of the model that a `config.json` describes; nothing is allocated."""
    with torch.device("meta"):
        return build(read_values(values)).parameter_count()
