"""What was written is read again: every file once, whatever the batches, and nothing of what was given up."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from archiver.backup.run import Mode
from archiver.browse.snapshot import Snapshot
from archiver.core.events import Event, FileProblem
from archiver.errors import ArchiverError, NoSpace
from archiver.restore import reread, sparse, write
from archiver.restore.reread import Rereader
from archiver.restore.run import restore
from archiver.restore.visitor import FileItem
from archiver.store.store import Store
from tests.compare import differences
from tests.random_trees import noise
from tests.restore.test_interrupted import descriptors
from tests.stores import KEY, make_store, save

CHUNK = 64 << 10
SEVERAL = 20 * CHUNK  # bytes of a file of many segments


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Files of one segment and of several, empty ones, and such as are nothing but zeros."""
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    for number in range(40):
        (source / f"a/small-{number}").write_bytes(noise(number, 7 * number % 3000 + 1))
    for number in range(5):
        (source / f"empty-{number}").touch()
        (source / f"large-{number}").write_bytes(noise(number, SEVERAL))
    (source / "zeros").write_bytes(bytes(3000))
    with (source / "hole").open("wb") as file:
        file.truncate(4 << 20)
    return source


def brought_back(path: Path, target: Path, *, verify: bool = True) -> list[FileProblem]:
    """What is told while the newest snapshot is restored; no descriptor is left open, however that ends."""
    told: list[FileProblem] = []

    def hear(event: Event) -> None:
        if isinstance(event, FileProblem):
            told.append(event)

    with Store.open(path) as store:
        snapshot = Snapshot(store, store.find("latest"), KEY)
        assert store.database is not None  # opened when it is first asked for
        before = descriptors()
        try:
            restore(snapshot, snapshot.restorable(), str(target), verify=verify, listener=hear)
        finally:
            assert descriptors() == before
    return told


def flip(fd: int) -> None:
    size = os.fstat(fd).st_size
    os.pwrite(fd, bytes([os.pread(fd, 1, size - 1)[0] ^ 1]) if size else b"x", max(size - 1, 0))


SPOILING: dict[str, Callable[[int], None]] = {
    "contents": flip,
    "length": lambda fd: os.ftruncate(fd, os.fstat(fd).st_size + 1),
    "mode": lambda fd: os.fchmod(fd, 0o640),
    "time": lambda fd: os.utime(fd, ns=(5, 5)),
    "attribute": lambda fd: os.setxattr(fd, "user.rot", b"1"),
}


@pytest.mark.parametrize("mode", ["data", "legacy", "metadata"])
@pytest.mark.parametrize("at_once", [1, 8, 512])
def test_each_file_is_told_once(
    source: Path, tmp_path: Path, mode: Mode, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_store(tmp_path / "store")
    save(path, source, mode=mode, chunk_size=CHUNK)
    files = {b"/" + os.fsencode(file.relative_to(source)) for file in source.rglob("*") if file.is_file()}
    original = Rereader.complete
    monkeypatch.setattr(reread, "_MOST_FILES", at_once)
    assert brought_back(path, tmp_path / "good") == [] and differences(source, tmp_path / "good") == []
    for name, spoil in SPOILING.items():

        def spoiling(self: Rereader, item: FileItem, *, told: bool, spoil: Callable[[int], None] = spoil) -> None:
            found = os.fstat(item.fd)
            spoil(item.fd)
            if spoil is not SPOILING["time"]:
                os.utime(item.fd, ns=(found.st_atime_ns, found.st_mtime_ns))
            original(self, item, told=told)

        monkeypatch.setattr(Rereader, "complete", spoiling)
        told = brought_back(path, tmp_path / name)
        # Of a file of several segments contents may have been read before they were spoiled.
        several = {file for file in files if file.startswith((b"/large", b"/hole"))} if name == "contents" else set()
        counts = Counter(problem.path for problem in told)
        assert {problem.kind for problem in told} == {"different"} and set(counts.values()) == {1}
        assert files - several <= counts.keys() <= files, name


def failing_at(count: int, number: int, original: Callable[..., object]) -> Callable[..., object]:
    """The call of this number and all later ones fail."""
    calls = 0

    def called(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls >= count:
            raise OSError(number, os.strerror(number))
        return original(*arguments, **options)

    return called


@pytest.mark.parametrize("count", [1, 2, 9])
def test_what_was_given_up_is_not_told_as_different(
    source: Path, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_store(tmp_path / "store")
    save(path, source, chunk_size=CHUNK)
    monkeypatch.setattr(write, "write_sparse", failing_at(count, errno.ENOSPC, sparse.write_sparse))
    told: list[FileProblem] = []
    monkeypatch.setattr(Rereader, "_tell", lambda self, item, what: told.append(FileProblem(item.name, what, "")))
    with pytest.raises(NoSpace):
        brought_back(path, tmp_path / "target")
    assert told == []


@pytest.mark.parametrize("place", ["write_at", "write_sparse", "attributes.apply"])
def test_a_disk_that_cannot_be_written_any_more(
    source: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed first is told. What could not be taken away is in no directory that has its name already."""
    path = make_store(tmp_path / "store")
    save(path, source, chunk_size=CHUNK)

    def half(fd: int, what: object, offset: int = 0, **_: object) -> None:
        if isinstance(what, memoryview):
            os.pwrite(fd, what[: len(what) // 2], offset)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def unlinking(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as context:
        context.setattr(f"archiver.restore.write.{place}", half)
        context.setattr(os, "unlink", unlinking)
        with pytest.raises(ArchiverError) as caught:
            brought_back(path, tmp_path / "target")
    assert str(tmp_path / "target") in str(caught.value)
    for file in (tmp_path / "target").rglob("*"):
        if file.is_file() and file.relative_to(tmp_path / "target").parts[0] in os.listdir(source):
            original = source / file.relative_to(tmp_path / "target")
            assert file.read_bytes() == original.read_bytes(), file
            assert file.stat().st_mtime_ns == original.stat().st_mtime_ns, file
