"""Files that change so shortly before or after they are looked at that their times cannot tell."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archiver.backup.run import Mode
from archiver.core.clock import Clock
from tests.mounts import small_file_system
from tests.random_trees import noise
from tests.stores import make_store, restored_differences, save

ATTEMPTS = 30  # to change a file twice within one second


def times(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@pytest.mark.parametrize("before", ["metadata", "data", "legacy"])
def test_a_change_that_leaves_no_trace(tmp_path: Path, before: Mode) -> None:
    """On a file system that counts in whole seconds a second change within one of them is not to be seen."""
    store = make_store(tmp_path / "store")
    with small_file_system(tmp_path, 16 << 20, "-I", "128") as place:
        source = place / "source"
        source.mkdir()
        file = source / "file"
        for name in ("file", "other"):
            (source / name).write_bytes(noise(1, 5000))
        for attempt in range(ATTEMPTS):
            file.write_bytes(noise(2 * attempt, 5000))
            first = times(file)
            save(store, source, mode=before, clock=Clock())
            with file.open("r+b") as opened:
                opened.write(noise(2 * attempt + 1, 5000))
            hidden = times(file) == first
            saved = save(store, source, mode="metadata", clock=Clock())
            out = tmp_path / f"out-{attempt}"
            assert restored_differences(store, saved.snapshot, source, out) == []
            if hidden:
                return
    pytest.skip("each change came in a second of its own")


@pytest.mark.parametrize("offset", [-(10**9), 0, 10**9])
def test_files_of_this_moment_are_read_again(tmp_path: Path, offset: int) -> None:
    """A run that looks at a file within two seconds of its change does not believe it next time, nor in case its clock
    is behind; a run later does."""

    class Shifted(Clock):
        def now_ns(self) -> int:
            return file.stat().st_ctime_ns + offset

        def now(self) -> int:
            return self.now_ns() // 10**9

    source, store = tmp_path / "source", make_store(tmp_path / "store")
    source.mkdir()
    file = source / "file"
    file.write_bytes(noise(1, 100_000))
    for _ in range(2):
        saved = save(store, source, mode="metadata", clock=Shifted())
        assert saved.result.files.bytes_read == 100_000
    settled = save(store, source, mode="metadata")
    assert settled.result.files.bytes_read == 100_000
    assert save(store, source, mode="metadata").result.files.bytes_read == 0
    assert restored_differences(store, settled.snapshot, source, tmp_path / "out") == []


def test_a_directory_of_this_moment_is_listed_again(tmp_path: Path) -> None:
    """Names that come into a directory in the second in which it was listed, on a file system of whole seconds."""
    store = make_store(tmp_path / "store")
    with small_file_system(tmp_path, 16 << 20, "-I", "128") as place:
        source = place / "source"
        (source / "directory").mkdir(parents=True)
        for attempt in range(ATTEMPTS):
            (source / "directory" / f"a-{attempt}").touch()
            first = times(source / "directory")
            save(store, source, mode="metadata", clock=Clock())
            os.link(source / "directory" / f"a-{attempt}", source / "directory" / f"b-{attempt}")
            hidden = times(source / "directory") == first
            saved = save(store, source, mode="metadata", clock=Clock())
            assert restored_differences(store, saved.snapshot, source, tmp_path / f"out-{attempt}") == []
            if hidden:
                return
    pytest.skip("each change came in a second of its own")
