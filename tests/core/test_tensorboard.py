"""Event files against the check values of the formats they are made of, and read back by a reader written apart."""

import errno
import os
import struct
from pathlib import Path

import pytest

from parlance.core.errors import UserError
from parlance.core.metrics import MetricsLog
from parlance.core.tensorboard import EventWriter, crc32c, record


def fields(data: bytes) -> dict[int, list]:
    """A message of protocol buffers by field number: integers, bytes, and numbers of 4 and 8 bytes as bytes."""
    found: dict[int, list] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            value = varint()
        else:
            size = {1: 8, 5: 4}.get(kind) or varint()
            value, at = data[at : at + size], at + size
        found.setdefault(key >> 3, []).append(value)
    return found


def unmasked(stored: bytes) -> int:
    value = (struct.unpack("<I", stored)[0] - 0xA282EAD8) % 2**32
    return (value << 15 | value >> 17) % 2**32


def records(data: bytes) -> list[bytes]:
    contents, at = [], 0
    while at < len(data):
        head = data[at : at + 8]
        size = struct.unpack("<Q", head)[0]
        assert unmasked(data[at + 8 : at + 12]) == crc32c(head)
        content = data[at + 12 : at + 12 + size]
        assert len(content) == size
        assert unmasked(data[at + 12 + size : at + 16 + size]) == crc32c(content)
        contents.append(content)
        at += 16 + size
    return contents


def events(folder) -> list[tuple[int, dict[str, float], dict[int, list]]]:
    """(step, values, fields) of each event of every file in order."""
    found = []
    for file in sorted(folder.iterdir()):
        for content in records(file.read_bytes()):
            event = fields(content)
            summary = fields(event[5][0]) if 5 in event else {}
            values = {}
            for part in summary.get(1, []):
                value = fields(part)
                values[value[1][0].decode()] = struct.unpack("<f", value[2][0])[0]
            found.append((event.get(2, [0])[0], values, event))
    return found


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"123456789", 0xE3069283),  # the check value of the catalogue of CRCs
        (bytes(32), 0x8A9136AA),  # RFC 3720, appendix B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"", 0),
    ],
)
def test_checksums_are_those_of_the_standard(data, value):
    assert crc32c(data) == value


def test_a_record_is_what_readers_expect():
    # "brain.Event:2" at time 0, as a TensorFlow event file begins.
    content = bytes.fromhex("09 00000000 00000000 1a 0d") + b"brain.Event:2"
    assert records(record(content)) == [content]


def test_figures_come_back(tmp_path):
    writer = EventWriter(tmp_path / "events")
    assert not (tmp_path / "events").exists()
    writer.write(1, {"pretrain/loss": 4.5, "pretrain/äöü": -1e-3})
    writer.write(300, {"pretrain/loss": 4.25})
    first, second, third = events(tmp_path / "events")
    assert first[2][3] == [b"brain.Event:2"]
    assert second[:2] == (1, {"pretrain/loss": 4.5, "pretrain/äöü": pytest.approx(-1e-3)})
    assert third[:2] == (300, {"pretrain/loss": 4.25})
    (file,) = (tmp_path / "events").iterdir()
    assert ".tfevents." in file.name


def test_a_resumed_log_says_from_where_on_it_is_another(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "events")
    log.rewind("pretrain", 0)
    for step in (1, 2, 3):
        log.write("pretrain", step, loss=float(step), text="not a number", wrong=float("nan"))
    again = MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "events")
    again.rewind("pretrain", 2)
    again.write("pretrain", 3, loss=9.0)
    found = events(tmp_path / "events")
    assert [(step, values) for step, values, _ in found if values] == [
        (1, {"pretrain/loss": 1.0}),
        (2, {"pretrain/loss": 2.0}),
        (3, {"pretrain/loss": 3.0}),
        (3, {"pretrain/loss": 9.0}),
    ]
    (restart,) = [(step, fields(event[7][0])) for step, _, event in found if 7 in event]
    assert restart == (3, {1: [1]})


def test_a_log_that_begins_anew_says_so_too(tmp_path):
    for loss in (1.0, 2.0):
        log = MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "events")
        log.rewind("pretrain", 0)
        log.write("pretrain", 1, loss=loss)
    restarts = [(step, fields(event[7][0])) for step, _, event in events(tmp_path / "events") if 7 in event]
    assert restarts == [(1, {1: [1]})]


class FullDisk:
    """Files that take a few bytes of what is written, and no more."""

    def __init__(self, file) -> None:
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.file.close()

    def write(self, data):
        self.file.write(data[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("first", [True, False])
def test_after_a_full_disk_there_is_no_half_record(tmp_path, first, monkeypatch):
    writer, original = EventWriter(tmp_path), Path.open
    if not first:
        writer.write(1, {"loss": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *mode: FullDisk(original(path, *mode)))
        with pytest.raises(UserError, match="no space left"):
            writer.write(2, {"loss": 2.0})
    writer.write(3, {"loss": 3.0})
    assert [step for step, values, _ in events(tmp_path) if values] == ([3] if first else [1, 3])


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        EventWriter(tmp_path / "file" / "events").write(1, {"x": 1.0})
