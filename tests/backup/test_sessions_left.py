"""What lies in the directories of interrupted sessions is not what a run left there: it may not be of use, no more."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from archiver.backup import journal
from archiver.backup.small_files import SmallFiles
from archiver.core.clock import Clock
from archiver.errors import ArchiverError
from archiver.source.ahead import ReadAhead
from archiver.source.walk import SourceDirectory
from tests.random_trees import noise
from tests.stores import Ahead, damage, make_store, restored_differences, save

pytestmark = pytest.mark.in_memory

SIZE = 300_000
JOURNAL = "tree.journal"
INDEX = "snapshot/tree.ppxar.didx"


class Later(Ahead):
    """Sessions are told apart by their times."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    def now(self) -> int:
        return super().now() + self.seconds

    def now_ns(self) -> int:
        return super().now_ns() + self.seconds * 10**9


def interrupted(store: Path, source: Path, seed: int, clock: Clock) -> Path:
    """A run over files of their own, which ends when it comes to the last of them; the directory of its session."""
    real = SmallFiles.take

    def take(self: SmallFiles, directory: SourceDirectory, name: bytes, stat: os.stat_result, ahead: ReadAhead) -> bool:
        if name == b"last":
            raise ArchiverError("interrupted")
        return real(self, directory, name, stat, ahead)

    for number in range(20):
        (source / f"{number:02}").write_bytes(noise(seed + number, SIZE))
    (source / "last").touch()
    sessions = store / ".archiver" / "sessions"
    before = set(sessions.iterdir()) if sessions.exists() else set()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ArchiverError, match="interrupted"):
        patch.setattr(SmallFiles, "take", take)
        save(store, source, mode="metadata", clock=clock)
    (session,) = set(sessions.iterdir()) - before
    return session


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A store and a source."""
    (tmp_path / "source").mkdir()
    return make_store(tmp_path / "store"), tmp_path / "source"


def goes_on(places: tuple[Path, Path], out: Path) -> int:
    """A whole run is right, whatever it found; the bytes it read."""
    store, source = places
    saved = save(store, source, mode="metadata", clock=Later(1000))
    assert restored_differences(store, saved.snapshot, source, out) == []
    assert damage(store) == []
    return saved.result.files.bytes_read


def test_an_index_of_another_run(tmp_path: Path, places: tuple[Path, Path]) -> None:
    """It has contents of the same sizes at the same places: the journal tells which stream it is about."""
    store, source = places
    old = interrupted(store, source, 100, Later(0))
    new = interrupted(store, source, 200, Later(100))
    (new / INDEX).write_bytes((old / INDEX).read_bytes())
    assert goes_on(places, tmp_path / "out") == 20 * SIZE


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _huge(path: Path) -> None:
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("harm", [_fifo, _endless, _huge])
@pytest.mark.parametrize("name", [JOURNAL, INDEX])
def test_no_file_to_be_read(tmp_path: Path, places: tuple[Path, Path], name: str, harm: Callable[[Path], None]) -> None:
    harm(interrupted(*places, 100, Later(0)) / name)
    assert goes_on(places, tmp_path / "out") <= 20 * SIZE  # a journal may be of use up to what follows it


def test_an_index_with_an_impossible_chunk(
    tmp_path: Path, places: tuple[Path, Path], recwarn: pytest.WarningsRecorder
) -> None:
    """What stands before it is of use."""
    index = interrupted(*places, 100, Later(0)) / INDEX
    whole = 4096 + (index.stat().st_size - 4096) // 40 * 40
    index.write_bytes(index.read_bytes()[:whole] + struct.pack("<Q32s", (1 << 63) - 1, bytes(32)))
    assert goes_on(places, tmp_path / "out") < 10 * SIZE
    assert list(recwarn) == []


def test_a_journal_that_cannot_be_written(
    tmp_path: Path, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is missed by nobody but a run that would go on, and is no property of the file that was read just then."""
    store, source = places
    for number in range(40):
        (source / f"{number:02}").write_bytes(noise(number, 1_000_000))

    def full(fd: int, parts: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(store, source, mode="metadata", clock=Later(0))
    for number in range(40):
        (source / f"{number:02}").write_bytes(noise(100 + number, 1_000_000))
    monkeypatch.setattr(journal, "write_all", full)
    saved = save(store, source, mode="metadata", clock=Later(100))
    assert saved.problems == []
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []
