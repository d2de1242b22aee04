"""A restore that ends early leaves whole files only, and no open descriptors."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest

from archiver.browse.snapshot import Snapshot
from archiver.core import linux
from archiver.core.events import ignore
from archiver.errors import ArchiverError, NoSpace
from archiver.restore.reread import Rereader
from archiver.restore.run import restore
from archiver.restore.visitor import FileItem
from archiver.store.chunks import ChunkReader
from archiver.store.store import Store
from formats.wire import Buffer
from tests.random_trees import noise
from tests.stores import archiver, make_store, save

pytestmark = pytest.mark.in_memory

SMALL, LARGE = 10_000, 3 << 20


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    for number in range(20):
        (source / "a" / f"small-{number}").write_bytes(noise(number, SMALL))
    (source / "b").write_bytes(noise(99, LARGE))
    save(make_store(tmp_path / "store"), source)
    return tmp_path


def descriptors() -> list[str]:
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sorted(os.readlink(link) for link in links if os.path.lexists(link))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("chunks", [1, 4, 12])
def test_while_writing(saved: Path, failure: type[BaseException], chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    read = ChunkReader.read

    def failing(self: ChunkReader, digest: bytes, size: int, *, encrypted: bool) -> Buffer:
        nonlocal calls
        calls += 1
        if calls > chunks:
            raise failure
        return read(self, digest, size, encrypted=encrypted)

    target = saved / "target"
    with Store.open(saved / "store") as store:
        snapshot = Snapshot(store, store.find("latest"))
        assert store.database is not None  # opened when it is first asked for
        before = descriptors()
        monkeypatch.setattr(ChunkReader, "read", failing)
        with pytest.raises(failure):
            restore(snapshot, snapshot.archives(), str(target), verify=True, listener=ignore)
        assert descriptors() == before
    assert not (target / "b").exists()
    for path in (target / "a").iterdir() if (target / "a").exists() else ():
        assert path.read_bytes() == noise(int(path.name.split("-")[1]), SMALL)


def test_while_checking(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Rereader, item: FileItem) -> None:
        raise RuntimeError

    target = saved / "target"
    with Store.open(saved / "store") as store:
        snapshot = Snapshot(store, store.find("latest"))
        assert store.database is not None  # opened when it is first asked for
        before = descriptors()
        monkeypatch.setattr(Rereader, "_compare", failing)
        with pytest.raises(RuntimeError):
            restore(snapshot, snapshot.archives(), str(target), verify=True, listener=ignore)
        assert descriptors() == before
    assert (target / "b").read_bytes() == noise(99, LARGE)


def test_file_that_the_target_refuses(saved: Path) -> None:
    """The store is not damaged, so that is not said."""
    limited = ("prlimit", "--fsize=100000")
    arguments = ("--store", saved / "store", "restore", "latest", saved / "target", "--no-verify", "--json")
    done = archiver(*arguments, wrapper=limited)
    assert done.returncode == 3, done.stderr
    errors = json.loads(done.stdout)["errors"]
    assert [(error["path"], error["kind"]) for error in errors] == [("/b", "not-restored")]
    assert sorted(os.listdir(saved / "target")) == ["a"]


def test_no_temporary_directory(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is needed."""

    def none() -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "TemporaryFile", none)
    with Store.open(saved / "store") as store:
        snapshot = Snapshot(store, store.find("latest"))
        result = restore(snapshot, snapshot.archives(), str(saved / "target"), verify=True, listener=ignore)
    assert result.verified and result.problems == []


@pytest.mark.parametrize("verify", [False, True])
def test_write_error_told_by_close(saved: Path, monkeypatch: pytest.MonkeyPatch, verify: bool) -> None:
    """As over a network: the file is named and not left behind."""
    monkeypatch.setattr(linux, "STABLE", frozenset[int]())
    close = os.close

    def failing(fd: int) -> None:
        written = os.readlink(f"/proc/self/fd/{fd}").startswith(str(saved / "target" / ".archiver-restore."))
        large = written and os.fstat(fd).st_size == LARGE
        close(fd)
        if large:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with Store.open(saved / "store") as store:
        snapshot = Snapshot(store, store.find("latest"))
        assert store.database is not None
        before = descriptors()
        monkeypatch.setattr(os, "close", failing)
        with pytest.raises(NoSpace, match="/target/b"):
            restore(snapshot, snapshot.archives(), str(saved / "target"), verify=verify, listener=ignore)
        monkeypatch.undo()
        assert descriptors() == before
    assert os.listdir(saved / "target") == ["a"]


def test_attributes_that_cannot_be_read_again(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int) -> list[str]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "listxattr", failing)
    with Store.open(saved / "store") as store:
        snapshot = Snapshot(store, store.find("latest"))
        result = restore(snapshot, snapshot.archives(), str(saved / "target"), verify=True, listener=ignore)
    told = {problem.path: problem.reason for problem in result.problems}
    assert told.keys() == {b"/", b"/a", b"/b", *(b"/a/small-%d" % number for number in range(20))}
    assert set(told.values()) == {"after restoring: input/output error"}


@pytest.mark.parametrize("call", ["probe_new_file", "filesystem_type"])
def test_a_target_that_cannot_be_looked_at_is_named(saved: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    target = saved / "target"
    with Store.open(saved / "store") as store:
        snapshot = Snapshot(store, store.find("latest"))
        assert store.database is not None  # opened when it is first asked for
        before = descriptors()
        monkeypatch.setattr(linux, call, failing)
        with pytest.raises(ArchiverError, match=f"cannot restore to {target}: input/output error"):
            restore(snapshot, snapshot.archives(), str(target), verify=True, listener=ignore)
        assert descriptors() == before
