"""The llama.cpp side of `decode.py`: answers one measurement a line on standard input, with JSON on standard output.

    python decode_llama.py FOLDER       # of weights as .npy files and shape.json; GGUF files are written there

Runs in an environment of its own with llama-cpp-python and gguf. llama.cpp is called through its C interface, so that
what is measured is its own work: `llama_decode` of one batch a step, and reading a logit.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

TYPES = {
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}


def write(folder: Path, name: str, shape: dict[str, Any]) -> Path:
    """The model as a GGUF file of one type; as llama.cpp's own Q4_0, the embedding and the head have 8 bits."""
    path = folder / f"{name}.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(shape["context_length"])
    writer.add_embedding_length(shape["width"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["mlp_width"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(shape["width"] // shape["heads"])
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for file in sorted(folder.glob("*.npy")):
        data = np.load(file)
        kind = TYPES[name]
        if data.ndim == 1:
            kind = gguf.GGMLQuantizationType.F32
        elif name == "q4_0" and ("output.weight" in file.stem or "token_embd" in file.stem):
            kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(file.stem, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Session:
    """One model in llama.cpp."""

    def __init__(self, path: Path, threads: int, streams: int) -> None:
        parameters = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = 512 * streams if streams > 1 else 1024, 512, 512
        settings.n_seq_max = streams
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def step(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Read (token, position, stream, whether logits are wanted)."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for index, (token, position, stream, wanted) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, stream
            batch.logits[index] = wanted
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")

    def logits(self, index: int, count: int) -> list[float]:
        """The logits of the row at `index` of the last step."""
        pointer = llama_cpp.llama_get_logits_ith(self.context, index)
        return list(np.ctypeslib.as_array(pointer, shape=(count,)).astype(float))

    def clear(self) -> None:
        """Forget all texts."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)


def measure(session: Session, request: dict[str, Any], ids: list[int]) -> float:
    """Seconds of one unit of work, as `decode.py` defines them."""
    session.clear()
    streams, begin, end = request["streams"], request["begin"], request["end"]
    if request["work"] == "prefill":
        start = time.perf_counter()
        session.step([(ids[i], i, 0, i == end - 1) for i in range(end)])
        session.logits(end - 1, 1)
        return time.perf_counter() - start
    for stream in range(streams):
        session.step([(ids[i], i, stream, i == begin - 1) for i in range(begin)])
    start = time.perf_counter()
    for i in range(begin, end):
        session.step([(ids[i], i, stream, True) for stream in range(streams)])
        session.logits(streams - 1, 1)
    return time.perf_counter() - start


def main() -> None:
    """Serve until standard input ends."""
    folder = Path(sys.argv[1])
    shape = json.loads((folder / "shape.json").read_text())
    ids = json.loads((folder / "ids.json").read_text())
    llama_cpp.llama_backend_init()
    sessions: dict[tuple[str, int], Session] = {}
    print(json.dumps({"version": llama_cpp.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        key = (request["type"], request["streams"])
        if key not in sessions:
            path = folder / f"{request['type']}.gguf"
            sessions[key] = Session(
                path if path.exists() else write(folder, request["type"], shape), request["threads"], request["streams"]
            )
        if request["work"] == "logits":
            sessions[key].clear()
            sessions[key].step([(token, i, 0, i == len(ids) - 1) for i, token in enumerate(ids)])
            print(json.dumps(sessions[key].logits(len(ids) - 1, shape["vocab_size"])), flush=True)
        else:
            print(json.dumps(measure(sessions[key], request, ids)), flush=True)


if __name__ == "__main__":
    main()
