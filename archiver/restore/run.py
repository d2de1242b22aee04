"""One restore: where things go, writing, checking, and what became of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from archiver.browse.snapshot import ArchiveFiles, Snapshot
from archiver.core.disk import explained
from archiver.core.events import Event, FileProblem, Listener
from archiver.core.linux import syncfs
from archiver.errors import Damaged, UsageError
from archiver.restore.check import Checker
from archiver.restore.digests import SegmentDigests
from archiver.restore.image import check_device, is_device, write_blob, write_image
from archiver.restore.traversal import Traversal
from archiver.restore.write import Writer

_PROBLEMS_KEPT = 10_000


@dataclass(slots=True)
class RestoreResult:
    """``problems`` holds the first 10,000 of ``problem_count``. Kinds: not-restored and attribute (this user or file
    system may not), damaged (the store), different (found when reading again), not-verified."""

    snapshot: str
    target: str
    entries: int = 0
    files: int = 0
    bytes: int = 0
    verified: bool = False
    duration: float = 0.0
    problem_count: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    problems: list[FileProblem] = field(default_factory=list)

    def hearing(self, listener: Listener) -> Listener:
        """A listener for any thread, which counts problems; one event at a time reaches ``listener``."""
        lock = threading.Lock()

        def hear(event: Event) -> None:
            with lock:
                if isinstance(event, FileProblem):
                    self.problem_count += 1
                    self.kinds[event.kind] = self.kinds.get(event.kind, 0) + 1
                    if len(self.problems) < _PROBLEMS_KEPT:
                        self.problems.append(event)
                listener(event)

        return hear

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "snapshot": self.snapshot,
            "target": self.target,
            "entries": self.entries,
            "files": self.files,
            "bytes": self.bytes,
            "verified": self.verified,
            "duration_s": round(self.duration, 3),
            "problems": self.problem_count,
            "errors": [
                {"path": os.fsdecode(problem.path), "reason": problem.reason, "kind": problem.kind}
                for problem in self.problems
            ],
        }


def restore(
    snapshot: Snapshot,
    archives: Sequence[ArchiveFiles],
    target: str,
    *,
    verify: bool,
    listener: Listener,
    to_device: bool = False,
) -> RestoreResult:
    """Restore ``archives``: a single tree becomes ``target`` itself, of several each becomes ``target/NAME``. With
    ``to_device`` a single image may replace what is on the block device ``target``.

    Raises UsageError when the target is in use and KeyProblem without the key that is needed, both before anything is
    written; Damaged when archives cannot be read to their end, once all others are restored; ArchiverError when the
    restore cannot go on. What concerns single files is told as events and in the result.
    """
    clock = snapshot.store.clock
    began = clock.steady()
    result = RestoreResult(str(snapshot.ref), target)
    hear = result.hearing(listener)
    if is_device(target) and (len(archives) > 1 or archives[0].kind != "image"):
        raise UsageError(f"{target} is a device: only an image can be restored to it", hint="choose it with --archive")
    places = [_place(archive, target, several=len(archives) > 1) for archive in archives]
    for archive, place in zip(archives, places, strict=True):
        for file in archive.files:
            snapshot.require_key(file)
        _check_place(archive, place, snapshot, to_device)
    damage: list[Damaged] = []
    for archive, place in zip(archives, places, strict=True):
        try:
            if archive.kind == "tree":
                _restore_tree(snapshot, archive, place, verify, hear, result)
            else:
                _restore_file(snapshot, archive, place, verify, hear, result)
        except Damaged as error:
            damage.append(error)
    if len(damage) > 1:
        hint = "everything that could be read is restored; verify tells which files are concerned"
        raise Damaged("; ".join(map(str, damage)), hint=hint) from damage[0]
    if damage:
        raise damage[0]
    result.verified = verify
    result.duration = clock.steady() - began
    return result


def _restore_tree(
    snapshot: Snapshot, archive: ArchiveFiles, target: str, verify: bool, hear: Listener, result: RestoreResult
) -> None:
    tree = snapshot.tree(archive)
    with explained("make", target):
        os.makedirs(target, 0o700, exist_ok=True)
    digests = SegmentDigests(snapshot.store.random) if verify else None
    try:
        writer = Writer(target, digests, hear)
        traversal = Traversal(tree, writer, "restore", hear)
        traversal.run()
        result.entries += traversal.entries
        result.files += traversal.files
        result.bytes += traversal.bytes
        if digests is not None:
            _write_back(target)
            Traversal(tree, Checker(target, writer, digests, hear), "check", hear).run()
    finally:
        if digests is not None:
            digests.close()


def _write_back(target: str) -> None:
    """Dirty pages cannot be dropped from memory, and what is to be checked is the disk."""
    with explained("write", target):
        fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            syncfs(fd)
        finally:
            os.close(fd)


def _place(archive: ArchiveFiles, target: str, *, several: bool) -> str:
    """Where an archive goes. For an image or blob the target names the new file, or the directory that gets it."""
    if several or (archive.kind != "tree" and os.path.isdir(target)):
        return os.path.join(target, archive.name)
    return target


def _check_place(archive: ArchiveFiles, place: str, snapshot: Snapshot, to_device: bool) -> None:
    """Raises UsageError unless ``place`` is free: for a tree an empty directory will do."""
    if not place:
        raise UsageError("the target has no name")
    with explained("look into", place):
        if _lies_in(place, snapshot.store.layout.base):
            raise UsageError(f"{place} lies in the store itself", hint="restore to a place outside of it")
        if not os.path.lexists(place):
            return
        if archive.kind == "image" and is_device(place):
            check_device(place, archive.files[0].size, allowed=to_device)
            return
        if archive.kind != "tree":
            raise UsageError(f"{place} exists already", hint="name a file that does not exist")
        if not os.path.isdir(place):
            raise UsageError(f"{place} is not a directory")
        if os.listdir(place):
            raise UsageError(f"{place} is not empty", hint="restore into a new or empty directory")


def _lies_in(place: str, directory: str) -> bool:
    """Whether ``place`` would be in ``directory``, whatever symlinks and mounts lead there."""
    inner = os.path.realpath(place)
    while not os.path.exists(inner) or not os.path.samefile(inner, directory):
        inner, before = os.path.dirname(inner), inner
        if inner == before:
            return False
    return True


def _restore_file(
    snapshot: Snapshot, archive: ArchiveFiles, path: str, verify: bool, hear: Listener, result: RestoreResult
) -> None:
    parent = os.path.dirname(path)
    if parent:
        with explained("make", parent):
            os.makedirs(parent, 0o700, exist_ok=True)
    write = write_image if archive.kind == "image" else write_blob
    result.bytes += write(snapshot, archive.files[0], path, verify, hear)
    result.files += 1
    result.entries += 1
