"""Garbage collection of a store that nobody else uses: what goes, what stays, what ends it, and what it tells."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archiver.core import disk, linux
from archiver.core.clock import system_random
from archiver.core.locks import DirectoryLock, lock_range
from archiver.errors import ArchiverError, Damaged, Locked, UsageError
from archiver.store.database import records
from archiver.store.database.unused import counts, forget_chunks, numbers_of
from archiver.store.gc.collect import Plan, make_plan
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from tests.golden_store import KEY as GOLDEN_KEY
from tests.golden_store import unpack
from tests.mounts import fill, read_only_view, small_file_system
from tests.random_trees import build_plain, mutate, noise
from tests.store.collecting import OLD, forget, gc, make_old, needed, present
from tests.stores import (
    Ahead,
    Heard,
    Saved,
    SetClock,
    chunk_files,
    damage,
    every_snapshot,
    listing,
    make_store,
    new_chunks,
    restored_differences,
    save,
)

pytestmark = pytest.mark.in_memory

DAY = 86400
DATABASE = Path(".archiver/db")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    build_plain(tmp_path / "source", 1, files=60, max_size=80_000)
    return tmp_path / "source"


@pytest.fixture
def saved(path: Path, source: Path) -> list[Saved]:
    """Four snapshots that have something in common, one of them in another group."""
    found = []
    for seed in range(4):
        mutate(source, seed, 20)
        group = GroupRef("a/b" if seed == 2 else "", "host", f"group-{seed // 3}")
        found.append(save(path, source, group=group))
    return found


def check(path: Path) -> None:
    """Exactly what is needed is there, and the database agrees."""
    assert present(path) == needed(path)
    assert damage(path) == []
    with Store.open(path) as store:
        assert store.database is not None
        assert store.database.check() == []
        assert store.database.statistics()["chunk"] == len(present(path))


# -- what goes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_files", [False, True])
def test_what_only_removed_snapshots_needed_goes_at_once(path: Path, saved: list[Saved], from_files: bool) -> None:
    assert gc(path, from_files=from_files).removed_chunks == 0
    before = present(path)
    for each in (saved[0], saved[2]):
        forget(path, each.snapshot)
    gone = before - needed(path)
    size = sum(file.stat().st_size for file in chunk_files(path) if file.name in gone)
    kept = sum(file.stat().st_size for file in chunk_files(path) if file.name not in gone)
    told = gc(path, dry_run=True, from_files=from_files)
    assert present(path) == before
    result = gc(path, from_files=from_files)
    assert len(gone) > 5
    for found in (told, result):
        assert (found.removed_chunks, found.removed_bytes) == (len(gone), size)
        assert (found.kept_chunks, found.kept_bytes) == (len(before) - len(gone), kept)
        assert (found.pending_chunks, found.bad_chunks, found.complete) == (0, 0, True)
    assert result.mode == "immediate"
    if from_files:
        gc(path)  # which drops the rows
    check(path)


def test_results_as_pbs_reads_them(path: Path, saved: list[Saved]) -> None:
    forget(path, saved[0].snapshot)
    result = gc(path)
    status = path / ".gc-status"
    fields = json.loads(status.read_text())
    assert list(fields) == [
        "upid",
        "index-file-count",
        "index-data-bytes",
        "disk-bytes",
        "disk-chunks",
        "removed-bytes",
        "removed-chunks",
        "pending-bytes",
        "pending-chunks",
        "removed-bad",
        "still-bad",
    ]
    assert fields["index-file-count"] == 6 and fields["upid"] is None
    with Store.open(path) as store:
        sizes = [file.size for ref in every_snapshot(store) for file in store.manifest(ref).files]
    assert fields["index-data-bytes"] == sum(sizes)
    assert fields["disk-chunks"] == result.kept_chunks == len(present(path))
    assert stat.S_IMODE(status.stat().st_mode) == 0o644 and b" " not in status.read_bytes()


def test_everything_goes_with_the_last_snapshot(path: Path, saved: list[Saved], source: Path, tmp_path: Path) -> None:
    for each in saved:
        forget(path, each.snapshot)
    gc(path)
    assert present(path) == set()
    check(path)
    again = save(path, source)
    assert new_chunks(again) == len(present(path)) > 0
    assert restored_differences(path, again.snapshot, source, tmp_path / "out") == []


def test_dry_run_writes_nothing(path: Path, saved: list[Saved], tmp_path: Path) -> None:
    forget(path, saved[0].snapshot)
    gc(path, dry_run=True)  # brings the database up to date
    (path / ".archiver/chunks.lock").unlink()
    before = listing(path)
    choices: list[dict[str, Any]] = [{}, {"from_files": True}, {"mode": "cutoff"}, {"mode": "immediate"}]
    for options in choices:
        assert gc(path, dry_run=True, **options).dry_run
    after = listing(path)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} <= {
        str(path / DATABASE / name) for name in ("", "lock.mdb", "use.lock", "clean.json")
    } | {str(path / DATABASE)}
    with read_only_view(path, tmp_path / "view") as view:
        assert gc(view, dry_run=True).removed_chunks > 0
        with pytest.raises(UsageError, match="read-only"):
            gc(view)


def test_cutoff_looks_at_access_times(path: Path, saved: list[Saved]) -> None:
    forget(path, saved[0].snapshot)
    gone = present(path) - needed(path)
    result = gc(path, mode="cutoff", clock=Ahead())  # as the backups were
    assert (result.removed_chunks, result.pending_chunks) == (0, len(gone))
    now = 1_900_000_000
    edge = now - 1445 * 60
    old, *young = [file for file in chunk_files(path) if file.name in gone]
    os.utime(old, ns=(edge * 10**9 - 1, 0))
    for file in young:
        os.utime(file, ns=(edge * 10**9, 0))
    assert gc(path, mode="cutoff", clock=SetClock(now)).removed_chunks == 1
    assert not old.exists() and all(file.exists() for file in young)
    assert gc(path, mode="cutoff", cutoff=1444, clock=SetClock(now)).removed_chunks == len(young)
    check(path)


# -- the database ----------------------------------------------------------------------------------------------------


def _removed(database: Path, old: Path) -> None:
    shutil.rmtree(database)


def _garbage(database: Path, old: Path) -> None:
    (database / "data.mdb").write_bytes(noise(1, 100_000))


def _earlier(database: Path, old: Path) -> None:
    shutil.rmtree(database)
    shutil.copytree(old, database)


def _cut(database: Path, old: Path) -> None:
    os.truncate(database / "data.mdb", 20_000)


@pytest.mark.parametrize("harm", [_removed, _garbage, _earlier, _cut])
def test_whatever_became_of_the_database(
    path: Path, source: Path, tmp_path: Path, harm: Callable[[Path, Path], None]
) -> None:
    """Also chunks that it does not know any more are found, as every shard is listed then."""
    first = save(path, source)
    shutil.copytree(path / DATABASE, tmp_path / "old")
    mutate(source, 1, 30)
    second = save(path, source)
    mutate(source, 2, 30)
    third = save(path, source)
    for each in (first, third):
        forget(path, each.snapshot)
    before = present(path)
    harm(path / DATABASE, tmp_path / "old")
    result = gc(path)
    assert result.all_shards and result.missing_chunks == 0
    assert result.removed_chunks == len(before - needed(path)) > 5
    check(path)
    assert not gc(path).all_shards
    mutate(source, 3, 5)
    assert restored_differences(path, save(path, source).snapshot, source, tmp_path / "out") == []
    assert second.snapshot.time and damage(path) == []


def _records(path: Path, table: bytes) -> dict[bytes, bytes]:
    with Store.open(path) as store:
        database = store.database
        assert database is not None
        found = database.ask(lambda txn: dict(txn.cursor(db=database.table(table))))
        assert found is not None
        return found


def _rewrite(path: Path, table: bytes, key: bytes, value: bytes) -> None:
    with Store.open(path) as store:
        database = store.database
        assert database is not None
        database.change(lambda txn: txn.put(key, value, db=database.table(table)))


def test_an_index_record_that_is_not_what_was_written_is_not_believed(path: Path, saved: list[Saved]) -> None:
    """Wherever a bit was flipped, and where the record of another index lies in its place."""
    wanted = needed(path)
    entries = _records(path, records.INDEX)
    rng = random.Random(1)
    for key, value in entries.items():
        place = rng.randrange(len(value))
        flipped = value[:place] + bytes([value[place] ^ 1 << rng.randrange(8)]) + value[place + 1 :]
        for wrong in (flipped, entries[rng.choice([other for other in entries if other != key])]):
            _rewrite(path, records.INDEX, key, wrong)
            heard = Heard()
            assert gc(path, heard=heard).removed_chunks == 0
            assert any("index files are read" in text for text in heard.notices)
            assert present(path) == wanted
            with Store.open(path) as store:
                assert store.database is not None  # built anew
            entries = _records(path, records.INDEX)
            break
    check(path)


def test_numbers_that_contradict_each_other_are_not_believed(path: Path, saved: list[Saved]) -> None:
    """A chunk in use whose digest has the number of an unused one looks unused itself."""
    rows = _records(path, records.DIGEST)
    wanted = needed(path)
    forget(path, saved[0].snapshot)
    unused = sorted(wanted - needed(path))
    used = sorted(needed(path))
    other = records.DIGEST_VALUE.unpack(rows[bytes.fromhex(unused[0])])[0]
    digest = bytes.fromhex(used[0])
    _rewrite(path, records.DIGEST, digest, records.DIGEST_VALUE.pack(other, 100))
    gc(path)
    assert needed(path) <= present(path)
    gc(path)
    check(path)


def test_rows_of_files_that_came_back_stay(path: Path, saved: list[Saved], source: Path, tmp_path: Path) -> None:
    """A snapshot is recorded between the marking and the end that refers to a number which had no file."""
    ref = saved[3].snapshot
    kept = tmp_path / "kept"
    (path / ref.path).rename(kept)
    with Store.open(path) as store:
        database = store.database
        assert database is not None
        before = counts(database)
        assert before is not None
        alive = needed(path)
        kept.rename(path / ref.path)
        own = sorted(needed(path) - alive)
        digests = np.frombuffer(b"".join(map(bytes.fromhex, own)), np.uint8).reshape(-1, 32)
        numbers = numbers_of(database, digests)
        assert numbers is not None and len(numbers) > 2
        store.record(ref)
        forget_chunks(database, numbers, before)
        assert database.check() == []
        again = numbers_of(database, digests)
        assert again is not None and (again == numbers).all()
    check(path)


# -- what counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["host/group-0/2001-02-03T04:05:06Z", "host/group-0/old", "elsewhere/deep/down", ""])
@pytest.mark.parametrize("with_database", [True, False])
def test_every_index_counts_wherever_it_lies(
    path: Path, saved: list[Saved], place: str, with_database: bool, source: Path
) -> None:
    """An unfinished snapshot, or what somebody copied: PBS counts all that is not hidden."""
    index = path / saved[0].snapshot.path / "tree.ppxar.didx"
    (path / place).mkdir(parents=True, exist_ok=True)
    shutil.copy(index, path / place / "copy.didx")
    forget(path, saved[0].snapshot)
    if not with_database:
        shutil.rmtree(path / DATABASE)
    before = present(path)
    assert gc(path).removed_chunks == len(before - needed(path)) > 0
    assert present(path) == needed(path)


def test_an_index_that_the_manifest_does_not_name_counts_too(path: Path, saved: list[Saved]) -> None:
    index = path / saved[0].snapshot.path / "tree.ppxar.didx"
    shutil.copy(index, path / saved[1].snapshot.path / "more.didx")
    forget(path, saved[0].snapshot)
    gc(path)
    assert present(path) == needed(path)


def _harmed(index: Path) -> None:
    data = bytearray(index.read_bytes())
    data[4096 + 20] ^= 1
    index.write_bytes(data)


def _empty(index: Path) -> None:
    index.write_bytes(b"")


def _link(index: Path) -> None:
    index.rename(index.with_name("moved.blob"))
    index.symlink_to("moved.blob")


def _fifo(index: Path) -> None:
    index.unlink()
    os.mkfifo(index)


@pytest.mark.parametrize("harm", [_harmed, _empty, _link, _fifo, Path.unlink])
def test_an_index_that_cannot_be_read_ends_it_before_anything_is_removed(
    path: Path, saved: list[Saved], harm: Callable[[Path], None]
) -> None:
    forget(path, saved[0].snapshot)
    index = path / saved[1].snapshot.path / "tree.ppxar.didx"
    harm(index)
    before = present(path)
    for from_files in (True, False):
        shutil.rmtree(path / DATABASE, ignore_errors=True)
        with pytest.raises(Damaged, match=r"nothing is removed: .*tree\.ppxar\.didx cannot be read") as caught:
            gc(path, from_files=from_files)
        assert caught.value.hint
        assert present(path) == before
    forget(path, saved[1].snapshot)
    assert gc(path).removed_chunks == len(before - needed(path)) > 0


@pytest.mark.parametrize("harm", [_harmed, _empty])
def test_the_database_knows_what_a_damaged_index_needed(
    path: Path, saved: list[Saved], harm: Callable[[Path], None]
) -> None:
    wanted = needed(path)
    harm(path / saved[1].snapshot.path / "tree.ppxar.didx")
    assert gc(path).removed_chunks == 0
    assert present(path) == wanted


# -- what else lies in a store ---------------------------------------------------------------------------------------


def test_chunks_set_aside(path: Path, saved: list[Saved]) -> None:
    """One stays while a snapshot needs it and there is no good one."""
    with Store.open(path) as store:
        lost, again, unused = (bytes.fromhex(name) for name in sorted(needed(path))[:3])
        data = Path(store.layout.chunk(again.hex())).read_bytes()
        for digest in (lost, again):
            store.chunks.set_aside(digest)
        Path(store.layout.chunk(again.hex())).write_bytes(data)
        del unused
    stranger = path / ".chunks" / lost.hex()[:4] / f"{'0' * 64}.3.bad"
    stranger.write_bytes(b"x")
    heard = Heard()
    result = gc(path, heard=heard)
    assert (result.removed_bad, result.bad_chunks, result.missing_chunks) == (2, 1, 1)
    assert any("1 chunks that snapshots need are missing" in text for text in heard.notices)
    assert [file.name for file in path.glob(".chunks/*/*.bad")] == [f"{lost.hex()}.0.bad"]
    assert gc(path).all_shards, "as long as there is one it is looked for"
    for each in saved:
        if (path / each.snapshot.path).exists():
            forget(path, each.snapshot)
    assert gc(path).removed_bad == 1
    assert not gc(path).all_shards


def test_leftovers_of_writers(path: Path, saved: list[Saved]) -> None:
    shard = path / ".chunks/abcd"
    shard.mkdir(exist_ok=True)
    name = "abcd" + "0" * 60
    temporary = [shard / f"{name}.tmp_00aa11", shard / f"{name}.tmp"]
    strange = [shard / "notes", shard / f"{name}.tmp_x.y", path / ".chunks/readme", shard / ("abcd" + "X" * 60)]
    snapshot = path / saved[1].snapshot.path
    old = [snapshot / "index.json.tmp_Ab12Cd", snapshot / "x.tmp_didx", path / "host/owner.tmp_01234567"]
    young = snapshot / "index.json.blob.tmp_01234567"
    for file in (*temporary, *strange, *old, young):
        file.write_bytes(b"x")
    for file in old:
        os.utime(file, (OLD, OLD))
    (path / ".archiver/unlisted").touch()
    assert gc(path, mode="cutoff").removed_leftovers == len(old)
    assert not any(file.exists() for file in old) and all(file.exists() for file in temporary)
    (path / ".archiver/unlisted").touch()
    assert gc(path).removed_leftovers == len(temporary)
    assert all(file.exists() for file in (*strange, young))
    assert not (path / ".archiver/unlisted").exists()


def test_chunks_of_a_killed_backup_are_found(path: Path, saved: list[Saved], source: Path) -> None:
    """The database was not told of them; the next session removes what else is left, and says so."""
    with Store.open(path) as store, store.session() as session:
        name = system_random(32).hex()
        os.makedirs(store.layout.shard(name), exist_ok=True)
        Path(store.layout.chunk(name)).write_bytes(b"lost")
        dead = Path(session.path).with_name("2001-02-03T04:05:06Z-00000000")
        (dead / "snapshot").mkdir(parents=True)
    gc(path)  # the session above published nothing
    assert name not in present(path)
    assert dead.exists()
    os.makedirs(path / ".chunks" / name[:4], exist_ok=True)
    (path / ".chunks" / name[:4] / name).write_bytes(b"lost")
    assert gc(path).all_shards and name not in present(path)
    save(path, source)
    assert not dead.exists() and gc(path).all_shards
    assert not gc(path).all_shards


def test_every_shard_is_listed_once_a_week(path: Path, saved: list[Saved]) -> None:
    clock = SetClock(2_000_000_000)
    gc(path, clock=clock)
    for later, listed in ((7 * DAY, False), (7 * DAY + 1, True), (7 * DAY + 2, False), (-1, True)):
        clock.time = 2_000_000_000 + later
        assert gc(path, clock=clock).all_shards is listed, later


@pytest.mark.parametrize("days", [1, 29, 31])
@pytest.mark.parametrize("from_files", [False, True])
def test_what_an_interrupted_session_stored(path: Path, saved: list[Saved], days: int, from_files: bool) -> None:
    """An index under construction has no header yet, and maybe half an entry at its end."""
    session = path / ".archiver/sessions/2001-02-03T04:05:06Z-00000000"
    (session / "snapshot").mkdir(parents=True)
    index = (path / saved[0].snapshot.path / "tree.ppxar.didx").read_bytes()
    (session / "snapshot/tree.ppxar.didx").write_bytes(bytes(4096) + index[4096:-17])
    (session / "resume.json").write_bytes(b"{}")
    began = int(session.stat().st_mtime)
    forget(path, saved[0].snapshot)
    all_of_it = {index[place : place + 32].hex() for place in range(4104, len(index), 40)}
    last = index[-32:].hex()
    gone = present(path) - needed(path)
    assert last in gone and len(all_of_it & gone) > 2
    gc(path, from_files=from_files, clock=SetClock(began + days * DAY))
    expected = needed(path) | ((all_of_it - {last}) if days < 30 else set())
    assert present(path) == expected


def interrupted_session(path: Path, ref: SnapshotRef, second: int) -> Path:
    """It had stored all that this snapshot needs."""
    session = path / f".archiver/sessions/2001-02-03T04:05:0{second}Z-00000000"
    (session / "snapshot").mkdir(parents=True)
    shutil.copy(path / ref.path / "tree.ppxar.didx", session / "snapshot")
    (session / "resume.json").write_bytes(b"{}")
    return session


def test_giving_up_interrupted_sessions(path: Path, saved: list[Saved]) -> None:
    """Not before the collection has the store, and has seen that it can be done; and told by a dry run."""
    sessions = [interrupted_session(path, saved[0].snapshot, second) for second in (6, 7)]
    forget(path, saved[0].snapshot)
    with open(path / ".lock", "r+b") as other:
        assert lock_range(other.fileno(), 1, 0, exclusive=True)
        with pytest.raises(Locked):
            gc(path, interrupted=True)
    with Store.open(path) as store, store.session(), pytest.raises(Locked):
        gc(path, interrupted=True, mode="immediate")
    index = path / saved[1].snapshot.path / "tree.ppxar.didx"
    content = index.read_bytes()
    index.write_bytes(b"")
    with pytest.raises(Damaged, match="nothing is removed"):
        gc(path, interrupted=True, from_files=True)
    index.write_bytes(content)
    assert all((session / "resume.json").exists() for session in sessions)
    assert gc(path).interrupted == []
    would = gc(path, interrupted=True, dry_run=True)
    assert all((session / "resume.json").exists() for session in sessions)
    result = gc(path, interrupted=True)
    assert result.interrupted == would.interrupted == [session.name for session in sessions]
    assert result.removed_chunks == would.removed_chunks > 2
    assert not any(session.exists() for session in sessions) and present(path) == needed(path)
    assert not gc(path).all_shards, "what they had stored is looked for once more"


def test_an_interrupted_session_that_is_gone_on_with_stays(
    path: Path, saved: list[Saved], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when that begins while the collection marks."""
    early, late, left = (interrupted_session(path, saved[0].snapshot, second) for second in (6, 7, 8))
    with ExitStack() as held:
        held.enter_context(DirectoryLock(str(early)))

        def marked(*arguments: Any) -> Plan:
            plan = make_plan(*arguments)
            held.enter_context(DirectoryLock(str(late)))
            return plan

        monkeypatch.setattr("archiver.store.gc.collect.make_plan", marked)
        assert gc(path, interrupted=True, mode="cutoff").interrupted == [left.name]
    assert (early / "resume.json").exists() and (late / "resume.json").exists() and not left.exists()


# -- stores of PBS, disks --------------------------------------------------------------------------------------------


def test_store_made_by_pbs(tmp_path: Path) -> None:
    """What is referred to stays; what is not goes after the cutoff, as its owner says that a PBS may share it."""
    path = unpack(tmp_path)
    if os.geteuid() == 0:
        os.chown(path / ".chunks", 34, 34)
    mode = None if os.geteuid() == 0 else "cutoff"
    before = present(path)
    assert before == needed(path)
    result = gc(path, mode=mode)
    assert (result.mode, result.removed_chunks, result.pending_chunks) == ("cutoff", 0, 0)
    assert present(path) == before and damage(path, GOLDEN_KEY) == []
    for snapshot in ("host/alpha/2023-11-14T22:13:20Z", "vm/100", "ns/one/ns"):
        shutil.rmtree(path / snapshot)
    gone = before - needed(path)
    for file in chunk_files(path):
        os.utime(file)
    result = gc(path, mode=mode)
    assert (result.removed_chunks, result.pending_chunks) == (0, len(gone))
    make_old(path)
    result = gc(path, mode=mode)
    assert (result.removed_chunks, result.pending_chunks) == (len(gone), 0) and len(gone) > 3
    assert present(path) == needed(path) and damage(path, GOLDEN_KEY) == []


def test_unshared_only_on_a_file_system_of_this_machine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "filesystem_type", lambda fd: 0x6969)  # NFS
    result = gc(path)
    assert result.mode == "cutoff" and "other machines" in result.reason
    assert gc(path, mode="immediate").mode == "immediate"


def test_cutoff_is_refused_where_access_times_are_not_kept(
    path: Path, saved: list[Saved], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(path, saved[0].snapshot)
    make_old(path)
    before = present(path)
    real = os.utime
    monkeypatch.setattr(os, "utime", lambda fd, **times: real(fd) if isinstance(fd, int) else None)
    with pytest.raises(ArchiverError, match="does not keep access times"):
        gc(path, mode="cutoff")
    assert present(path) == before
    assert gc(path).removed_chunks > 0


def test_removed_snapshots_are_durable_before_the_first_chunk_goes(
    path: Path, saved: list[Saved], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    unlink, syncfs = os.unlink, linux.syncfs

    def remove(name: str, **rest: int) -> None:
        if len(os.path.basename(name)) == 64:
            done.append("remove")
        unlink(name, **rest)

    def sync(fd: int) -> None:
        done.append("sync")
        syncfs(fd)

    monkeypatch.setattr(disk, "syncfs", sync)
    monkeypatch.setattr(os, "unlink", remove)
    forget(path, saved[0].snapshot)
    removed = gc(path).removed_chunks
    assert done == ["sync"] + ["remove"] * removed and removed > 5
    assert gc(path).removed_chunks == 0 and done.count("sync") == 1, "nothing to remove, nothing to wait for"


def test_a_failing_removal_ends_it(path: Path, saved: list[Saved], monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.unlink

    def fails(name: str, **rest: int) -> None:
        if len(os.path.basename(name)) == 64:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(name, **rest)

    forget(path, saved[0].snapshot)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fails)
        with pytest.raises(ArchiverError, match=r"cannot remove .*: input/output error"):
            gc(path)
    gc(path)
    check(path)


@pytest.mark.parametrize("with_database", [True, False])
def test_full_disk(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, with_database: bool) -> None:
    """Not a byte is free, and it frees."""
    with small_file_system(tmp_path, 24 << 20) as place:
        monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))  # so that the database is in the store
        path = make_store(place / "store")
        first = save(path, source).snapshot
        (tmp_path / "more").mkdir()
        (tmp_path / "more/large").write_bytes(noise(5, 4 << 20))
        second = save(path, tmp_path / "more", group=GroupRef("", "host", "more")).snapshot
        assert (path / DATABASE / "data.mdb").exists()
        if not with_database:
            shutil.rmtree(path / DATABASE)
        fill(place)
        forget(path, second)
        fill(place)
        gone = present(path) - needed(path)
        assert gc(path).removed_chunks == len(gone) > 30
        assert present(path) == needed(path)
        (place / "filler").unlink()
        gc(path)
        check(path)
        assert restored_differences(path, first, source, tmp_path / "out") == []
