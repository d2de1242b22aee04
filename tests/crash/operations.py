"""The operations whose every end is looked at: each entry of ``OPERATIONS`` prepares a scene in an empty directory.

A run that follows one that was killed is an operation too: what the first one did may not be durable when the second
one comes to its end.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archiver.backup.small_files import SmallFiles
from archiver.browse.verify import VerifyOptions, verify
from archiver.core.events import ignore
from archiver.errors import ArchiverError, KeyProblem, NotFound, TargetAbsent
from archiver.keys.make import write_file
from archiver.keys.ring import read_key_file
from archiver.store.gc.collect import collect
from archiver.store.labels import note_of, protect, set_group_note, set_note, set_owner
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.namespaces import create, delete_levels, move, plan_delete, plan_move
from archiver.store.prune import Keep
from archiver.store.removal import plan_forget, remove
from archiver.store.retention import Retention, plan_prune
from archiver.store.store import Store
from archiver.sync.partners import open_target, remember
from archiver.sync.plan import SyncOptions, make_plan
from archiver.sync.run import carry_out
from formats.crypt import CryptConfig
from formats.index import decode_index
from formats.keyfile import KeyFile, KeyTime, Pbkdf2
from tests.compare import Description, snapshot_tree
from tests.crash.checking import PlainScene, Scene
from tests.random_trees import noise
from tests.stores import GROUP, KEY, Ahead, Heard, chunk_files, every_snapshot, make_store, save

START = 1_700_000_000
Prepare = Callable[[Path], Scene | PlainScene]


class Stage:
    """A store, a small tree, and some snapshots of it."""

    def __init__(self, place: Path, *, crypt: CryptConfig | None = None) -> None:
        self.place, self.crypt = place, crypt
        self.root = make_store(place / "store")
        self.tree = place / "tree"
        self.tree.mkdir()
        (self.tree / "folder").mkdir()
        self._seed = 0
        for name in ("a", "b", "folder/c"):
            self._write(name, 3000)
        self._write("large", 150_000)
        self.trees: dict[SnapshotRef, Description] = {}

    def _write(self, name: str, size: int) -> None:
        self._seed += 1
        path = self.tree / name
        path.write_bytes(noise(self._seed, size))
        os.utime(path, (START, START + self._seed))
        os.utime(path.parent, (START, START + self._seed))

    def change(self) -> None:
        self._write("folder/c", 2000)
        self._write(f"folder/new-{self._seed}", 70_000)

    def save(self, number: int = 0, group: GroupRef = GROUP, path: Path | None = None, **options: Any) -> SnapshotRef:
        when = START + 86400 * number
        saved = save(path or self.root, self.tree, group=group, time=when, crypt=self.crypt, clock=Ahead(), **options)
        assert saved.problems == []
        return saved.snapshot

    def snapshot(self, number: int = 0, group: GroupRef = GROUP, **options: Any) -> SnapshotRef:
        """One that is there before the operation."""
        ref = self.save(number, group, **options)
        self.trees[ref] = snapshot_tree(self.tree)
        return ref

    def snapshots(self, count: int, group: GroupRef = GROUP) -> list[SnapshotRef]:
        found = []
        for number in range(count):
            if self.trees:
                self.change()
            found.append(self.snapshot(number, group, mode="metadata"))
        return found

    def scene(self, run: Callable[[Path], object], **options: Any) -> Scene:
        left: frozenset[SnapshotRef] = frozenset().union(*(options.get(name, ()) for name in ("new", "gone", "maybe")))
        options.setdefault("kept", frozenset(self.trees) - left)
        return Scene(self.root, run, dict(self.trees), crypt=self.crypt, **options)


# -- backup ------------------------------------------------------------------------------------------------------------


def _backup(stage: Stage, number: int, **options: Any) -> Scene:
    ref = SnapshotRef(GROUP, START + 86400 * number)
    second = SnapshotRef(GROUP, ref.time + 1)  # of a run after one that was killed when it had published
    stage.trees |= dict.fromkeys((ref, second), snapshot_tree(stage.tree))

    def again(path: Path) -> dict[SnapshotRef, Description]:
        return {stage.save(number, path=path, **options): snapshot_tree(stage.tree)}

    def run(path: Path) -> SnapshotRef:
        return stage.save(number, path=path, **options)

    return stage.scene(run, new=frozenset({ref}), maybe=frozenset({second}), again=again)


def first_backup(place: Path) -> Scene:
    return _backup(Stage(place), 0, mode="data")


def nightly_backup(place: Path) -> Scene:
    stage = Stage(place)
    stage.snapshots(2)
    stage.change()
    return _backup(stage, 2, mode="metadata")


def encrypted_backup(place: Path) -> Scene:
    stage = Stage(place, crypt=KEY)
    stage.snapshots(1)
    stage.change()
    return _backup(stage, 1, mode="metadata")


def legacy_backup(place: Path) -> Scene:
    stage = Stage(place)
    stage.snapshot(0, mode="legacy")
    stage.change()
    return _backup(stage, 1, mode="legacy")


def resumed_backup(place: Path) -> Scene:
    """The run before was interrupted, and has left a session to go on with."""
    stage = Stage(place)
    stage.snapshots(1)
    stage.change()
    for number in range(3):
        stage._write(f"more-{number}", 60_000)
    stage._write("zzz", 100)
    real = SmallFiles.take

    def take(self: Any, directory: Any, name: bytes, status: os.stat_result) -> bool:
        if name == b"zzz":
            raise ArchiverError("interrupted")
        return real(self, directory, name, status)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(ArchiverError, match="interrupted"):
        patched.setattr(SmallFiles, "take", take)
        stage.save(1, mode="metadata")
    assert list((stage.root / ".archiver" / "sessions").glob("*/resume.json"))
    return _backup(stage, 1, mode="metadata")


# -- removing ----------------------------------------------------------------------------------------------------------


def _forget(path: Path, refs: list[SnapshotRef]) -> None:
    with Store.open(path, clock=Ahead(), listener=Heard()) as store:
        there = set(every_snapshot(store))
        outcome = remove(store, plan_forget(store, [str(ref) for ref in refs if ref in there]))
        assert not outcome.skipped and not outcome.failed


def forget(place: Path) -> Scene:
    stage = Stage(place)
    refs = stage.snapshots(3)
    return stage.scene(lambda path: _forget(path, refs[:2]), gone=frozenset(refs[:2]))


def forget_group(place: Path) -> Scene:
    """The last snapshot of a group goes, and the group with it."""
    stage = Stage(place)
    stage.snapshots(1)
    other = stage.snapshot(0, GroupRef("", "vm", "100"))
    return stage.scene(lambda path: _forget(path, [other]), gone=frozenset({other}))


def prune(place: Path) -> Scene:
    stage = Stage(place)
    refs = stage.snapshots(4)

    def run(path: Path) -> None:
        with Store.open(path, clock=Ahead(), listener=Heard()) as store:
            plan = plan_prune(store, [GROUP], Retention(Keep(last=2)))
            outcome = remove(store, plan)
            assert not outcome.skipped and not outcome.failed

    return stage.scene(run, gone=frozenset(refs[:2]))


# -- garbage collection ------------------------------------------------------------------------------------------------


def _gc(place: Path, **options: Any) -> Scene:
    stage = Stage(place)
    refs = stage.snapshots(3)
    _forget(stage.root, refs[:1])
    del stage.trees[refs[0]]
    for file in (files := chunk_files(stage.root)):
        os.utime(file, (START, file.stat().st_mtime))
    file = files[0]
    file.with_name(file.name + ".tmp_abcdef").write_bytes(b"left")

    def run(path: Path) -> None:
        with Store.open(path, clock=Ahead(), listener=Heard()) as store:
            collect(store, **options)

    return stage.scene(run)


def gc(place: Path) -> Scene:
    return _gc(place, mode="immediate")


def gc_beside_writers(place: Path) -> Scene:
    return _gc(place, mode="cutoff")


def gc_from_files(place: Path) -> Scene:
    return _gc(place, mode="immediate", from_files=True)


def forget_and_gc(place: Path) -> Scene:
    stage = Stage(place)
    refs = stage.snapshots(3)

    def run(path: Path) -> None:
        _forget(path, refs[:1])
        with Store.open(path, clock=Ahead(), listener=Heard()) as store:
            collect(store, mode="immediate")

    return stage.scene(run, gone=frozenset(refs[:1]))


def chunk_of(path: Path, digest: str) -> Path:
    return path / ".chunks" / digest[:4] / digest


def needed_by(path: Path, ref: SnapshotRef) -> set[str]:
    indexes = [decode_index(file.read_bytes()) for file in (path / ref.path).glob("*idx")]
    return {index.digest(entry).hex() for index in indexes for entry in range(len(index))}


# -- sync --------------------------------------------------------------------------------------------------------------


def _sync(stage: Stage, source: Path, **options: Any) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        chosen = SyncOptions(**options)
        heard = Heard()
        with (
            Store.open(source, clock=Ahead(), listener=heard) as ours,
            open_target(ours, str(path), ignore, new_target=True) as theirs,
        ):
            theirs.identify()
            remember(ours, theirs)
            result = carry_out(ours, theirs, make_plan(ours, theirs, chosen), chosen, heard)
            assert result.errors == []

    return run


def sync(place: Path) -> Scene:
    stage = Stage(place)
    refs = stage.snapshots(2)
    source, stage.root = stage.root, make_store(place / "target")
    return stage.scene(_sync(stage, source), kept=frozenset(), new=frozenset(refs))


def sync_of_changes(place: Path) -> Scene:
    """A snapshot is new, one has vanished, one has a new note, and one is damaged in the target and replaced."""
    stage = Stage(place)
    refs = stage.snapshots(3)
    source, stage.root = stage.root, make_store(place / "target")
    run = _sync(stage, source, remove_vanished=True, resync_corrupt=True)
    run(stage.root)
    _forget(source, refs[:1])
    with Store.open(source) as store:
        set_note(store, refs[1], "new")
    stage.change()
    new = SnapshotRef(GROUP, START + 86400 * 3)
    stage.trees[new] = snapshot_tree(stage.tree)
    stage.save(3, path=source, mode="metadata")
    digests = needed_by(source, refs[2]) - needed_by(source, refs[1])
    victim = chunk_of(stage.root, max(digests, key=lambda digest: chunk_of(source, digest).stat().st_size))
    good = victim.read_bytes()
    victim.write_bytes(noise(99, len(good)))
    with Store.open(stage.root) as store:
        verify(store, refs[2:], None, Heard(), VerifyOptions(write_state=True))

    def extra(store: Store, is_done: bool) -> None:
        chunk = chunk_of(Path(store.layout.base), victim.name)
        is_good = chunk.exists() and chunk.read_bytes() == good
        assert is_good or not is_done
        scene.damaged = frozenset() if is_good else frozenset({refs[2]})

    scene = stage.scene(run, gone=frozenset(refs[:1]), new=frozenset({new}), extra=extra)
    return scene


# -- verify, labels, namespaces ----------------------------------------------------------------------------------------


def verify_with_set_aside(place: Path) -> Scene:
    """One snapshot has a bad chunk, which is renamed; both are told how they were found."""
    stage = Stage(place)
    (good,) = stage.snapshots(1)
    before = set(chunk_files(stage.root))
    stage.change()
    bad = stage.snapshot(1, mode="metadata")
    victim = max(set(chunk_files(stage.root)) - before, key=lambda file: file.stat().st_size)
    victim.write_bytes(noise(99, victim.stat().st_size))

    def run(path: Path) -> None:
        with Store.open(path, clock=Ahead(), listener=Heard()) as store:
            refs = [ref for ref in every_snapshot(store) if store.is_finished(ref)]
            verify(store, refs, None, Heard(), VerifyOptions(set_aside=True, write_state=True))

    def extra(store: Store, is_done: bool) -> None:
        there = [name for name in os.listdir(store.layout.shard(victim.name)) if name.startswith(victim.name)]
        assert len(there) == 1, "the damaged chunk is there under one of its names"
        told = [store.info(ref).verify_state for ref in (good, bad)]
        for found, expected in zip(told, ("ok", "failed"), strict=True):
            assert found is None or found["state"] == expected
            assert found is not None or not is_done

    return stage.scene(run, extra=extra, damaged=frozenset({bad}))


def labels(place: Path) -> Scene:
    """Notes, protection and owner of one snapshot; each is as before or as after, and they come in that order."""
    stage = Stage(place)
    (ref,) = stage.snapshots(1)

    def run(path: Path) -> None:
        with Store.open(path, clock=Ahead(), listener=Heard()) as store:
            set_note(store, ref, "new")
            set_owner(store, GROUP, "joe@pbs")
            set_group_note(store, GROUP, "of the group")
            protect(store, ref, on=True)

    order = [
        ("", "root@pam", None, False),
        ("new", "root@pam", None, False),
        ("new", "joe@pbs", None, False),
        ("new", "joe@pbs", "of the group", False),
        ("new", "joe@pbs", "of the group", True),
    ]

    def extra(store: Store, is_done: bool) -> None:
        found = (note_of(store, ref), store.owner(GROUP), store.group_note(GROUP), store.info(ref).protected)
        assert found in order and (not is_done or found == order[-1])

    return stage.scene(run, extra=extra)


def move_namespace(place: Path) -> Scene:
    stage = Stage(place)
    stage.snapshot(0, GroupRef("b", "host", "x"))
    groups = GroupRef("a", "host", "x"), GroupRef("a/in", "host", "y")
    targets = GroupRef("b", "host", "x"), GroupRef("b/in", "host", "y")
    before = [stage.snapshot(number + 1, group) for number, group in enumerate(groups)]
    after = [SnapshotRef(target, ref.time) for ref, target in zip(before, targets, strict=True)]
    stage.trees |= {new: stage.trees[old] for old, new in zip(before, after, strict=True)}

    def run(path: Path) -> None:
        with Store.open(path, clock=Ahead(), listener=Heard()) as store:
            if "a" in store.namespaces():
                assert all(each.problem is None for each in move(store, plan_move(store, "a", "b")))

    def extra(store: Store, is_done: bool) -> None:
        found = every_snapshot(store)
        for old, new in zip(before, after, strict=True):
            assert (old in found) != (new in found), "at exactly one of its two places"
        assert {store.owner(ref.group) for ref in found} == {"root@pam"}
        assert not is_done or list(store.namespaces()) == ["", "b", "b/in"]

    return stage.scene(run, gone=frozenset(before), new=frozenset(after), extra=extra)


def create_namespaces(place: Path) -> Scene:
    """And a backup into the innermost."""
    stage = Stage(place)
    group = GroupRef("a/b", "host", "x")
    refs = [SnapshotRef(group, START + number) for number in range(2)]
    stage.trees |= dict.fromkeys(refs, snapshot_tree(stage.tree))

    def run(path: Path) -> SnapshotRef:
        for name in ("a", "a/b"):
            with Store.open(path, clock=Ahead(), listener=Heard()) as store:
                if name not in store.namespaces():
                    create(store, name)
        return stage.save(0, group, path)

    def again(path: Path) -> dict[SnapshotRef, Description]:
        return {run(path): snapshot_tree(stage.tree)}

    return stage.scene(run, new=frozenset(refs[:1]), maybe=frozenset(refs[1:]), again=again)


def delete_namespace(place: Path) -> Scene:
    stage = Stage(place)
    stage.snapshots(1)
    gone = [stage.snapshot(1, GroupRef("a", "host", "x")), stage.snapshot(2, GroupRef("a/in", "host", "y"))]

    def run(path: Path) -> None:
        with Store.open(path, clock=Ahead(), listener=Heard()) as store:
            if "a" in store.namespaces():
                outcome = remove(store, plan_delete(store, "a", with_groups=True))
                assert not outcome.skipped and not outcome.failed
                assert "a" in delete_levels(store, "a")

    def extra(store: Store, is_done: bool) -> None:
        assert not is_done or list(store.namespaces()) == [""]

    return stage.scene(run, gone=frozenset(gone), extra=extra)


# -- the database ------------------------------------------------------------------------------------------------------


def rebuild_database(place: Path) -> Scene:
    stage = Stage(place)
    stage.snapshots(3)

    def run(path: Path) -> None:
        with Store.open(path, clock=Ahead(), listener=Heard()) as store:
            store.rebuild_database()

    return stage.scene(run)


def lost_database(place: Path) -> Scene:
    """A backup that has to build it first."""
    scene = nightly_backup(place)
    shutil.rmtree(scene.root / ".archiver" / "db")
    return scene


# -- stores and keys that are made -------------------------------------------------------------------------------------


def init(place: Path) -> PlainScene:
    """In every state there is a store, or one can be made there."""
    (place / "root").mkdir()

    def run(path: Path) -> bool:
        try:
            Store.open(path / "store").close()
            return False  # as one is told by ``init`` then
        except (NotFound, TargetAbsent):
            Store.create(path / "store", name="test")
            return True

    def seen(path: Path, is_done: bool) -> None:
        try:
            with Store.open(path / "store") as store:
                assert store.database is not None
                assert not is_done or (store.identity is not None and store.identity.name == "test")
        except (NotFound, TargetAbsent):
            assert not is_done
            Store.create(path / "store", name="test")
        with Store.open(path / "store", clock=Ahead()) as store, store.session():
            pass

    return PlainScene(place / "root", run, seen)


def new_uuid(place: Path) -> Scene:
    stage = Stage(place)
    stage.snapshots(1)
    return stage.scene(Store.renew)


def _key_file(place: Path, before: KeyFile | None, after: KeyFile, *, force: bool) -> PlainScene:
    """The file is the old one or the new one, and opens the same key."""
    root = place / "root"
    root.mkdir()
    if before is not None:
        write_file(str(root / "keys" / "key.json"), before.encode(), force=False)

    def run(path: Path) -> bool:
        if not force and (path / "keys" / "key.json").exists():
            return False  # which is an error then
        write_file(str(path / "keys" / "key.json"), after.encode(), force=force)
        return True

    def seen(path: Path, is_done: bool) -> None:
        try:
            found = read_key_file(str(path / "keys" / "key.json"))
        except KeyProblem:
            assert before is None and not is_done and not (path / "keys" / "key.json").exists()
            return
        assert found == after or (found == before and not is_done)
        assert found.unlock(b"old old" if found == before else b"new new").fingerprint == KEY.fingerprint

    return PlainScene(root, run, seen)


def _wrapped(passphrase: bytes) -> KeyFile:
    return KeyFile.wrap(KEY, passphrase, Pbkdf2(10, bytes(32)), bytes(16), KeyTime(START), KeyTime(START))


def key_create(place: Path) -> PlainScene:
    return _key_file(place, None, _wrapped(b"new new"), force=False)


def key_change_passphrase(place: Path) -> PlainScene:
    return _key_file(place, _wrapped(b"old old"), _wrapped(b"new new"), force=True)


# -- file systems with less, and runs after a kill ---------------------------------------------------------------------


def without_room_for_renames(prepare: Callable[[Path], Scene]) -> Prepare:
    """Snapshots are removed where they are then: one that is being removed may be seen, but never as a finished one."""

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def prepared(place: Path) -> Scene:
        scene = prepare(place)
        real = scene.run

        def run(path: Path) -> None:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr("archiver.core.disk.Disk.rename_directory", lambda self, *names: full(*names))
                real(path)

        scene.run, scene.unfinished = run, scene.gone
        return scene

    return prepared


OPERATIONS: dict[str, Prepare] = {
    "first backup": first_backup,
    "nightly backup": nightly_backup,
    "encrypted backup": encrypted_backup,
    "legacy backup": legacy_backup,
    "resumed backup": resumed_backup,
    "backup without database": lost_database,
    "forget": forget,
    "forget a group": forget_group,
    "forget in place": without_room_for_renames(forget),
    "prune": prune,
    "gc": gc,
    "gc beside writers": gc_beside_writers,
    "gc from files": gc_from_files,
    "forget and gc": forget_and_gc,
    "sync": sync,
    "sync of changes": sync_of_changes,
    "verify": verify_with_set_aside,
    "labels": labels,
    "ns create": create_namespaces,
    "ns move": move_namespace,
    "ns delete": delete_namespace,
    "db rebuild": rebuild_database,
    "init": init,
    "init --new-uuid": new_uuid,
    "key create": key_create,
    "key change-passphrase": key_change_passphrase,
}
