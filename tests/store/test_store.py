"""Making and opening stores, sessions, groups and snapshots as the directories show them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import threading
import zlib
from pathlib import Path

import pytest

from archiver.cli.main import run
from archiver.core.disk import Disk
from archiver.core.locks import DirectoryLock, lock_range
from archiver.errors import ArchiverError, Damaged, Locked, NoSpace, NotFound, TargetAbsent, TooNew, UsageError
from archiver.store import sessions
from archiver.store.layout import GroupRef, Layout, SnapshotRef
from archiver.store.snapshots import read_manifest_json, read_small
from archiver.store.store import Store
from formats import blob
from formats.manifest import MAX_TEXT
from formats.naming import format_time
from tests.golden_store import unpack
from tests.random_trees import build_plain
from tests.stores import (
    GROUP,
    Heard,
    SetClock,
    damage,
    every_snapshot,
    listing,
    new_chunks,
    restored_differences,
    save,
    save_into,
)

NOW = 1_900_000_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    build_plain(tmp_path / "source", 2, files=30, max_size=50_000)
    return tmp_path / "source"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Store.create(tmp_path / "store")
    return tmp_path / "store"


def modes(path: Path) -> dict[str, int]:
    return {str(entry.relative_to(path)): stat.S_IMODE(entry.lstat().st_mode) for entry in path.rglob("*")}


# -- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_modes_whatever_the_umask(tmp_path: Path, source: Path, umask: int) -> None:
    """What a PBS demands before it adopts a store (spec datastore.md 3.2), and nobody else looks into what is ours."""
    path = tmp_path / "parent" / "store"
    os.umask(umask)
    try:
        Store.create(path)
        save(path, source, group=GroupRef("a/b", "ct", "7"))
    finally:
        os.umask(0o022)
    found = modes(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert found[".lock"] == 0o644
    for name, mode in found.items():
        if name == ".archiver":
            assert mode == 0o700
        elif name == ".chunks":
            assert mode == 0o750
        elif name.startswith(".archiver/"):
            assert mode & 0o022 == 0, name
        elif name.startswith(".chunks/"):
            assert mode == (0o750 if len(name) == len(".chunks/0000") else 0o644), name
        else:
            assert mode == (0o755 if (path / name).is_dir() else 0o644), name
    group = path / "ns" / "a" / "ns" / "b" / "ct" / "7"
    assert (group / "owner").read_bytes() == b"root@pam\n"


def test_missing_lock_file_is_made_with_its_mode(path: Path, source: Path) -> None:
    (path / ".lock").unlink()
    os.umask(0o077)
    save(path, source)
    assert stat.S_IMODE((path / ".lock").stat().st_mode) == 0o644


def test_create_with_all_shards(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", name="complete", complete_shards=True)
    shards = sorted(entry.name for entry in os.scandir(tmp_path / "store" / ".chunks"))
    assert shards == [f"{number:04x}" for number in range(65536)]
    assert json.loads((tmp_path / "store" / ".archiver" / "store.json").read_text())["name"] == "complete"


# -- creating and opening --------------------------------------------------------------------------------------------


def test_create_refuses_a_place_in_use(tmp_path: Path, path: Path) -> None:
    with pytest.raises(UsageError, match="already holds a store"):
        Store.create(path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="not empty"):
        Store.create(tmp_path / "full")
    with pytest.raises(UsageError, match="not a directory"):
        Store.create(tmp_path / "full" / "file")
    assert os.listdir(tmp_path / "full") == ["file"]
    (tmp_path / "hidden" / "lost+found").mkdir(parents=True)
    (tmp_path / "hidden" / ".trash").mkdir()
    Store.create(tmp_path / "hidden")


@pytest.mark.parametrize("name", ["", "ab", "x" * 33, ".abc", "a/b", "a b"])
def test_create_refuses_a_bad_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        Store.create(tmp_path / "store", name=name)
    assert not (tmp_path / "store").exists()


def test_open_tells_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TargetAbsent):
        Store.open(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound):
        Store.open(tmp_path / "empty")


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"schema": 1}', b'{"schema":1,"uuid":"x","name":"y"}', b"[" * 9999]
)
def test_damaged_identity(path: Path, text: bytes) -> None:
    (path / ".archiver" / "store.json").write_bytes(text)
    with pytest.raises(Damaged, match=r"store\.json"):
        Store.open(path)


def test_store_of_a_later_version(path: Path) -> None:
    identity = path / ".archiver" / "store.json"
    identity.write_text(json.dumps({**json.loads(identity.read_text()), "schema": 99}))
    with pytest.raises(TooNew):
        Store.open(path)


def test_pbs_store_gets_one_identity_however_many_write(tmp_path: Path) -> None:
    path = unpack(tmp_path)
    opened = [Store.open(path) for _ in range(6)]
    assert all(store.identity is None for store in opened)
    threads = [threading.Thread(target=lambda store=store: store.session().close()) for store in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in opened:
        store.close()
    with Store.open(path) as again:
        assert again.identity is not None
        assert {store.uuid for store in opened} == {again.uuid}
    assert stat.S_IMODE((path / ".archiver").stat().st_mode) == 0o700


def test_pbs_store_is_not_written_by_whoever_reads(tmp_path: Path, source: Path) -> None:
    path = unpack(tmp_path)
    before = listing(path)
    for command in (
        ["snapshots"],
        ["verify", "--read-only"],
        ["status"],
        ["db", "check"],
        ["db", "stats"],
        ["db", "rebuild"],
    ):
        assert run(["--store", str(path), "-q", *command], False) in (0, 20), command
    with Store.open(path) as store:
        known = store.uuid
        assert store.database is not None and store.own_directories()
    assert listing(path) == before
    with Store.open(path) as store:
        assert store.uuid == known
        assert store.database is not None
        result = save_into(store, source)
        assert store.uuid != known
        assert store.database.directory == str(path / ".archiver" / "db")
        assert result.snapshot.path in store.database.stamps()
        assert store.database.check() == []


def test_pbs_store_is_indexed_at_first_use_and_continued(tmp_path: Path, source: Path) -> None:
    path = unpack(tmp_path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    heard = Heard()
    with Store.open(path, listener=heard) as store:
        assert store.database is not None
        recorded = set(store.database.stamps())
        assert recorded == {ref.path for ref in every_snapshot(store)}
        assert store.database.check() == []
    assert heard.notices == [f"reading {len(recorded)} snapshots into a new database"]
    alpha = GroupRef("", "host", "alpha")
    result = save(path, source, group=alpha)
    with Store.open(path) as store:
        assert store.newest(alpha) == result.snapshot
        assert store.database is not None
        assert set(store.database.stamps()) == recorded | {result.snapshot.path}
    assert {file: file.read_bytes() for file in before} == before
    assert restored_differences(path, result.snapshot, source, tmp_path / "out") == []


# -- sessions --------------------------------------------------------------------------------------------------------


def test_session_leaves_nothing(path: Path) -> None:
    before = set(path.rglob("*"))
    with Store.open(path) as store, store.session() as session:
        assert Path(session.snapshot_path).is_dir()
        assert stat.S_IMODE(os.stat(session.path).st_mode) == 0o700
    assert set(path.rglob("*")) - before == {path / ".archiver" / name for name in ("sessions", "reserve")}


@pytest.mark.parametrize("failing", ["rename", "chmod", "writev", "mkdir"])
def test_session_that_cannot_be_registered_leaves_nothing(
    path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it hold a lock."""
    call = getattr(os, failing)

    def full(*arguments: object) -> object:
        if failing in ("chmod", "mkdir") and not str(arguments[0]).endswith("snapshot"):
            return call(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    open_files = os.listdir("/proc/self/fd")
    with Store.open(path) as store:
        with monkeypatch.context() as patch, pytest.raises(NoSpace):
            patch.setattr(os, failing, full)
            store.session()
        assert os.listdir(path / ".archiver" / "sessions") == []
        assert os.listdir("/proc/self/fd") == open_files


def test_sync_error_after_the_rename_leaves_a_complete_snapshot(
    path: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one failure after which a snapshot is visible."""
    save(path, source)
    sync = Disk.sync_directory

    def fails(self: Disk, directory: str) -> None:
        if directory == str(path / GROUP.path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(self, directory)

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "sync_directory", fails)
        with pytest.raises(ArchiverError, match="cannot publish"):
            save(path, source)
    with Store.open(path) as store:
        _, second = every_snapshot(store)
    assert damage(path) == []
    assert restored_differences(path, second, source, tmp_path / "out") == []


@pytest.mark.parametrize("extra", [0, 1])
def test_largest_manifest(path: Path, source: Path, extra: int) -> None:
    """What the codec takes is what is read, to the byte."""
    ref = save(path, source).snapshot
    text = b"{" + bytes(MAX_TEXT + extra - 2).replace(b"\0", b" ") + b"}"
    (path / ref.path / "index.json.blob").write_bytes(blob.PLAIN_MAGIC + zlib.crc32(text).to_bytes(4, "little") + text)
    if extra:
        with pytest.raises(Damaged, match="too large"):
            read_manifest_json(Layout(str(path)), ref)
    else:
        assert read_manifest_json(Layout(str(path)), ref) == text


def test_sessions_run_side_by_side_and_dead_ones_are_removed(path: Path) -> None:
    dead = path / ".archiver" / "sessions" / "2020-01-01T00:00:00Z-00000000"
    (dead / "snapshot").mkdir(parents=True)
    (dead / "snapshot" / "a.didx").write_bytes(b"half")
    (dead / "spill-x").mkdir()
    with Store.open(path) as store, store.session() as one, store.session() as two:
        assert sorted(os.listdir(dead.parent)) == sorted([one.id, two.id])
        with Store.open(path) as other, other.session() as three:
            assert len(os.listdir(dead.parent)) == 3
            assert three.id not in (one.id, two.id)


def test_unregistered_sessions_are_left_alone_while_they_are_young(path: Path) -> None:
    place = path / ".archiver" / "sessions"
    for name in (".new-young", ".new-old"):
        (place / name).mkdir(parents=True)
    os.utime(place / ".new-old", (1, 1))
    with Store.open(path) as store, store.session() as session:
        assert sorted(os.listdir(place)) == [".new-young", session.id]


def test_session_that_registers_while_another_looks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between listing and looking, a directory of another process gets its final name, or goes."""
    place = path / ".archiver" / "sessions"
    (place / ".new-other").mkdir(parents=True)
    scandir = os.scandir

    def and_then_it_goes(where: str) -> object:
        with scandir(where) as entries:
            found = list(entries)
        if where == str(place) and (place / ".new-other").exists():
            (place / ".new-other").rmdir()

        class Listed(list[os.DirEntry[str]]):
            def __enter__(self) -> Listed:
                return self

            def __exit__(self, *arguments: object) -> None:
                pass

        return Listed(found)

    monkeypatch.setattr(os, "scandir", and_then_it_goes)
    with Store.open(path) as store, store.session() as session:
        assert os.path.isdir(session.path)


def test_garbage_collection_and_backup_exclude_each_other(path: Path, source: Path) -> None:
    fd = os.open(path / ".lock", os.O_RDWR)
    try:
        assert lock_range(fd, 0, 0, exclusive=True)
        with pytest.raises(Locked, match="garbage collection"):
            save(path, source)
        assert lock_range(fd, 1, 0, exclusive=True)
    finally:
        os.close(fd)
    with Store.open(path) as store, store.session():
        fd = os.open(path / ".lock", os.O_RDWR)
        try:
            assert not lock_range(fd, 0, 0, exclusive=True)
            assert lock_range(fd, 1, 0, exclusive=True)
        finally:
            os.close(fd)
    assert new_chunks(save(path, source)) > 0


def test_locked_group_is_exit_11_and_nothing_is_visible(
    path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = save(path, source)
    monkeypatch.setattr(sessions, "_GROUP_WAIT", 0.0)
    group = path / GROUP.path
    with DirectoryLock(str(group)):
        assert run(["--store", str(path), "backup", str(source), "--id", GROUP.id], False) == 11
    assert "locked" in capsys.readouterr().err
    with Store.open(path) as store:
        assert every_snapshot(store) == [first.snapshot]
    save(path, source)  # goes on where that one ended
    assert os.listdir(path / ".archiver" / "sessions") == []


# -- groups and snapshots --------------------------------------------------------------------------------------------


def test_time_not_later_than_the_newest_is_moved(path: Path, source: Path) -> None:
    clock = SetClock(NOW)
    heard = Heard()
    got = [save(path, source, time=when, clock=clock, heard=heard).snapshot.time for when in (NOW, NOW, 5, NOW + 9)]
    assert got == [NOW, NOW + 1, NOW + 2, NOW + 9]
    assert len(heard.notices) == 2
    assert all(format_time(when) in text for when, text in zip(got[1:3], heard.notices, strict=True))
    assert damage(path) == []


def test_unfinished_snapshot_counts_for_the_time(path: Path, source: Path) -> None:
    """What a PBS left unfinished is never written into."""
    unfinished = path / GROUP.path / format_time(NOW)
    unfinished.mkdir(parents=True)
    assert save(path, source, time=NOW).snapshot.time == NOW + 1
    assert list(unfinished.iterdir()) == []


def test_owner_of_an_existing_group_stays(path: Path, source: Path) -> None:
    (path / GROUP.path).mkdir(parents=True)
    (path / GROUP.path / "owner").write_bytes(b"me@pbs!token\n")
    save(path, source)
    with Store.open(path) as store:
        assert store.owner(GROUP) == "me@pbs!token"
    assert (path / GROUP.path / "owner").read_bytes() == b"me@pbs!token\n"


@pytest.mark.parametrize("content", [b"", b"\n", None])
def test_missing_owner_is_none(path: Path, content: bytes | None) -> None:
    (path / GROUP.path).mkdir(parents=True)
    if content is not None:
        (path / GROUP.path / "owner").write_bytes(content)
    with Store.open(path) as store:
        assert store.owner(GROUP) is None


def test_namespaces_and_groups_are_listed_in_order_and_impossible_names_passed_over(path: Path) -> None:
    for name in ("ns/b/ns/c/host/x", "ns/a/vm/9", "ns/a/ct/z", "host/10", "host/9", "ns/-x/host/y", "ns/b/host/-no"):
        (path / name / format_time(NOW)).mkdir(parents=True)
    (path / "ns" / "file").write_bytes(b"")
    (path / "host" / "file").write_bytes(b"")
    (path / "host" / "9" / "2020-99-99T00:00:00Z").mkdir()
    (path / "host" / "9" / "notes").write_bytes(b"")
    (path / "host" / "link").symlink_to("9")
    with Store.open(path) as store:
        assert list(store.namespaces()) == ["", "a", "b", "b/c"]
        assert [str(group) for group in store.groups()] == ["host/10", "host/9"]
        assert [str(group) for group in store.groups("a")] == ["ns/a/ct/z", "ns/a/vm/9"]
        assert store.times(GroupRef("", "host", "9")) == [NOW]
        assert list(store.namespaces("b")) == ["b", "b/c"]


def test_unfinished_and_unreadable_snapshots_are_listed_for_what_they_are(path: Path, source: Path) -> None:
    good = [save(path, source, time=NOW + number).snapshot for number in range(5)]
    files = [path / ref.path / "index.json.blob" for ref in good]
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-1])
    shutil.copy(files[0], files[3])
    files[4].unlink()
    files[4].mkdir()
    with Store.open(path) as store:
        infos = [store.info(ref) for ref in good]
        assert [(info.finished, info.problem is not None) for info in infos] == [
            (True, False),
            (False, False),
            (False, True),
            (False, True),
            (False, True),
        ]
        assert "belongs to another snapshot" in str(infos[3].problem)
        with pytest.raises(NotFound, match="unfinished"):
            store.manifest(good[1])
        assert store.find("host/test").time == NOW + 4
    assert run(["--store", str(path), "snapshots"], False) == 0
    result = save(path, source)
    assert new_chunks(result) == 0


def test_find(path: Path, source: Path) -> None:
    first = save(path, source, time=NOW).snapshot
    second = save(path, source, time=NOW + 1).snapshot
    (path / GROUP.path / format_time(NOW + 2)).mkdir()
    nested = save(path, source, group=GroupRef("a", "ct", "1"), time=NOW + 9).snapshot
    with Store.open(path) as store:
        assert store.find("latest") == second
        assert store.find("host/test/") == second
        assert store.find(str(first)) == first
        assert store.find("latest", "a") == nested == store.find("ct/1", "a") == store.find("ns/a/ct/1")
        for text in ("ct/1", "host/none", str(SnapshotRef(GROUP, 5))):
            with pytest.raises(NotFound):
                store.find(text)
        for text in ("", "host", "x/y", "host/test/yesterday", "ns/a", "host/../x", "host/-x"):
            with pytest.raises((UsageError, NotFound)) as caught:
                store.find(text)
            assert caught.type is UsageError, text


# -- read-only and unreadable ----------------------------------------------------------------------------------------


def test_read_only_option_writes_nothing_into_the_store(path: Path, source: Path, tmp_path: Path) -> None:
    saved = save(path, source)
    before = listing(path)
    for command in (["snapshots"], ["groups"], ["files", "latest"], ["ls", "latest"], ["verify"], ["status"]):
        assert run(["--store", str(path), "--read-only", *command], False) == 0, command
    assert run(["--store", str(path), "--read-only", "restore", "latest", str(tmp_path / "out")], False) == 0
    with Store.open(path, read_only=True) as store, pytest.raises(UsageError, match="read-only"):
        save_into(store, source)
    assert listing(path) == before
    assert saved.result.errors == []


def test_group_that_cannot_be_read_does_not_stop_a_backup(
    path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's group in a shared store: listing it fails, a backup of one's own goes on."""
    locked = path / "host" / "locked"
    locked.mkdir(parents=True)
    scandir = os.scandir

    def refused(where: str) -> object:
        if where == str(locked):
            raise PermissionError(13, "Permission denied")
        return scandir(where)

    monkeypatch.setattr(os, "scandir", refused)
    heard = Heard()
    result = save(path, source, heard=heard)
    assert [text for text in heard.notices if "not up to date" in text and "locked" in text]
    with Store.open(path) as store:
        assert store.times(GROUP) == [result.snapshot.time]
        with pytest.raises(ArchiverError, match="locked"):
            every_snapshot(store)


def test_small_files_are_read_whole(tmp_path: Path) -> None:
    """Also one that has no size."""
    (tmp_path / "file").write_bytes(bytes(100_000))
    assert read_small(str(tmp_path / "file"), 100_000) == bytes(100_000)
    assert b"\n" in read_small("/proc/self/status", 1 << 20) and len(read_small("/proc/self/status", 10)) == 10
    with pytest.raises(Damaged, match="too large"):
        read_small(str(tmp_path / "file"), 99_999)
    with pytest.raises(Damaged, match="not a regular file"):
        read_small(str(tmp_path), 10)
