"""Random runs of everything that keeps a store in order, beside each other and beside backups, against a dictionary.

An action may be killed, interrupted by Ctrl-C or struck by an error of the disk at any of its system calls, and while a
backup or sync stores chunks another action may come in between. Whatever happens, a published snapshot restores
exactly, or it needs a chunk that the test has damaged, and a verification names it.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import archiver.rescue
from archiver.backup.run import CryptMode, Mode
from archiver.browse.verify import VerifyOptions, verify
from archiver.core.clock import Clock
from archiver.core.events import ignore
from archiver.errors import ArchiverError, Locked, NoSpace, Skipped
from archiver.heal import plan as heal_plan
from archiver.heal import run as heal_run
from archiver.heal.candidates import OtherStore
from archiver.store.chunks import ChunkDamaged, ChunkStore
from archiver.store.gc.collect import collect
from archiver.store.labels import protect
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.namespaces import move, plan_move
from archiver.store.prune import Keep
from archiver.store.removal import RemovalPlan, plan_forget, remove
from archiver.store.retention import Retention, plan_prune
from archiver.store.store import Store
from archiver.sync.partners import open_target, remember
from archiver.sync.plan import SyncOptions, make_plan
from archiver.sync.run import carry_out
from formats.crypt import CryptConfig
from formats.index import decode_index
from tests import golden_store
from tests.compare import differences
from tests.mounts import small_file_system
from tests.random_trees import build_plain, mutate
from tests.store.collecting import make_old
from tests.stores import (
    KEY,
    Heard,
    bring_back,
    chunk_files,
    every_snapshot,
    make_store,
    restored_differences,
    save_into,
)
from tests.sync.pair import find

DAY = 86400
GROUPS: list[tuple[GroupRef, Mode, CryptMode]] = [
    (GroupRef("", "host", "data"), "data", "none"),
    (GroupRef("", "host", "meta"), "metadata", "none"),
    (GroupRef("inner", "host", "meta"), "metadata", "none"),
    (GroupRef("inner", "host", "secret"), "metadata", "encrypt"),
    (GroupRef("", "host", "old"), "legacy", "encrypt"),
    (GroupRef("", "host", "proof"), "metadata", "sign-only"),
]
_CALLS = ("rename", "unlink", "utime", "fsync", "mkdir", "write")
_LOST, _KILLED, _ENDED = 1, 9, 10  # exit codes of a child: what must not be, killed, ended by what struck it

_RESCUE = str(Path(archiver.rescue.__file__).with_name("script.py"))


def _kill() -> None:
    os._exit(_KILLED)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _fail() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


_STRIKES = {"killed": _kill, "interrupted": _interrupt, "failing": _fail}


def _count(name: str, number: Iterator[int], chosen: int, strike: Callable[[], None]) -> None:
    """From now on calls of this name count too."""
    real = getattr(os, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(number) == chosen:
            strike()
        return real(*arguments, **options)

    setattr(os, name, counted)


class Jumping(Clock):
    """Ahead by ``offset`` seconds."""

    offset = 7200

    def now(self) -> int:
        return super().now() + self.offset

    def now_ns(self) -> int:
        return super().now_ns() + self.offset * 10**9


@dataclass
class Place:
    """A store and what it must hold: snapshot -> a copy of its tree. ``harmed``: chunks that the test has damaged."""

    path: Path
    held: dict[SnapshotRef, Path] = field(default_factory=dict)
    harmed: set[str] = field(default_factory=set)
    saved_database: Path | None = None


def needs(path: Path, ref: SnapshotRef) -> set[str]:
    """Digests of all chunks of a snapshot."""
    found = set()
    for file in (path / ref.path).glob("*.?idx"):
        index = decode_index(file.read_bytes())
        found |= {index.digest(entry).hex() for entry in range(len(index))}
    return found


def same_files(one: Path, other: Path) -> bool:
    """Whether two snapshots have the same indexes, whose uuids tell one from another."""
    return {file.name: file.read_bytes() for file in one.glob("*.?idx")} == {
        file.name: file.read_bytes() for file in other.glob("*.?idx")
    }


def key_of(ref: SnapshotRef) -> CryptConfig | None:
    if ref.group.id in ("secret", "old", "proof"):
        return KEY
    return golden_store.KEY if ref.group.type == "ct" or ref.group.id == "signed" else None


class House:
    def __init__(self, work: Path, seed: int, small: Path | None = None) -> None:
        """``small``: where the first store may run out of space."""
        self.work = work
        self.rng = random.Random(seed)
        self.clock = Jumping()
        self.tree = work / "tree"
        build_plain(self.tree, seed, files=10, max_size=250_000)
        self.first, self.second = Place((small or work) / "first"), Place(make_store(work / "second"))
        self.obstacles = (Locked, NoSpace) if small else (Locked,)
        self.is_small = small is not None
        if seed % 4 == 3 and small is None:
            self.begin_with_golden()
        else:
            make_store(self.first.path)
        self.copies = 0
        self.log: list[str] = []
        self.counts: Counter[str] = Counter()
        self.has_harmed = self.harmed_inside = self.is_failing = False
        self.inside = False  # an action comes in between another one

    def begin_with_golden(self) -> None:
        """With a datastore of the reference implementation."""
        os.rename(golden_store.unpack(self.work), self.first.path)
        chosen = [*golden_store.PLAIN, golden_store.ENCRYPTED[1]]
        chosen.remove("host/features/2023-11-14T22:13:31Z")  # as the other encrypted one: it has immutable files
        for number, name in enumerate(chosen):
            kept = self.work / f"golden-{number}"
            bring_back(self.first.path, find(name), kept, crypt=key_of(find(name)))
            self.first.held[find(name)] = kept
        with self.open(self.first) as store:
            others = [ref for ref in every_snapshot(store) if store.is_finished(ref) and ref not in self.first.held]
            remove(store, plan_forget(store, [str(ref) for ref in others]))

    def open(self, place: Place) -> Store:
        return Store.open(place.path, clock=self.clock, listener=Heard())

    def place(self) -> Place:
        return self.rng.choice([self.first, self.first, self.second])

    def finished(self, place: Place) -> set[SnapshotRef]:
        with self.open(place) as store:
            return {ref for ref in every_snapshot(store) if store.is_finished(ref)}

    # -- actions: each returns what is to be done, and what follows from it in the model -----------------------------

    def backup(self) -> None:
        group, mode, crypt_mode = self.rng.choice(GROUPS)
        crypt = None if crypt_mode == "none" else KEY
        if not self.inside:
            self.clock.offset += self.rng.randrange(60, 8000)
            mutate(self.tree, self.rng.randrange(1 << 30), 3)
        self.copies += 1
        kept = self.work / f"kept-{self.copies}"
        shutil.copytree(self.tree, kept, symlinks=True)
        place, audit = self.first, self.rng.choice([0, 0, 50])
        mode = self.rng.choice([mode, mode, mode, "data", "legacy"])

        def work() -> None:
            with self.open(place) as store:
                save_into(store, self.tree, group=group, mode=mode, crypt=crypt, crypt_mode=crypt_mode, audit=audit)

        before = set(place.held)
        self.do(f"backup {group} {mode}", work, stores=True)
        new = self.finished(place) - before - set(place.held)
        assert {ref.group for ref in new} <= {group}, (new, group)
        assert len(new) <= 1
        for ref in new:
            place.held[ref] = kept

    def forget(self) -> None:
        place = self.place()
        if place.held:
            ref = self.rng.choice(sorted(place.held))
            with self.open(place) as store:
                self.remove(place, plan_forget(store, [str(ref)]))

    def prune(self) -> None:
        place = self.place()
        with self.open(place) as store:
            groups = [group for level in store.namespaces() for group in store.groups(level)]
            plan = plan_prune(store, groups, Retention(Keep(last=self.rng.randrange(1, 4))))
        for group in groups:
            ours = [item for item in plan.items if item.ref.group == group and item.finished]
            assert not ours or any(item.keep for item in ours)
        self.remove(place, plan)

    def remove(self, place: Place, plan: RemovalPlan) -> None:
        def work() -> None:
            with self.open(place) as store:
                outcome = remove(store, plan)
                assert self.is_failing or not outcome.failed, outcome

        self.do(f"remove {len(plan.removed)} in {place.path.name}", work)
        planned, present = {item.ref for item in plan.removed}, self.finished(place)
        for ref in list(place.held):
            if ref not in present:
                assert ref in planned, ref
                del place.held[ref]

    def protect(self) -> None:
        place = self.place()
        if place.held:
            with self.open(place) as store:
                protect(store, self.rng.choice(sorted(place.held)), on=self.rng.random() < 0.5)

    def gc(self) -> None:
        place = self.place()
        options: dict[str, Any] = {
            "mode": self.rng.choice([None, None, "immediate", "cutoff"]),
            "cutoff": self.rng.choice([0, 5, 1445]),
            "from_files": self.rng.random() < 0.25,
        }
        if not self.inside and self.rng.random() < 0.4:
            make_old(place.path)

        def work() -> None:
            with self.open(place) as store:
                collect(store, **options)

        self.do(f"gc {place.path.name} {options}", work)

    def verify(self) -> None:
        place, crypt = self.place(), self.rng.choice([KEY, KEY, None])
        options = VerifyOptions(set_aside=True, write_state=True, skip_verified=self.rng.random() < 0.3)

        def work() -> None:
            with self.open(place) as store:
                verify(store, every_snapshot(store), crypt, ignore, options)

        self.do(f"verify {place.path.name} {crypt is not None} {options.skip_verified}", work)

    def heal(self) -> None:
        """From the other store, or from what was set aside alone."""
        place = self.place()
        other = self.second if place is self.first else self.first
        crypt, read_all, alone = self.rng.choice([KEY, KEY, None]), self.rng.random() < 0.5, self.rng.random() < 0.2

        def work() -> None:
            with self.open(place) as store, self.open(other) as copy:
                copies = [] if alone else [OtherStore(store, copy, crypt)]
                refs = [ref for ref in every_snapshot(store) if store.is_finished(ref)]
                options = heal_plan.HealOptions(copies, read_all=read_all)
                plan = heal_plan.make_plan(store, refs, crypt, options, ignore)
                heal_run.carry_out(store, plan, crypt, ignore)

        self.do(f"heal {place.path.name} {crypt is not None} {read_all} {alone}", work, stores=True)

    def sync(self) -> None:
        ours, theirs = (self.first, self.second) if self.rng.random() < 0.8 else (self.second, self.first)
        options = SyncOptions(
            remove_vanished=self.rng.random() < 0.2,
            resync_corrupt=self.rng.random() < 0.5,
            transfer_last=self.rng.choice([None, None, 2]),
        )

        def work() -> None:
            with (
                self.open(ours) as source,
                open_target(source, str(theirs.path), ignore, new_target=False) as target,
            ):
                target.clock = self.clock
                target.identify()
                remember(source, target)
                result = carry_out(source, target, make_plan(source, target, options), options, ignore)
                is_known = self.is_failing or isinstance(result.stopped, (type(None), *self.obstacles))
                assert is_known, result.stopped
                for problem in result.problems:
                    is_known = isinstance(problem.error, (Locked, Skipped)) or self.has_harmed or self.inside
                    is_known = is_known or self.is_failing
                    assert is_known, problem

        before = dict(ours.held)
        self.do(f"sync from {ours.path.name} {options}", work, stores=True)
        present = self.finished(theirs)
        for ref in present - set(theirs.held):  # some may be forgotten in the source since they were copied
            theirs.held[ref] = before[ref] if ref in before else ours.held[ref]
        for ref in theirs.held.keys() & ours.held.keys():  # forgotten, made again in the same second, and replaced then
            if ref in present and same_files(ours.path / ref.path, theirs.path / ref.path):
                theirs.held[ref] = ours.held[ref]
        for ref in set(theirs.held) - present:
            assert options.remove_vanished and not (ref in ours.held and ref in before), ref
            del theirs.held[ref]

    def move(self) -> None:
        old, new = self.rng.choice([("inner", "other"), ("other", "inner")])
        place = self.first
        if not os.path.isdir(place.path / "ns" / old):
            return

        def work() -> None:
            with self.open(place) as store:
                move(store, plan_move(store, old, new))

        self.do(f"move {old} {new}", work)
        present = self.finished(place)
        for ref in sorted(place.held):
            if ref.group.namespace == old and ref not in present:
                to = SnapshotRef(GroupRef(new, ref.group.type, ref.group.id), ref.time)
                assert to in present, ref
                place.held[to] = place.held.pop(ref)

    def harm(self) -> None:
        place = self.place()
        files = chunk_files(place.path)
        if not files:
            return
        file = self.rng.choice(files)
        place.harmed.add(file.name)
        self.has_harmed = True
        self.harmed_inside = self.harmed_inside or self.inside
        self.log.append(f"harm {file.name[:8]} in {place.path.name}")
        self.counts["harm"] += 1
        data, how = bytearray(file.read_bytes()), self.rng.randrange(4)
        if how == 0:
            file.unlink()
            return
        if how == 1:
            del data[len(data) // 2 :]
        elif how == 2 or not data:
            data = bytearray(len(data))
        else:
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        times = file.stat()
        file.write_bytes(data)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    def lose_database(self) -> None:
        place, how = self.place(), self.rng.choice(["delete", "save", "back", "back", "damage"])
        database, kept = place.path / ".archiver/db", self.work / f"db-{place.path.name}"
        if self.inside or not database.is_dir():
            return
        self.log.append(f"database of {place.path.name}: {how}")
        self.counts[f"database {how}"] += 1
        if how == "delete":
            shutil.rmtree(database)
        elif how == "save":
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(database, kept)
        elif how == "back" and kept.is_dir():
            shutil.rmtree(database)
            shutil.copytree(kept, database)
        elif how == "damage" and (data := database / "data.mdb").is_file() and data.stat().st_size:
            with data.open("r+b") as file:
                file.seek(self.rng.randrange(data.stat().st_size))
                file.write(self.rng.randbytes(40))

    def jump(self) -> None:
        if not self.inside:
            self.clock.offset += self.rng.choice([-400 * DAY, -DAY, 3600, 40 * DAY, 100 * DAY, 400 * DAY])
            self.clock.offset = max(self.clock.offset, 7200)
            self.counts["jump"] += 1

    # -- how they are done -------------------------------------------------------------------------------------------

    def do(self, name: str, work: Callable[[], None], *, stores: bool = False) -> None:
        """To the end, or killed on the way, or with another action in between."""
        if self.inside:
            self.log.append(f"  meanwhile: {name}")
            self.counts[f"{name.split()[0]} meanwhile"] += 1
            self.bear(name, work)
            return
        self.harmed_inside = False
        how = self.rng.random()
        if how < 0.3:
            calls = int(self.rng.paretovariate(0.4)) % 400 + 1
            struck = self.rng.choice(["killed", "killed", "interrupted", "failing"])
            self.log.append(f"{name}, {struck} at call {calls}")
            self.struck(name, work, calls, struck)
        elif how < 0.6 and stores:
            self.log.append(name)
            with self.between():
                self.bear(name, work)
            self.counts[f"{name.split()[0]} disturbed"] += 1
        else:
            self.log.append(name)
            self.bear(name, work)
            self.counts[f"{name.split()[0]} done"] += 1

    def bear(self, name: str, work: Callable[[], None]) -> None:
        """Somebody may be in the way."""
        try:
            work()
        except Locked as error:
            self.log.append(f"  {error}")
        except NoSpace as error:
            if not self.is_small or name.startswith(("gc", "remove")):
                raise
            self.log.append(f"  {error}")
        except ArchiverError as error:
            # A chunk that was just stored is gone: it must not be published.
            if not (self.harmed_inside and "cannot publish" in str(error)):
                raise
            self.log.append(f"  {error}")

    def struck(self, name: str, work: Callable[[], None], call: int, how: str) -> None:
        """In a process of its own, at its n-th call."""
        child = os.fork()
        if not child:
            code = _LOST
            try:
                self.is_failing = how == "failing"
                number = itertools.count()
                for each in _CALLS:
                    _count(each, number, call, _STRIKES[how])
                self.bear(name, work)
                code = 0
            except KeyboardInterrupt:
                code = _ENDED if how == "interrupted" else _LOST
            except (ArchiverError, OSError):
                code = _ENDED if self.is_failing else _LOST
            finally:
                if code == _LOST:
                    traceback.print_exc()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, _KILLED, _ENDED), (name, how, code)
        self.counts[f"{name.split()[0]} {how if code else 'done'}"] += 1

    @contextmanager
    def between(self) -> Iterator[None]:
        """Another action, when chunks are stored or used for the n-th time."""
        left = self.rng.randrange(1, 15)
        lock, failures = threading.Lock(), []
        others = [
            self.gc,
            self.gc,
            self.forget,
            self.prune,
            self.verify,
            self.verify,
            self.heal,
            self.harm,
            self.backup,
            self.move,
        ]
        other = self.rng.choice(others)

        def come(self_: ChunkStore) -> None:
            nonlocal left
            with lock:
                left -= 1
                if left or self.inside:
                    return
                self.inside = True
            try:
                other()
            except BaseException as error:
                failures.append(error)
                raise
            finally:
                self.inside = False

        with pytest.MonkeyPatch.context() as patch:
            for name in ("insert", "touch", "touch_all"):
                real = getattr(ChunkStore, name)

                def wrapped(self_: ChunkStore, *arguments: Any, real: Any = real, **options: Any) -> Any:
                    come(self_)
                    result = real(self_, *arguments, **options)
                    come(self_)
                    return result

                patch.setattr(ChunkStore, name, wrapped)
            yield
        assert not failures

    # -- what must hold ----------------------------------------------------------------------------------------------

    def check(self, place: Place, *, restores: int) -> None:
        with self.open(place) as store:
            assert {ref for ref in every_snapshot(store) if store.is_finished(ref)} == set(place.held)
            result = verify(store, every_snapshot(store), KEY, ignore)
            named = {error.snapshot for error in result.errors}
            for error in result.errors:
                assert error.chunk in place.harmed, (error, place.path.name)
            place.harmed = {name for name in place.harmed if self.is_harmed(store, name)}
        sound = [ref for ref in sorted(place.held) if str(ref) not in named]
        for ref in place.held:
            lacking = {
                name for name in needs(place.path, ref) if not (place.path / ".chunks" / name[:4] / name).exists()
            }
            assert str(ref) in named or not lacking
        for ref in self.rng.sample(sound, min(restores, len(sound))):
            out = self.work / "out"
            crypt = key_of(ref)
            found = restored_differences(place.path, ref, place.held[ref], out, crypt)
            if ref.group.type == "vm":  # images have no times
                found = [text for text in found if "mtime" not in text]
            assert found == [], ref
            shutil.rmtree(out)
            self.counts["restore"] += 1
        plain = [ref for ref in sound if key_of(ref) is None and ref.group.type == "host"]
        if restores > 2 and plain:
            self.without_the_program(place, self.rng.choice(plain))

    def without_the_program(self, place: Place, ref: SnapshotRef) -> None:
        """A reader that knows nothing of ``.archiver``, and has no database."""
        out = self.work / "rescued"
        words = [sys.executable, "-I", _RESCUE, "extract", str(place.path), str(ref), str(out)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (tree,) = out.iterdir()
        assert differences(place.held[ref], tree) == [], ref
        shutil.rmtree(out)
        self.counts["rescue"] += 1

    @staticmethod
    def is_harmed(store: Store, name: str) -> bool:
        reader = store.reader(KEY)
        try:
            reader.stored(bytes.fromhex(name))
        except ChunkDamaged:
            return True
        return reader.is_bad(bytes.fromhex(name))


def run(work: Path, seed: int, steps: int, small: Path | None = None) -> Counter[str]:
    """What was done how often."""
    house = House(work, seed, small)
    actions: dict[Callable[[], None], int] = {  # what is to be tried too gets a line here, and one in ``between``
        house.backup: 8,
        house.sync: 4,
        house.gc: 4,
        house.verify: 2,
        house.heal: 2,
        house.forget: 1,
        house.prune: 2,
        house.protect: 1,
        house.move: 1,
        house.harm: 1,
        house.lose_database: 2,
        house.jump: 1,
    }
    try:
        for step in range(steps):
            (action,) = house.rng.choices(list(actions), list(actions.values()))
            action()
            if step % 4 == 3:
                house.check(house.rng.choice([house.first, house.second]), restores=2)
        house.check(house.first, restores=1000)
        house.check(house.second, restores=1000)
    except BaseException:
        print("\n".join(house.log))
        raise
    return house.counts


@pytest.mark.parametrize("seed", range(4))
def test_short_runs(tmp_path: Path, seed: int) -> None:
    run(tmp_path, seed, 30)


@pytest.mark.parametrize("seed", range(2))
def test_short_runs_on_a_small_disk(tmp_path: Path, seed: int) -> None:
    with small_file_system(tmp_path, 6 << 20) as place:
        run(tmp_path, seed, 30, place)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 140))
def test_long_runs(tmp_path: Path, seed: int) -> None:
    counts = run(tmp_path, seed, 120)
    print(f"seed {seed}, {counts.total()}:", ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
