"""The engine: the same bytes whatever the runner and the workers, and after any kill."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from parlance.core.errors import UserError
from parlance.text.preparation import PreparationConfig, prepare, prepare_corpus
from parlance.text.preparation.duplicates import find_duplicates
from parlance.text.preparation.engine import Engine
from parlance.text.preparation.work_folder import WorkFolder
from parlance.text.readers import FileCorpus
from parlance.text.tokenizers import shared_counting, train_tokenizer

CONFIG = PreparationConfig(filters=("gopher-repetition",), shuffle=True)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 240 documents in 12 files, with exact and near duplicates across the files."""
    folder = tmp_path_factory.mktemp("texts")
    generator = np.random.default_rng(0)
    vocabulary = ["".join(map(chr, word)) for word in generator.integers(97, 123, size=(3000, 6)).tolist()]
    texts = [[vocabulary[i] for i in generator.integers(3000, size=120)] for _ in range(240)]
    for copy in range(0, 240, 12):
        texts[(copy + 130) % 240] = list(texts[copy])
        texts[(copy + 67) % 240] = [*texts[copy][:118], "other", "words"]
    for number in range(12):
        rows = [{"id": f"{number}-{row}", "text": " ".join(texts[number * 20 + row])} for row in range(20)]
        (folder / f"{number:02}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "SHARD_BYTES", 20_000)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def expected(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "corpus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "SHARD_BYTES", 20_000)
        card = prepare_corpus(FileCorpus([texts]), out, CONFIG, engine=Engine(workers=1))
    removed = {row["step"]: row["removed"] for row in card["steps"] if row["removed"]}
    assert removed == {"exact duplicate": 20, "near duplicate": 20}
    return content(out)


def test_two_processes_write_the_same_bytes(texts: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    prepare_corpus(FileCorpus([texts]), tmp_path / "corpus", CONFIG, engine=Engine(workers=2))
    assert content(tmp_path / "corpus") == expected


@pytest.mark.parametrize("limit", [0, 10])
def test_star_contraction_finds_the_same_survivors(
    texts: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(prepare, "find_duplicates", lambda *arguments: find_duplicates(*arguments, limit=limit))
    prepare_corpus(FileCorpus([texts]), tmp_path / "corpus", CONFIG, engine=Engine(workers=1))
    assert content(tmp_path / "corpus") == expected


class Killed(BaseException):
    """As if the process had died here."""


@pytest.mark.parametrize("step", ["judge", "duplicates", "decide", "write", "join"])
def test_a_killed_preparation_resumes_to_the_same_bytes(
    texts: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    out = tmp_path / "corpus"
    with monkeypatch.context() as patch:
        if step in ("judge", "write"):
            run = Engine.run

            def run_a_little(self: Engine, folder: Path, name: str, indices: list[int]):  # type: ignore[no-untyped-def]
                yield from run(self, folder, name, indices[: 3 if name == step else None])
                if name == step:
                    raise Killed

            patch.setattr(Engine, "run", run_a_little)
        else:

            def die(*_: object, **__: object) -> None:
                raise Killed

            name = {"duplicates": "find_duplicates", "decide": "decide", "join": "join_shards"}[step]
            patch.setattr(prepare, name, die)
        with pytest.raises(Killed):
            prepare_corpus(FileCorpus([texts]), out, CONFIG, engine=Engine(workers=1))
    assert not out.exists()
    if step == "write":  # what is done is not done again
        done = WorkFolder.beside(out).tally("write", 0)
        before = done.stat().st_mtime_ns
        monkeypatch.setattr(prepare.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(UserError, match="pass --resume"):
        prepare_corpus(FileCorpus([texts]), out, CONFIG)
    with pytest.raises(UserError, match="begun differently"):
        prepare_corpus(FileCorpus([texts]), out, PreparationConfig(), resume=True)
    prepare_corpus(FileCorpus([texts]), out, CONFIG, engine=Engine(workers=1), resume=True)
    assert content(out) == expected
    if step == "write":
        assert done.stat().st_mtime_ns == before


def test_ray_writes_the_same_bytes(texts: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the runner ray needs the library ray")
    program = """
import sys
from pathlib import Path
from parlance.text.preparation import PreparationConfig, prepare, prepare_corpus
from parlance.text.preparation.engine import Engine
from parlance.text.readers import FileCorpus
from parlance.text.tokenizers import shared_counting, train_tokenizer
prepare.SHARD_BYTES = 20_000
config = PreparationConfig(filters=("gopher-repetition",), shuffle=True)
prepare_corpus(FileCorpus([Path(sys.argv[1])]), Path(sys.argv[2]), config, engine=Engine("ray", workers=2))
"""
    environment = os.environ | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    out = tmp_path / "corpus"
    done = subprocess.run(
        [sys.executable, "-c", program, str(texts), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert content(out) == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_pieces_counted_in_shards_train_the_same_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(shared_counting, "SHARD_BYTES", 50_000)
    source = [inspect.getsource(module) for module in (inspect, json, os)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": text[:9000]}) + "\n" for text in source * 9))
    engine = Engine(workers=workers)
    tokenizer = shared_counting.train_on_engine(tmp_path, 700, "gpt4", engine, tmp_path / "tokenizer")
    expected = train_tokenizer((text[:9000] for text in source * 9), "bpe", 700, "gpt4")
    assert tokenizer.sha256 == expected.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.jsonl"]


def test_components_of_a_random_graph(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    first, second = generator.integers(400, size=(2, 330))
    low, number = np.minimum(first, second)[first != second], np.maximum(first, second)[first != second]
    (tmp_path / "edges").mkdir()
    pq.write_table(pa.table({"low": low, "number": number}), tmp_path / "edges" / "0.parquet")
    stars = Engine(workers=1).components(tmp_path / "edges", tmp_path)
    found = pa.concat_tables([pq.read_table(path, columns=["low", "number"]) for path in stars.rglob("*.parquet")])
    label = list(range(400))
    for _ in range(400):  # the smallest label spreads along the edges
        for a, b in zip(low.tolist(), number.tolist(), strict=True):
            label[a] = label[b] = min(label[a], label[b])
    expected = {node: root for node, root in enumerate(label) if node != root}
    assert dict(zip(found["number"].to_pylist(), found["low"].to_pylist(), strict=True)) == expected


def test_refusals() -> None:
    with pytest.raises(UserError, match="no runner spark"):
        Engine("spark")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="add --runner ray"):
        Engine(ray_address="auto")
    with pytest.raises(UserError, match="at least 1"):
        Engine(workers=0)
