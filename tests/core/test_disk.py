"""The durable-write door: what is there after success and after failure, and what was made durable in which order."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver.core import disk as door
from archiver.core.disk import FSYNC_AT_MOST, Barrier, Disk, explain, nameless_file, write_all
from archiver.errors import ArchiverError, NoSpace


class Synced:
    """Records what the door makes durable: paths of fsync in order, and the number of syncfs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        self.whole = 0
        self.failing = ""
        fsync = os.fsync

        def record(fd: int) -> None:
            path = os.readlink(f"/proc/self/fd/{fd}")
            self.paths.append(path)
            if path == self.failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            fsync(fd)

        def record_whole(fd: int) -> None:
            self.whole += 1
            if os.readlink(f"/proc/self/fd/{fd}") == self.failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fsync", record)
        monkeypatch.setattr(door, "syncfs", record_whole)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Synced:
    return Synced(monkeypatch)


@pytest.fixture
def barrier(tmp_path: Path) -> Iterator[Barrier]:
    barrier = Barrier(Disk(), str(tmp_path))
    yield barrier
    barrier.close()


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_modes_are_exact_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    disk = Disk()
    os.umask(umask)
    try:
        disk.make_directories(str(tmp_path / "a" / "b"), 0o755)
        disk.put(str(tmp_path / "a" / "put"), [b"x"], 0o644, sync=False)
        disk.create(str(tmp_path / "a" / "new"), 0o640).close()
    finally:
        os.umask(0o022)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a", *(tmp_path / "a").iterdir())}
    assert modes == {"a": 0o755, "b": 0o755, "put": 0o644, "new": 0o640}


def test_put_replaces_and_syncs_file_before_rename_and_directory_after(tmp_path: Path, synced: Synced) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    Disk(lambda count: b"\xab" * count).put(str(target), [b"new", b"", b"er"], 0o644, sync=True)
    assert target.read_bytes() == b"newer"
    assert synced.paths == [f"{target}.tmp_abababab", str(tmp_path)]


@pytest.mark.parametrize("call", ["fchmod", "writev", "fsync", "rename"])
def test_failed_put_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="broken"):
        Disk().put(str(target), [b"new"], 0o644, sync=True)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["file"]
    assert target.read_bytes() == b"old"


def test_interrupted_put_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "writev", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Disk().put(str(tmp_path / "file"), [b"new"], 0o644, sync=False)
    assert os.listdir(tmp_path) == []


def test_temp_file_of_another_writer_is_not_touched(tmp_path: Path) -> None:
    """Two writers that draw the same random name: the second fails and the first one's file stays."""
    other = tmp_path / "file.tmp_00000000"
    other.write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        Disk(bytes).put(str(tmp_path / "file"), [b"ours"], 0o644, sync=False)
    assert other.read_bytes() == b"theirs"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, views: real(fd, [views[0][:3]]))
    with open(tmp_path / "file", "wb") as file:
        written = write_all(file.fileno(), [b"", b"0123456789", bytearray(b"ab"), memoryview(b"ABCDEFG"), b""])
    assert written == 19
    assert (tmp_path / "file").read_bytes() == b"0123456789abABCDEFG"


def test_new_file_is_appended_to_and_patched(tmp_path: Path) -> None:
    file = Disk().create(str(tmp_path / "file"), 0o644)
    file.append(b"....")
    file.append(b"tail")
    file.patch(b"head", 0)
    file.append(b"!")
    file.close()
    file.close()
    assert (tmp_path / "file").read_bytes() == b"headtail!"


def test_made_directories_are_durable_from_the_top(tmp_path: Path, synced: Synced) -> None:
    Disk().make_directories(str(tmp_path / "a" / "b" / "c"), 0o755)
    assert synced.paths == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]


def test_make_directories_over_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(OSError):
        Disk().make_directories(str(tmp_path / "a" / "b"), 0o755)


@pytest.mark.parametrize("at_once", [True, False])
def test_exchanged_directories_are_durable_in_both_parents(
    tmp_path: Path, synced: Synced, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    for name in ("a/new", "b/old"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(name)
    if not at_once:

        def refuse(first: str, second: str) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        monkeypatch.setattr(door, "exchange", refuse)
    Disk().exchange_directories(str(tmp_path / "a/new"), str(tmp_path / "b/old"))
    assert (tmp_path / "b/old/file").read_text() == "a/new" and (tmp_path / "a/new/file").read_text() == "b/old"
    assert os.listdir(tmp_path / "a") == ["new"] and os.listdir(tmp_path / "b") == ["old"]
    assert synced.paths == [str(tmp_path / "b"), str(tmp_path / "a")]


def test_exchange_fails_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with pytest.raises(FileNotFoundError):
        Disk().exchange_directories(str(tmp_path / "new"), str(tmp_path / "old"))
    assert os.listdir(tmp_path) == ["new"]


def test_renamed_directory_is_durable_in_both_parents(tmp_path: Path, synced: Synced) -> None:
    (tmp_path / "from" / "x").mkdir(parents=True)
    (tmp_path / "to").mkdir()
    Disk().rename_directory(str(tmp_path / "from" / "x"), str(tmp_path / "to" / "y"))
    assert (tmp_path / "to" / "y").is_dir()
    assert synced.paths == [str(tmp_path / "to"), str(tmp_path / "from")]


def test_rename_never_replaces_a_directory_in_use(tmp_path: Path) -> None:
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"")
    with pytest.raises(OSError):
        Disk().rename_directory(str(tmp_path / "source"), str(tmp_path / "target"))
    assert (tmp_path / "target" / "target").exists() and (tmp_path / "source" / "source").exists()


def test_remove_tree_does_not_follow_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"")
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "link").symlink_to(outside)
    Disk().remove_tree(str(tree))
    Disk().remove_tree(str(tree))
    assert not tree.exists() and (outside / "kept").exists()


def write_files(disk: Disk, barrier: Barrier, place: Path, count: int) -> list[str]:
    paths = [str(place / str(number)) for number in range(count)]
    for path in paths:
        disk.put(path, [b"x"], 0o644, sync=False)
        barrier.note(path)
    return paths


def test_few_files_are_synced_each_and_their_directories_after(
    tmp_path: Path, barrier: Barrier, synced: Synced
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    paths = write_files(Disk(), barrier, place, FSYNC_AT_MOST)
    barrier.note_directory(str(tmp_path))
    barrier.commit()
    assert synced.whole == 0
    assert sorted(synced.paths[:-2]) == sorted(paths)
    assert sorted(synced.paths[-2:]) == sorted([str(place), str(tmp_path)])


def test_many_files_are_one_syncfs(tmp_path: Path, barrier: Barrier, synced: Synced) -> None:
    write_files(Disk(), barrier, tmp_path, FSYNC_AT_MOST + 1)
    barrier.note_directory(str(tmp_path))
    barrier.commit()
    assert (synced.whole, synced.paths) == (1, [])


def test_each_commit_is_about_what_came_after_the_last(tmp_path: Path, barrier: Barrier, synced: Synced) -> None:
    write_files(Disk(), barrier, tmp_path, FSYNC_AT_MOST + 1)
    barrier.commit()
    barrier.note(str(tmp_path / "0"))
    barrier.commit()
    barrier.commit()
    assert (synced.whole, synced.paths) == (1, [str(tmp_path / "0"), str(tmp_path)])


@pytest.mark.parametrize("count", [1, FSYNC_AT_MOST + 1])
def test_failed_sync_is_told_and_not_tried_again(tmp_path: Path, barrier: Barrier, synced: Synced, count: int) -> None:
    paths = write_files(Disk(), barrier, tmp_path, count)
    synced.failing = paths[0] if count == 1 else str(tmp_path)
    with pytest.raises(OSError):
        barrier.commit()
    assert len(synced.paths) + synced.whole == 1


def test_nothing_is_durable_after_a_failed_sync(tmp_path: Path, barrier: Barrier, synced: Synced) -> None:
    """Its files may be those that the next commit is asked about."""
    (path,) = write_files(Disk(), barrier, tmp_path, 1)
    synced.failing = path
    for _ in range(2):
        with pytest.raises(OSError):
            barrier.commit()
    assert synced.paths == [path]


def test_commit_waits_for_another_that_has_taken_its_files(
    tmp_path: Path, barrier: Barrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(Disk(), barrier, tmp_path, 1)
    order: list[str] = []
    syncing, go_on = threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        syncing.set()
        go_on.wait()
        order.append("synced")

    def second_commit() -> None:
        barrier.commit()
        order.append("returned")

    monkeypatch.setattr(os, "fsync", slow)
    first, second = threading.Thread(target=barrier.commit), threading.Thread(target=second_commit)
    first.start()
    syncing.wait()
    second.start()
    second.join(0.1)  # time for the wrong order
    go_on.set()
    for thread in (first, second):
        thread.join()
    assert order == ["synced", "synced", "returned"]


def test_file_that_vanished_before_the_barrier_is_an_error(tmp_path: Path, barrier: Barrier) -> None:
    (path,) = write_files(Disk(), barrier, tmp_path, 1)
    os.unlink(path)
    with pytest.raises(FileNotFoundError):
        barrier.commit()


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(errno.ENOSPC, NoSpace, 40), (errno.EDQUOT, NoSpace, 40), (errno.EIO, ArchiverError, 1)],
)
def test_errors_are_explained(number: int, kind: type[ArchiverError], code: int) -> None:
    error = explain(OSError(number, os.strerror(number)), "write", "/some/file")
    assert type(error) is kind and error.exit_code == code
    assert "write /some/file" in str(error)


@pytest.mark.parametrize("supported", [True, False])
def test_a_nameless_file_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    """Also where the file system has no files without a name."""
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, **options: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, mode, **options)

    if not supported:
        monkeypatch.setattr(os, "open", refuse)
    fd = nameless_file(str(tmp_path))
    try:
        os.write(fd, b"data")
        assert os.pread(fd, 10, 0) == b"data"
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
        assert os.listdir(tmp_path) == []
    finally:
        os.close(fd)
