"""The spill table equals a dict, whatever is in memory and what on disk; the disk shows nothing and is left clean."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from archiver.core import spill
from archiver.core.spill import SpillTable
from archiver.errors import NoSpace
from tests.mounts import small_file_system

KEYS = some.binary(min_size=1, max_size=4) | some.binary(min_size=500, max_size=511)
PUTS = some.lists(some.tuples(KEYS, some.binary(max_size=40)), max_size=120)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[SpillTable]:
    table = SpillTable(str(tmp_path), in_memory=2000)
    yield table
    table.close()


@given(puts=PUTS, in_memory=some.integers(0, 20_000), batch=some.integers(0, 3000))
@settings(max_examples=60, deadline=None)
def test_equals_a_dict(puts: list[tuple[bytes, bytes]], in_memory: int, batch: int) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "_BATCH", batch)
        table = SpillTable(place, in_memory)
        model: dict[bytes, bytes] = {}
        try:
            for key, value in puts:
                table.put(key, value)
                model[key] = value
                assert table.get(key) == value
                assert bool(os.listdir(place)) or table._size <= in_memory
            assert {key: table.get(key) for key in model} == model
            assert table.get(b"absent key") is None
            assert len(os.listdir(place)) == (sum(len(key) + len(value) + 200 for key, value in puts) > in_memory)
        finally:
            table.close()
        assert os.listdir(place) == []


@pytest.mark.parametrize("length", [0, 4096, 1 << 16])
def test_memory_is_bounded_whatever_the_length_of_values(tmp_path: Path, length: int) -> None:
    """Paths of links may be of 4 KiB each."""
    bound, most = 4 << 20, 0
    table = SpillTable(str(tmp_path), bound)
    tracemalloc.start()
    try:
        for number in range((8 << 20) // (length + 100)):
            table.put(b"%030d" % number, bytes(length))
            most = max(most, tracemalloc.get_traced_memory()[0])
        assert len(os.listdir(tmp_path)) == 1
        assert bound / 3 < most < 1.2 * bound
    finally:
        tracemalloc.stop()
        table.close()


def test_disk_shows_neither_keys_nor_values(table: SpillTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_BATCH", 2000)
    for number in range(200):
        table.put(b"inode of %016d" % number, b"value of secret file %d" % number)
    assert table.get(b"inode of %016d" % 3) == b"value of secret file 3"
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    stored = b"".join(path.read_bytes() for path in folder.iterdir())
    assert len(stored) > 4096
    assert b"secret" not in stored and b"inode" not in stored


def test_swapped_values_are_found_out(table: SpillTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are bound to their keys: an entry cannot be passed off as another one."""
    from cryptography.exceptions import InvalidTag

    monkeypatch.setattr(spill, "_BATCH", 0)
    for number in range(20):
        table.put(b"%02d" % number, b"value")
    sealed = table._spilled
    assert sealed is not None
    with sealed._env.begin(write=True) as txn:
        txn.put(sealed._hidden(b"03"), txn.get(sealed._hidden(b"04")))
    assert table.get(b"04") == b"value"
    with pytest.raises(InvalidTag):
        table.get(b"03")


def test_full_disk_is_no_space(tmp_path: Path) -> None:
    with small_file_system(tmp_path, 1 << 20) as place:
        table = SpillTable(str(place), in_memory=2000)
        try:
            with pytest.raises(NoSpace, match="no space left"):
                for number in range(100_000):
                    table.put(b"%d" % number, bytes(200))
        finally:
            table.close()
        assert [path.name for path in place.iterdir() if path.name != "lost+found"] == []


def test_map_larger_than_the_process_may_have(tmp_path: Path) -> None:
    """Under a limit on address space the table spills all the same."""
    script = f"""
import resource
from archiver.core.spill import SpillTable
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
table = SpillTable({str(tmp_path)!r}, in_memory=2000)
for number in range(100):
    table.put(b"%d" % number, b"value")
assert table.get(b"5") == b"value"
table.close()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent.parent.parent, check=False)
    assert done.returncode == 0
