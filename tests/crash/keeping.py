"""Operations on what is in a store: forget, prune, gc, verify, labels, namespaces, db."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from archiver.browse.verify import VerifyOptions, verify
from archiver.core.disk import Disk
from archiver.store.gc.collect import collect
from archiver.store.labels import note_of, protect, set_group_note, set_note, set_owner
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.namespaces import create, delete_levels, move, plan_delete, plan_move
from archiver.store.prune import Keep
from archiver.store.removal import remove
from archiver.store.retention import Retention, plan_prune
from archiver.store.store import Store
from tests.compare import Description, snapshot_tree
from tests.crash.checking import Scene
from tests.crash.stage import START, Stage, chunk_of, forget_snapshots
from tests.heal import healing
from tests.random_trees import noise
from tests.stores import GROUP, Ahead, Heard, chunk_files, every_snapshot


def forget(place: Path) -> Scene:
    stage = Stage(place)
    refs = stage.snapshots(3)
    return stage.scene(lambda path: forget_snapshots(path, refs[:2]), gone=frozenset(refs[:2]))


def forget_group(place: Path) -> Scene:
    """The last snapshot of a group goes, and the group with it."""
    stage = Stage(place)
    stage.snapshots(1)
    other = stage.snapshot(0, GroupRef("", "vm", "100"))
    return stage.scene(lambda path: forget_snapshots(path, [other]), gone=frozenset({other}))


def prune(place: Path) -> Scene:
    stage = Stage(place)
    refs = stage.snapshots(4)

    def run(path: Path) -> None:
        with Store.open(path, clock=Ahead(), listener=Heard()) as store:
            plan = plan_prune(store, [GROUP], Retention(Keep(last=2)))
            outcome = remove(store, plan)
            assert not outcome.skipped and not outcome.failed

    return stage.scene(run, gone=frozenset(refs[:2]))


def forget_in_place(place: Path) -> Scene:
    """There is no room for renames: a snapshot that is being removed may be seen, but never as a finished one."""
    scene = forget(place)
    real = scene.run

    def full(self: Disk, source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def run(path: Path) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Disk, "rename_directory", full)
            real(path)

    scene.run, scene.unfinished = run, scene.gone
    return scene


def _gc(place: Path, **options: Any) -> Scene:
    stage = Stage(place)
    refs = stage.snapshots(3)
    forget_snapshots(stage.root, refs[:1])
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
        forget_snapshots(path, refs[:1])
        with Store.open(path, clock=Ahead(), listener=Heard()) as store:
            collect(store, mode="immediate")

    return stage.scene(run, gone=frozenset(refs[:1]))


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

    def run(path: Path) -> bool:
        with Store.open(path, clock=Ahead(), listener=Heard()) as store:
            if "a" not in store.namespaces():
                return False
            assert all(each.problem is None for each in move(store, plan_move(store, "a", "b")))
            return True

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

    def run(path: Path) -> bool:
        with Store.open(path, clock=Ahead(), listener=Heard()) as store:
            if "a" not in store.namespaces():
                return False
            outcome = remove(store, plan_delete(store, "a", with_groups=True))
            assert not outcome.skipped and not outcome.failed
            assert "a" in delete_levels(store, "a")
            return True

    def extra(store: Store, is_done: bool) -> None:
        assert not is_done or list(store.namespaces()) == [""]

    return stage.scene(run, gone=frozenset(gone), extra=extra)


def rebuild_database(place: Path) -> Scene:
    stage = Stage(place)
    stage.snapshots(3)

    def run(path: Path) -> None:
        with Store.open(path, clock=Ahead(), listener=Heard()) as store:
            store.rebuild_database()

    return stage.scene(run)


def heal_from_a_copy(place: Path) -> Scene:
    """One chunk is damaged, and it is good in a copy of the store."""
    stage = Stage(place)
    stage.snapshots(1)
    before = set(chunk_files(stage.root))
    stage.change()
    bad = stage.snapshot(1, mode="metadata")
    shutil.copytree(stage.root, place / "copy")
    victim = max(set(chunk_files(stage.root)) - before, key=lambda file: file.stat().st_size)
    good = victim.read_bytes()
    victim.write_bytes(noise(99, len(good)))

    def run(path: Path) -> None:
        healing.heal(path, copies=[place / "copy"], read_all=True)

    def extra(store: Store, is_done: bool) -> None:
        chunk = chunk_of(Path(store.layout.base), victim.name)
        is_good = chunk.exists() and chunk.read_bytes() == good
        assert is_good or not is_done
        scene.damaged = frozenset() if is_good else frozenset({bad})

    scene = stage.scene(run, extra=extra)
    return scene
