"""llama2.c's model files, against that program's arithmetic written out here, both ways; broken files are named."""

import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.models.llama2c import read_llama2c, write_llama2c
from parlance.models.transformer import Transformer
from parlance.text.tokenizers.importing import import_tokenizer

Array = NDArray[np.float32]

WIDTH, MLP, LAYERS, HEADS, KV_HEADS, VOCAB, LENGTH = SIZES = (32, 40, 2, 4, 2, 50, 24)
HEAD = WIDTH // HEADS
SHAPES: dict[str, tuple[int, ...]] = {
    "embedding": (VOCAB, WIDTH),
    "attention_norm": (LAYERS, WIDTH),
    "wq": (LAYERS, HEADS * HEAD, WIDTH),
    "wk": (LAYERS, KV_HEADS * HEAD, WIDTH),
    "wv": (LAYERS, KV_HEADS * HEAD, WIDTH),
    "wo": (LAYERS, WIDTH, HEADS * HEAD),
    "ffn_norm": (LAYERS, WIDTH),
    "w1": (LAYERS, MLP, WIDTH),
    "w2": (LAYERS, WIDTH, MLP),
    "w3": (LAYERS, MLP, WIDTH),
    "norm": (WIDTH,),
    "angles": (2, LENGTH, HEAD // 2),
    "output": (VOCAB, WIDTH),
}
VERSION_1 = ("attention_norm", "ffn_norm", "norm", "embedding", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "output")


def random_tensors(tied: bool) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in SHAPES.items():
        spread, middle = (0.3, 1.0) if name.endswith("norm") else (1.5 * shape[-1] ** -0.5, 0.0)
        tensors[name] = rng.normal(middle, spread, shape).astype(np.float32)
    frequencies = 10_000.0 ** (-np.arange(0, HEAD, 2) / HEAD)
    angles = np.arange(LENGTH)[:, None] * frequencies
    tensors["angles"] = np.stack((np.cos(angles), np.sin(angles))).astype(np.float32)
    if tied:
        tensors["output"] = tensors["embedding"]
    return tensors


def file_bytes(tensors: dict[str, Array], version: int, tied: bool) -> bytes:
    if version == 0:
        header = struct.pack("<7i", *SIZES[:5], VOCAB if tied else -VOCAB, LENGTH)
        names = tuple(SHAPES)
    else:
        header = struct.pack("<Ii7iB", 0x616B3432, version, *SIZES, int(tied)).ljust(256, b"\0")
        names = VERSION_1
    return header + b"".join(tensors[name].tobytes() for name in names if not (tied and name == "output"))


def reference(tensors: dict[str, Array], tokens: list[int]) -> NDArray[np.float64]:
    """Logits (T, V) as the program computes them: token by token, neighbouring components turned together."""
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def normed(x: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        return weight * x / np.sqrt((x**2).mean() + 1e-5)

    def turned(x: NDArray[np.float64], position: int) -> NDArray[np.float64]:
        pairs = x.reshape(-1, HEAD // 2, 2)
        angle = position * 10_000.0 ** (-np.arange(0, HEAD, 2) / HEAD)
        complex_pairs = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)
        return np.stack((complex_pairs.real, complex_pairs.imag), axis=-1).reshape(-1, HEAD)

    keys: list[list[NDArray[np.float64]]] = [[] for _ in range(LAYERS)]
    values: list[list[NDArray[np.float64]]] = [[] for _ in range(LAYERS)]
    logits = []
    for position, token in enumerate(tokens):
        x = t["embedding"][token].copy()
        for layer in range(LAYERS):
            h = normed(x, t["attention_norm"][layer])
            queries = turned(t["wq"][layer] @ h, position)
            keys[layer].append(turned(t["wk"][layer] @ h, position))
            values[layer].append((t["wv"][layer] @ h).reshape(-1, HEAD))
            outputs = []
            for head in range(HEADS):
                group = head // (HEADS // KV_HEADS)
                scores = np.array([queries[head] @ key[group] for key in keys[layer]]) / np.sqrt(HEAD)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                outputs.append(sum(w * value[group] for w, value in zip(weights, values[layer], strict=True)))
            x += t["wo"][layer] @ np.concatenate(outputs)
            h = normed(x, t["ffn_norm"][layer])
            gate = t["w1"][layer] @ h
            x += t["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (t["w3"][layer] @ h))
        logits.append(t["output"] @ normed(x, t["norm"]))
    return np.stack(logits)


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a file of some version."""

    def make(version: int = 0, tied: bool = True) -> Path:
        path = tmp_path / f"model{version}{tied}.bin"
        path.write_bytes(file_bytes(random_tensors(tied), version, tied))
        return path

    return make


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1])
def test_a_file_gives_the_logits_of_its_program(file, version, tied):
    model = read_llama2c(file(version, tied))
    ids = torch.randint(0, VOCAB, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours = model.forward(ids)[0][0].double().numpy()
    np.testing.assert_allclose(ours, reference(random_tensors(tied), ids[0].tolist()), atol=1e-4)
    assert (model.lm_head is None) == tied
    assert model.context_length == LENGTH


@pytest.mark.parametrize("tied", [True, False])
def test_writing_what_was_read_gives_the_same_bits(file, tied, tmp_path):
    path = file(0, tied)
    model = read_llama2c(path)
    write_llama2c(tmp_path / "again.bin", model)
    before, after = path.read_bytes(), (tmp_path / "again.bin").read_bytes()
    begin = len(before) - 4 * (LENGTH * HEAD + (0 if tied else VOCAB * WIDTH))  # the tables: rounded by another library
    end = begin + 4 * LENGTH * HEAD
    assert (before[:begin], before[end:]) == (after[:begin], after[end:])
    np.testing.assert_allclose(
        np.frombuffer(after[begin:end], "<f4"), np.frombuffer(before[begin:end], "<f4"), atol=1e-6
    )
    again = read_llama2c(tmp_path / "again.bin")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name


def test_a_version_1_file_is_written_as_version_0(file, tmp_path):
    write_llama2c(tmp_path / "again.bin", read_llama2c(file(1)))
    one, other = read_llama2c(file(1)), read_llama2c(tmp_path / "again.bin")
    assert all(torch.equal(parameter, other.get_parameter(name)) for name, parameter in one.named_parameters())


def test_a_model_that_was_read_can_be_trained_and_the_file_stays(file):
    path = file()
    before = path.read_bytes()
    model = read_llama2c(path)
    model.forward(torch.tensor([[1, 2, 3]]))[0].sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= parameter.grad
    assert path.read_bytes() == before


# --- what is wrong ---------------------------------------------------------------------------------------------------


def changed(file: Callable[..., Path], change: Callable[[bytes], bytes], version: int = 0) -> Path:
    path = file(version)
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:0], "not a model of llama2"),
        (lambda data: data[:20], "20 bytes"),
        (lambda data: data[:-4], "is cut"),
        (lambda data: data + b"\0\0\0\0", "is too long"),
        (lambda data: struct.pack("<i", 33) + data[4:], "width 33"),
        (lambda data: struct.pack("<i", -32) + data[4:], "width -32"),
        (lambda data: data[:8] + struct.pack("<i", 0) + data[12:], "0 layers"),
        (lambda data: data[:8] + struct.pack("<i", 2_000_000_000) + data[12:], "2000000000 layers"),
        (lambda data: data[:20] + struct.pack("<i", -(2**31)) + data[24:], "2147483648 tokens"),
        (lambda data: struct.pack("<i", 2**30) + data[4:12] + struct.pack("<2i", 1, 1) + data[20:], "width 1073741824"),
        (lambda data: data[:28] + struct.pack("<f", float("nan")) + data[32:], "tok_embeddings"),
        (lambda data: data[:1000] + struct.pack("<f", float("inf")) + data[1004:], "not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_file_is_refused_with_the_reason(file, change, reason):
    with pytest.raises(UserError, match=reason) as problem:
        read_llama2c(changed(file, change))
    assert "\n" not in str(problem.value)


def test_versions_that_are_not_read_are_named(file):
    for version, reason in ((2, "8-bit weights"), (7, "version 7")):
        path = changed(file, lambda data, v=version: data[:4] + struct.pack("<i", v) + data[8:], version=1)  # type: ignore[misc]
        with pytest.raises(UserError, match=reason):
            read_llama2c(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.bin"):
        read_llama2c(tmp_path / "nowhere.bin")


@pytest.mark.parametrize(
    "part",
    [
        {"qk_norm": True},
        {"norm_epsilon": 1e-6},
        {"rope_theta": 5e5},
        {"sliding_window": 8},
        {"attention_bias": True},
        {"activation": "gelu"},
        {"head_width": 8},
    ],
    ids=str,
)
def test_what_such_a_file_cannot_say_is_named(tiny_transformer, part, tmp_path):
    fitting = {"qk_norm": False, "norm_epsilon": 1e-5}
    write_llama2c(tmp_path / "fits.bin", tiny_transformer(**fitting))
    with pytest.raises(UserError, match=next(iter(part))):
        write_llama2c(tmp_path / "model.bin", tiny_transformer(**fitting | part))
    assert not (tmp_path / "model.bin").exists()


def test_a_written_model_is_the_same(tiny_transformer, tmp_path):
    model: Transformer = tiny_transformer(qk_norm=False, norm_epsilon=1e-5, heads=2, kv_heads=1)
    write_llama2c(tmp_path / "model.bin", model)
    again = read_llama2c(tmp_path / "model.bin")
    assert again.config.canonical() == model.config.canonical()
    assert all(torch.equal(parameter, again.get_parameter(name)) for name, parameter in model.named_parameters())


# --- its tokenizer ---------------------------------------------------------------------------------------------------


class Merger:
    """llama2.c's encoding: characters, or their bytes, then the pair with the best score until none is a token."""

    def __init__(self, path: Path) -> None:
        data, place = path.read_bytes(), 4
        self.scores: list[float] = []
        self.ids: dict[bytes, int] = {}
        while place < len(data):
            score, length = struct.unpack_from("<fi", data, place)
            self.ids.setdefault(data[place + 8 : place + 8 + length], len(self.scores))
            self.scores.append(score)
            place += 8 + length
        self.pieces = {token: piece for piece, token in self.ids.items()}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for character in " " + text if text else "":
            piece = character.encode()
            ids += [self.ids[piece]] if piece in self.ids else [byte + 3 for byte in piece]
        while True:
            best: tuple[float, int, int] | None = None
            for place, (left, right) in enumerate(pairwise(ids)):
                joined = self.ids.get(self.pieces[left] + self.pieces[right])
                if joined is not None and (best is None or self.scores[joined] > best[0]):
                    best = self.scores[joined], place, joined
            if best is None:
                return ids
            ids[best[1] : best[1] + 2] = [best[2]]


@pytest.mark.data
def test_its_tokenizer_encodes_as_it_does(data_folder):
    path = data_folder / "stories260K" / "tok512.bin"
    tokenizer, merger = import_tokenizer(path), Merger(path)
    page = (data_folder / "stories260K" / "stories260K.md").read_text()
    for line in page.splitlines():
        assert tokenizer.encode(line) == merger.encode(line), line

    @settings(max_examples=300, deadline=None)
    @given(st.text(st.sampled_from("  aehinorstdlOLy.,'\"!\n\té日"), max_size=40))
    def same(text: str) -> None:
        assert tokenizer.encode(text) == merger.encode(text)

    same()
