"""Things in the way of files that a run writes: a disk that is full just then, something that is no file."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from archiver.core.spill import SpillTable
from archiver.errors import NoSpace
from tests.mounts import fill, small_file_system
from tests.random_trees import build_plain
from tests.stores import Heard, make_store, restored_differences, save


@pytest.mark.parametrize("leave", [0, 4096, 8192, 12288])
def test_a_spill_file_that_cannot_be_begun(tmp_path: Path, leave: int) -> None:
    """There is room for its directory, or not even for that."""
    with small_file_system(tmp_path, 24 << 20) as place:
        fill(place, leave)
        with closing(SpillTable(str(place), in_memory=1000)) as table, pytest.raises(NoSpace):
            for number in range(1000):
                table.put(b"%d" % number, bytes(100))
        assert list(place.glob("spill-*")) == []


@pytest.mark.parametrize("harm", ["fifo", "dangling link"])
def test_no_file_where_the_database_was(tmp_path: Path, harm: str) -> None:
    """Opening a FIFO would wait for ever."""
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    build_plain(source, 3, files=5)
    save(store, source, mode="metadata")
    (database,) = (store / ".archiver").rglob("data.mdb")
    database.unlink()
    if harm == "fifo":
        os.mkfifo(database)
    else:
        database.symlink_to(tmp_path / "nowhere")
    heard = Heard()
    saved = save(store, source, mode="metadata", heard=heard)
    assert any("data.mdb is not a regular file" in text for text in heard.notices)
    assert database.is_file() and not (tmp_path / "nowhere").exists()
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []
