"""Operations that bring snapshots into a store: backup and sync."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archiver.backup.small_files import SmallFiles
from archiver.browse.verify import VerifyOptions, verify
from archiver.core.events import ignore
from archiver.errors import ArchiverError
from archiver.store.labels import set_note
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from archiver.sync.partners import open_target, remember
from archiver.sync.plan import SyncOptions, make_plan
from archiver.sync.run import carry_out
from tests.compare import Description, snapshot_tree
from tests.crash.checking import Scene
from tests.crash.stage import START, Stage, chunk_of, forget_snapshots, needed_by
from tests.random_trees import noise
from tests.stores import GROUP, KEY, Ahead, Heard, make_store


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
        stage.write(f"more-{number}", 60_000)
    stage.write("zzz", 100)
    real = SmallFiles.take

    def take(self: Any, directory: Any, name: bytes, status: os.stat_result, ahead: Any) -> bool:
        if name == b"zzz":
            raise ArchiverError("interrupted")
        return real(self, directory, name, status, ahead)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(ArchiverError, match="interrupted"):
        patched.setattr(SmallFiles, "take", take)
        stage.save(1, mode="metadata")
    assert list((stage.root / ".archiver" / "sessions").glob("*/resume.json"))
    return _backup(stage, 1, mode="metadata")


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
    forget_snapshots(source, refs[:1])
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


def lost_database(place: Path) -> Scene:
    """A backup that has to build it first."""
    scene = nightly_backup(place)
    shutil.rmtree(scene.root / ".archiver" / "db")
    return scene
