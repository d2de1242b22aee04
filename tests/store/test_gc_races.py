"""Garbage collection beside backups: whatever comes between what, no chunk goes that somebody needs (P4)."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from archiver.backup.deduplicator import Deduplicator
from archiver.core.locks import lock_range
from archiver.errors import Locked
from archiver.store.gc.collect import collect
from archiver.store.gc.sweep import Sweep
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.sessions import Session
from archiver.store.store import Store
from formats import blob
from formats.blob import BlobEncoder
from formats.index import DynamicIndexWriter
from formats.manifest import FileInfo, Manifest
from tests.random_trees import build_plain, noise
from tests.store.collecting import OLD, forget, gc, make_old, needed, present
from tests.stores import (
    ROOT,
    Heard,
    SetClock,
    chunk_files,
    command,
    damage,
    every_snapshot,
    make_store,
    restored_differences,
    save,
)

pytestmark = pytest.mark.in_memory

DAY = 86400
NOW = 1_900_000_000
NAME = "data.didx"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store")


def content(number: int) -> bytes:
    return noise(number, 100)


def digest(number: int) -> bytes:
    return sha256(content(number)).digest()


def steps(store: Store, group: GroupRef, chunks: list[int], published: list[SnapshotRef]) -> Iterator[None]:
    """A backup of these chunks that pauses between any two things it does to the store."""
    session: Session = store.session()
    deduplicator = Deduplicator(store, session, None)
    try:
        yield
        index, end = DynamicIndexWriter(bytes(16), NOW), 0
        for number in chunks:
            data = content(number)
            if deduplicator.claim(digest(number), len(data)):
                yield
                deduplicator.store(digest(number), data, BlobEncoder(None))
            end += len(data)
            index.add(end, digest(number))
            yield
        deduplicator.flush()
        yield
        entries = index.take()
        file = FileInfo(NAME, "none", end, index.csum)
        Path(session.file(NAME)).write_bytes(index.finish() + entries)

        def manifest(when: int) -> bytes:
            return bytes(blob.encode(Manifest(group.type, group.id, when, (file,), {}, None).encode()))

        ref = session.publish(group, store.clock.now(), "root@pam", manifest)
        published.append(ref)
        yield
        deduplicator.record()
        yield
        store.record(ref)
        yield
    finally:
        deduplicator.close()
        session.close()


class Killed(BaseException):
    """The process of a collection ends here."""


class Stepped:
    """A collection in a thread that goes on from shard to shard when it is told to."""

    def __init__(self, path: Path, clock: SetClock) -> None:
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._kill = self.ended = False
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(path, clock))
        self._thread.start()
        self._paused.acquire()

    def _run(self, path: Path, clock: SetClock) -> None:
        try:
            self._pause()
            with Store.open(path, clock=clock, listener=Heard()) as store:
                current[threading.get_ident()] = self._pause
                collect(store, mode="cutoff")
        except Killed:
            pass
        except BaseException as error:
            self.failure = error
        finally:
            self.ended = True
            self._paused.release()

    def _pause(self) -> None:
        self._paused.release()
        self._go.acquire()
        if self._kill:
            raise Killed

    def step(self) -> None:
        if not self.ended:
            self._go.release()
            self._paused.acquire()

    def kill(self) -> None:
        self._kill = True
        self.step()
        self.finish()

    def finish(self) -> None:
        while not self.ended:
            self.step()
        self._thread.join()
        assert self.failure is None or isinstance(self.failure, Locked), self.failure


current: dict[int, Callable[[], None]] = {}


@pytest.fixture
def stepping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collections of ``Stepped`` pause before each shard, between the shards and what comes after them."""
    real = Sweep._shard

    @contextmanager
    def shard(self: Sweep, number: int) -> Iterator[None]:
        pause = current.get(threading.get_ident())
        if pause is not None:
            pause()
        with real(self, number):
            yield

    monkeypatch.setattr(Sweep, "_shard", shard)


def whole(path: Path) -> None:
    missing = needed(path) - present(path)
    assert not missing, missing


def interleave(path: Path, seed: int) -> int:
    """Random backups, collections, removals, kills, losses of the database and jumps of the clock; how many chunks
    collections have removed."""
    rng = random.Random(seed)
    clock = SetClock(NOW)
    published: list[SnapshotRef] = []
    store = Store.open(path, clock=clock, listener=Heard())
    backups: list[Iterator[None]] = []
    collections: list[Stepped] = []
    removed = 0
    for _ in range(300):
        what = rng.random()
        before = present(path)
        if what < 0.05 and len(backups) < 2:
            chunks = rng.sample(range(12), rng.randint(1, 8))
            backups.append(steps(store, GroupRef("", "host", str(rng.randrange(2))), chunks, published))
        elif what < 0.10 and len(collections) < 2:
            collections.append(Stepped(path, clock))
        elif what < 0.50 and backups:
            chosen = rng.choice(backups)
            if next(chosen, 0) == 0:
                backups.remove(chosen)
        elif what < 0.80 and collections:
            stepped = rng.choice(collections)
            stepped.kill() if rng.random() < 0.02 else stepped.step()
            if stepped.ended:
                stepped.finish()
                collections.remove(stepped)
        elif what < 0.85 and published:
            forget(path, published.pop(rng.randrange(len(published))))
        elif what < 0.89:
            clock.time += rng.choice([1, 3600, 2 * DAY, -2 * DAY, 40 * DAY, -40 * DAY])
        elif what < 0.90 and backups:
            backups.pop(rng.randrange(len(backups))).close()  # type: ignore[attr-defined]
        elif what < 0.91:
            store.rebuild_database()
        removed += len(before - present(path))
        whole(path)
    for backup in backups:
        for _ in backup:
            whole(path)
    for stepped in collections:
        stepped.finish()
    whole(path)
    store.close()
    assert damage(path) == []
    gc(path)
    assert present(path) == needed(path)
    return removed


@pytest.mark.usefixtures("stepping")
def test_some_interleavings(tmp_path: Path) -> None:
    assert sum(interleave(make_store(tmp_path / str(seed)), seed) for seed in range(12)) > 30


@pytest.mark.slow
@pytest.mark.usefixtures("stepping")
@pytest.mark.parametrize("first", range(100, 1100, 100))
def test_many_interleavings(tmp_path: Path, first: int) -> None:
    for seed in range(first, first + 100):
        interleave(make_store(tmp_path / str(seed)), seed)


# -- one race each ---------------------------------------------------------------------------------------------------


def unused_chunks(path: Path, numbers: range) -> None:
    """Chunks that the database knows and nothing refers to, not used for years."""
    published: list[SnapshotRef] = []
    with Store.open(path, listener=Heard()) as store:
        for _ in steps(store, GroupRef("", "host", "old"), list(numbers), published):
            pass
    gc(path)
    forget(path, published[0])
    make_old(path)


def test_a_hit_during_a_collection_keeps_the_chunk(path: Path) -> None:
    unused_chunks(path, range(4))
    published: list[SnapshotRef] = []
    with Store.open(path, listener=Heard()) as store:
        backup = steps(store, GroupRef("", "host", "new"), [0, 1, 7], published)
        for _ in range(2):
            next(backup)
        result = gc(path, mode="cutoff")
        assert result.removed_chunks == 3 and result.kept_chunks == 1
        assert present(path) == {digest(0).hex()}
        for _ in backup:
            pass
    assert len(published) == 1 and damage(path) == []


@pytest.mark.parametrize("jump", [-2 * DAY, -400 * DAY, 2 * DAY])
@pytest.mark.parametrize("inserted", [True, False])
def test_the_clock_jumps_while_a_backup_runs_and_jumps_back(path: Path, jump: int, inserted: bool) -> None:
    """Neither what was found nor what was stored meanwhile looks old afterwards."""
    if not inserted:
        unused_chunks(path, range(4))
    clock = SetClock(int(time.time()) + 400 * DAY)
    published: list[SnapshotRef] = []
    with Store.open(path, clock=clock, listener=Heard()) as store:
        backup = steps(store, GroupRef("", "host", "new"), [0, 1], published)
        next(backup)
        clock.time += jump
        for _ in range(4 if inserted else 2):
            next(backup)
        clock.time -= jump
        wanted = {digest(0).hex(), digest(1).hex()}
        assert wanted <= present(path)
        assert all(file.stat().st_atime >= clock.time for file in chunk_files(path) if file.name in wanted)
        gc(path, mode="cutoff", clock=clock)
        clock.time += 10 * DAY
        gc(path, mode="cutoff", clock=clock)
        assert wanted == present(path)
        for _ in backup:
            pass
    assert damage(path) == []


def test_a_backup_of_days_keeps_what_it_found_first(path: Path) -> None:
    unused_chunks(path, range(4))
    clock = SetClock(NOW)
    published: list[SnapshotRef] = []
    with Store.open(path, clock=clock, listener=Heard()) as store:
        backup = steps(store, GroupRef("", "host", "new"), [0, 1, 2], published)
        for _ in range(3):
            next(backup)
        clock.time += 20 * DAY
        assert gc(path, clock=clock).removed_chunks == 2
        for _ in backup:
            pass
    assert damage(path) == []


def test_touching_waits_for_the_shard_that_is_cleared(path: Path) -> None:
    unused_chunks(path, range(1))
    file = path / ".chunks" / digest(0).hex()[:4] / digest(0).hex()
    with Store.open(path, listener=Heard()) as store:
        touched: list[bool] = []
        status = store.chunks.seen(digest(0))
        assert status is not None
        thread = threading.Thread(target=lambda: touched.append(store.chunks.touch(digest(0), status)))
        with store.chunks.lock.cleared(int(digest(0).hex()[:4], 16)):
            thread.start()
            time.sleep(0.1)
            assert touched == [] and file.stat().st_atime == OLD
            file.unlink()
        thread.join()
        assert touched == [False]
        with store.chunks.lock.used(digest(1)):  # another one is not waited for
            pass


def test_two_collections_exclude_each_other_and_a_pbs(path: Path) -> None:
    with open(path / ".lock", "r+b") as other:
        assert lock_range(other.fileno(), 1, 0, exclusive=True)
        for options in ({}, {"dry_run": True}, {"mode": "cutoff"}):
            with pytest.raises(Locked, match="another garbage collection"):
                gc(path, **options)
    holder = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_SH); print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as pbs:
        assert pbs.stdout is not None and pbs.stdout.readline()
        with pytest.raises(Locked, match="Proxmox Backup Server"):
            gc(path)
        pbs.communicate(b"\n")
    assert gc(path).mode == "immediate"


def test_immediate_needs_the_store_for_itself(path: Path) -> None:
    unused_chunks(path, range(3))
    with Store.open(path) as store, store.session():
        with pytest.raises(Locked, match=r"a backup into .* is running"):
            gc(path, mode="immediate")
        assert gc(path, dry_run=True).mode == "cutoff"
        result = gc(path)
        assert (result.mode, result.reason) == ("cutoff", "a backup is running")


def test_a_writer_that_waits_ends_it_after_the_current_shard(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unused_chunks(path, range(40))
    before = len(present(path))
    sessions: list[Session] = []
    real = Sweep._judge

    def begin() -> None:
        with Store.open(path) as store, store.session() as session:
            sessions.append(session)

    writer = threading.Thread(target=begin)

    def judge(self: Sweep, file: str) -> bool:
        if writer.ident is None:
            writer.start()
            while not self._store.chunks.lock.writer_waits():
                time.sleep(0.001)
        assert sessions == []
        return real(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "_judge", judge)
        result = gc(path)
    writer.join()
    assert len(sessions) == 1
    assert not result.complete and result.removed_chunks == 1 and len(present(path)) == before - 1
    with Store.open(path) as store:
        assert store.database is not None and store.database.check() == []
        assert store.database.statistics()["chunk"] == before - 1
    assert gc(path).removed_chunks == before - 1


# -- processes -------------------------------------------------------------------------------------------------------

_COLLECT = """
import sys
from archiver.store.gc.collect import collect
from archiver.store.store import Store
with Store.open(sys.argv[1]) as store:
    print(collect(store, mode="cutoff").removed_chunks)
"""


def beside(path: Path, source: Path, tmp_path: Path, rounds: int) -> tuple[int, int]:
    """A backup and a collection of the very chunks that it finds, in processes; chunks (removed, there before)."""
    removed = total = 0
    for number in range(rounds):
        saved = save(path, source)
        forget(path, saved.snapshot)
        make_old(path)
        total += len(present(path))
        backup = subprocess.Popen(
            command("--store", path, "backup", f"tree.pxar:{source}", "--id", f"beside-{number}", "--chunk-size", "64"),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        time.sleep(0.1 * random.Random(number).random())
        collection = subprocess.run(
            [sys.executable, "-c", _COLLECT, path], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert collection.returncode == 0, collection.stderr
        _, errors = backup.communicate()
        assert backup.returncode == 0, errors
        removed += int(collection.stdout)
        whole(path)
        assert damage(path) == []
        with Store.open(path) as store:
            (ref,) = every_snapshot(store)
            assert store.database is not None and store.database.check() == []
        assert restored_differences(path, ref, source, tmp_path / f"out-{number}") == []
        forget(path, ref)
    return removed, total


def test_backup_and_collection_side_by_side(path: Path, tmp_path: Path) -> None:
    build_plain(tmp_path / "source", 1, files=300, max_size=20_000)
    (tmp_path / "source/large").write_bytes(noise(1, 16 << 20))
    removed, total = beside(path, tmp_path / "source", tmp_path, 3)
    assert 0 < removed <= total


def test_immediate_collections_beside_backups(path: Path, tmp_path: Path) -> None:
    """They take turns: no one fails."""
    build_plain(tmp_path / "source", 1, files=100, max_size=20_000)
    for number in range(2):
        forget(path, save(path, tmp_path / "source").snapshot)
        backup = command("--store", path, "backup", f"tree.pxar:{tmp_path / 'source'}", "--id", str(number))
        running = [
            subprocess.Popen(each, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for each in (command("--store", path, "gc"), backup)
        ]
        for process in running:
            _, errors = process.communicate()
            assert process.returncode == 0, errors
        whole(path)
    assert damage(path) == []
    gc(path)
    assert present(path) == needed(path)
    assert os.listdir(path / ".archiver/sessions") == []
