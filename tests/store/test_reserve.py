"""The reserve: when it is there, how large, and who gives it up."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from archiver.core.disk import Disk
from archiver.errors import NoSpace, UsageError
from archiver.store import reserve
from archiver.store.database.environment import Environment
from archiver.store.layout import Layout
from archiver.store.store import Store
from tests.random_trees import build_plain
from tests.stores import Heard, listing, make_store, save

KIB = 1 << 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store")


def allocated(path: Path) -> int:
    """Of the reserve of a store; 0 when there is none."""
    file = path / ".archiver/reserve"
    return file.lstat().st_blocks * 512 if os.path.lexists(file) else 0


def begin(path: Path) -> None:
    with Store.open(path) as store, store.session():
        pass


def have_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(reserve, "available", lambda base: free)


@pytest.mark.parametrize(
    ("setting", "size"),
    [("8K", 8 * KIB), ("12288", 12 * KIB), ("2M", 2048 * KIB), ("1.5MiB", 1536 * KIB), ("0", 0), (None, 32 << 20)],
)
def test_the_first_writer_makes_it(path: Path, setting: str | None, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it has 32 MiB on any file system of today; it is private and made once."""
    if setting is None:
        monkeypatch.delenv("ARCHIVER_RESERVE")
    else:
        monkeypatch.setenv("ARCHIVER_RESERVE", setting)
    if setting is None:
        assert shutil.disk_usage(path).total >= 3200 << 20, "this test needs a larger disk"
    begin(path)
    assert size <= allocated(path) <= size + 8 * KIB
    if not size:
        return
    before = (path / ".archiver/reserve").stat()
    assert before.st_mode & 0o777 == 0o600 and before.st_size == size
    begin(path)
    assert (path / ".archiver/reserve").stat() == before


def test_on_a_small_file_system(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARCHIVER_RESERVE")
    real = os.statvfs(path)

    class Small:
        f_blocks, f_frsize = (640 << 20) // real.f_frsize, real.f_frsize

    monkeypatch.setattr(os, "statvfs", lambda base: Small)
    assert reserve.size_for(str(path)) == (640 << 20) // 100 // 4096 * 4096


@pytest.mark.parametrize("setting", ["much", "-1", "1X", "1.M", "9" * 99])
def test_nonsense(path: Path, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVER_RESERVE", setting)
    with pytest.raises(UsageError, match="is no size"):
        begin(path)


@pytest.mark.parametrize(
    ("free", "is_made", "is_refused"), [(63, False, True), (64, False, False), (127, False, False), (128, True, False)]
)
def test_when_there_is_little_room(
    path: Path, free: int, is_made: bool, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64 KiB: nobody takes its room for a run, and it does not take the last room of a run."""
    have_free(monkeypatch, free * KIB)
    if is_refused:
        with pytest.raises(NoSpace, match="63 KiB are free, 64 KiB are kept") as caught:
            begin(path)
        assert caught.value.exit_code == 40 and "gc" in (caught.value.hint or "")
        assert not (path / ".archiver/sessions").exists()
    else:
        begin(path)
    assert bool(allocated(path)) == is_made


def test_one_that_is_there_lets_a_run_begin_on_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(path)
    have_free(monkeypatch, 0)
    begin(path)
    assert allocated(path)


@pytest.mark.parametrize("left", ["sparse", "short", "empty"])
def test_what_is_only_a_part_of_it_is_completed(path: Path, left: str) -> None:
    """A copy of the store may have holes in its place, a killed process may have left less."""
    file = path / ".archiver/reserve"
    if left == "short":
        file.write_bytes(bytes(8 * KIB))
    else:
        file.touch()
        os.truncate(file, 64 * KIB if left == "sparse" else 0)
    begin(path)
    assert allocated(path) >= 64 * KIB and file.stat().st_size == 64 * KIB


def test_where_zeros_take_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that compresses: the C library emulates the call by writing zeros."""
    monkeypatch.setattr(os, "posix_fallocate", lambda fd, start, size: os.truncate(fd, size))
    begin(path)
    assert allocated(path) >= 64 * KIB
    assert len(set((path / ".archiver/reserve").read_bytes())) == 256


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EOPNOTSUPP, errno.EDQUOT])
def test_one_that_cannot_be_made_is_no_failure(path: Path, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, start: int, size: int) -> None:
        os.ftruncate(fd, 4096)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    begin(path)
    assert not (path / ".archiver/reserve").exists()


def test_something_else_in_its_place(path: Path, tmp_path: Path) -> None:
    """What a link leads to is neither written nor counted, and no fifo holds anybody up."""
    other, place = tmp_path / "other", path / ".archiver/reserve"
    other.write_bytes(bytes(128 * KIB))
    place.symlink_to(other)
    begin(path)
    with Store.open(path) as store:
        assert not store.give_up_reserve()
    assert other.read_bytes() == bytes(128 * KIB) and place.is_symlink()
    place.unlink()
    os.mkfifo(place)
    begin(path)
    with Store.open(path) as store:
        assert not store.give_up_reserve()


def test_giving_it_up(path: Path) -> None:
    begin(path)
    with Store.open(path, read_only=True) as store:
        assert not store.give_up_reserve()
    with Store.open(path) as store:
        assert store.give_up_reserve()
        assert not store.give_up_reserve()
    assert not allocated(path)


def test_reading_makes_none(path: Path, tmp_path: Path) -> None:
    build_plain(tmp_path / "tree", 1, files=3)
    save(path, tmp_path / "tree")
    (path / ".archiver/reserve").unlink()
    with Store.open(path) as store:
        _ = store.database
    before = listing(path)
    with Store.open(path) as store:
        store.newest(next(iter(store.groups())))
    assert listing(path) == before


def test_the_database_has_it_given_up(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that found the disk full is run once more, and only when there was something to give up."""
    build_plain(tmp_path / "tree", 1, files=3)
    saved = save(path, tmp_path / "tree")
    write, heard = Environment.write, Heard()

    def full(self: Environment, work: object) -> object:
        if allocated(path):
            raise NoSpace("no space left")
        return write(self, work)  # type: ignore[arg-type]

    with Store.open(path, listener=heard) as store:
        database = store.database
        assert database is not None
        monkeypatch.setattr(Environment, "write", full)
        database.mark_verified([], 0)
        store.forget_records([saved.snapshot])
        assert not allocated(path) and database.usable and database.check() == [] and heard.notices == []
        monkeypatch.setattr(Environment, "write", lambda self, work: full_again())
        database.remove_snapshot(saved.snapshot.path)
        assert not database.usable and "no space left" in heard.notices[0]


def full_again() -> None:
    raise NoSpace("no space left")


def test_database_on_another_disk(path: Path, tmp_path: Path) -> None:
    """Room in the store is of no use to it."""
    begin(path)
    with Store.open(path) as store:
        assert not store._make_room_in("/proc")
        assert allocated(path)
        assert store._make_room_in(str(tmp_path))
    assert not allocated(path)


def test_disk_leaves_nothing_of_a_failure(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Disk().allocate(str(tmp_path / "file"), 1 << 62, 0o600)
    assert list(tmp_path.iterdir()) == [tmp_path / ".xdg"] or list(tmp_path.iterdir()) == []
    assert Layout(str(tmp_path)).reserve == str(tmp_path / ".archiver/reserve")
