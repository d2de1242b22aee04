"""The hostile corpus is what it claims: its writer is right when left alone, its bombs inflate, its limits hold."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from zstandard import ZstdDecompressor

from tests.golden_data import GOLDEN, content
from tests.hostile.build import KEY, corpus, hostile_blobs
from tests.hostile.files import zstd_zeros
from tests.hostile.limits import TooSlow, bounded
from tests.hostile.writer import Writer, name_hash


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tree", ["plain", "empty-root"])
def test_the_writer_reproduces_golden_archives(tree: str, version: int) -> None:
    golden = GOLDEN / "pxar" / tree
    w = Writer(version)
    depth = 0  # open directories; paths tell when to close them
    for entry in json.loads(golden.with_suffix(f".v{version}.json").read_text()):
        if entry["kind"] == "version":
            continue
        stat = {key: entry[key] for key in ("mode", "flags", "uid", "gid")}
        stat |= {"secs": entry["mtime_secs"], "nanos": entry["mtime_nanos"]}
        *parents, name = entry["path"].encode().split(b"/")[1:]
        if not name:
            w.root(**stat)
            depth = 1
            continue
        while depth > len(parents) + 1:
            w.close()
            depth -= 1
        if entry["kind"] == "dir":
            w.directory(name, **stat)
            depth += 1
        elif entry["kind"] == "symlink":
            w.symlink(name, entry["target"].encode(), **stat)
        else:
            w.file(name, content(entry["content"]), **stat)
    w.finish()
    assert w.archive == golden.with_suffix(".pxar" if version == 1 else ".mpxar").read_bytes()
    if version == 2:
        assert w.payload == golden.with_suffix(".ppxar").read_bytes()


def test_name_hashes() -> None:
    for name, expected in json.loads((GOLDEN / "pxar" / "name-hashes.json").read_text()).items():
        assert name_hash(name.encode()) == int(expected, 16)


def test_links_point_where_they_are_told() -> None:
    archives = corpus(b"/some/where/else")
    assert len(archives) > 1000
    assert any(b"/some/where/else" in archive.archive for archive in archives.values())
    assert not any(b"/tmp/evil" in archive.archive for archive in archives.values())


def test_bombs_are_bombs() -> None:
    """The frames of the bombs really inflate, far beyond what they are long."""
    frame = zstd_zeros(256 << 20)
    assert len(frame) < 10_000
    with ZstdDecompressor().stream_reader(frame) as reader:
        total = 0
        while piece := reader.read(1 << 20):
            total += len(piece)
    assert total == 256 << 20
    blob = hostile_blobs()["encrypted zstd bomb without content size"].data
    assert AESGCM(KEY).decrypt(blob[12:28], blob[44:] + blob[28:44], None) == zstd_zeros(8 << 30)


def test_limits_are_limits() -> None:
    with pytest.raises(TooSlow), bounded(0.05):
        while True:
            pass
    with pytest.raises(MemoryError), bounded():
        bytearray(1 << 30)
