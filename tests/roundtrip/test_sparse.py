"""Holes come back as holes: neither contents nor allocation may differ by more than a block at each edge."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archiver.backup.run import Mode
from tests.attributes import write_sparse
from tests.compare import differences
from tests.random_trees import noise
from tests.stores import CHUNK_SIZE, bring_back, make_store, save

MIB = 1 << 20
LARGEST_CHUNK = 4 * CHUNK_SIZE
DATA = noise(7, 100_000)
# name -> (size, offset -> data)
LAYOUTS: dict[str, tuple[int, dict[int, bytes]]] = {
    "only-hole": (3 * MIB, {}),
    "only-hole-odd": (3 * MIB + 1, {}),
    "hole-of-a-chunk": (LARGEST_CHUNK, {}),
    "trailing-hole": (3 * MIB, {0: DATA}),
    "trailing-hole-within-a-block": (MIB, {0: noise(1, MIB - 5)}),
    "leading-hole": (3 * MIB, {3 * MIB - len(DATA): DATA}),
    "last-byte": (3 * MIB, {3 * MIB - 1: b"x"}),
    "first-byte": (3 * MIB, {0: b"x"}),
    "middle": (4 * MIB, {MIB + 17: DATA, 3 * MIB - 4096: DATA[:4096]}),
    **{
        f"data-at-chunk-edge{shift:+}": (8 * LARGEST_CHUNK, {4 * LARGEST_CHUNK + shift: DATA[:4096]})
        for shift in (-4096, -16, -1, 0, 1, 16)
    },
    "every-second-block": (MIB, dict.fromkeys(range(0, MIB, 8192), DATA[:4096])),
    "hole-in-a-small-file": (60_000, {50_000: b"end"}),
}


@pytest.mark.parametrize("mode", ["data", "legacy"])
def test_holes(tmp_path: Path, mode: Mode) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, (size, pieces) in LAYOUTS.items():
        write_sparse(source / name, size, pieces)
    os.sync()  # what is allocated is known only then
    store = make_store(tmp_path / "store")
    saved = save(store, source, mode=mode)
    assert saved.result.files.bytes_read < 4 * MIB, "holes are not read"
    assert bring_back(store, saved.snapshot, tmp_path / "out").problems == []
    assert differences(source, tmp_path / "out", sparse_slack=CHUNK_SIZE) == []
    for name in ("only-hole", "only-hole-odd", "hole-of-a-chunk"):
        assert (tmp_path / "out" / name).stat().st_blocks == 0


def test_zeros_become_holes(tmp_path: Path) -> None:
    """Written zeros take no space after a restore, and a hole costs one chunk however long it is."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "zeros").write_bytes(bytes(4 * MIB))
    write_sparse(source / "hole", 64 * MIB, {})
    store = make_store(tmp_path / "store")
    saved = save(store, source)
    assert saved.result.archives[0].counters.new_chunks < 12
    bring_back(store, saved.snapshot, tmp_path / "out")
    assert (tmp_path / "out/zeros").stat().st_blocks == 0
    assert differences(source, tmp_path / "out", sparse_slack=8192) == []
