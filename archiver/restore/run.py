"""One restore: where things go, writing, checking, and what became of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from archiver.browse.snapshot import ArchiveFiles, Snapshot
from archiver.core.disk import explain, explained
from archiver.core.events import Event, FileProblem, Listener
from archiver.core.linux import syncfs
from archiver.errors import UsageError
from archiver.restore.check import Checker
from archiver.restore.digests import SegmentDigests
from archiver.restore.image import write_blob, write_image
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
    snapshot: Snapshot, archives: Sequence[ArchiveFiles], target: str, *, verify: bool, listener: Listener
) -> RestoreResult:
    """Restore ``archives``: a single tree becomes ``target`` itself, of several each becomes ``target/NAME``.

    Raises UsageError when the target is in use, ArchiverError when the restore cannot go on. What concerns single
    files is told as events and in the result.
    """
    clock = snapshot.store.clock
    began = clock.steady()
    result = RestoreResult(str(snapshot.ref), target)

    def hear(event: Event) -> None:
        if isinstance(event, FileProblem):
            result.problem_count += 1
            result.kinds[event.kind] = result.kinds.get(event.kind, 0) + 1
            if len(result.problems) < _PROBLEMS_KEPT:
                result.problems.append(event)
        listener(event)

    for archive in archives:
        if archive.kind == "tree":
            place = target if len(archives) == 1 else os.path.join(target, archive.name)
            _restore_tree(snapshot, archive, place, verify, hear, result)
        else:
            _restore_file(snapshot, archive, target, len(archives) > 1, verify, result)
    result.verified = verify
    result.duration = clock.steady() - began
    return result


def _restore_tree(
    snapshot: Snapshot, archive: ArchiveFiles, target: str, verify: bool, hear: Listener, result: RestoreResult
) -> None:
    tree = snapshot.tree(archive)
    _make_target(target, snapshot)
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
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with explained("write", target):
            syncfs(fd)
    finally:
        os.close(fd)


def _make_target(target: str, snapshot: Snapshot) -> None:
    base = os.path.realpath(snapshot.store.layout.base)
    place = os.path.realpath(target)
    if place == base or place.startswith(base + "/"):
        raise UsageError(f"{target} lies in the store itself", hint="restore to a place outside of it")
    try:
        if os.path.lexists(target):
            if not os.path.isdir(target):
                raise UsageError(f"{target} is not a directory")
            if os.listdir(target):
                raise UsageError(f"{target} is not empty", hint="restore into a new or empty directory")
        else:
            os.makedirs(target, 0o700)
    except OSError as error:
        raise explain(error, "make", target) from error


def _restore_file(
    snapshot: Snapshot, archive: ArchiveFiles, target: str, several: bool, verify: bool, result: RestoreResult
) -> None:
    """An image or blob: the target names the new file, or the directory that gets it."""
    path = target
    if several or os.path.isdir(target):
        with explained("make", target):
            os.makedirs(target, exist_ok=True)
        path = os.path.join(target, archive.name)
    if os.path.lexists(path):
        raise UsageError(f"{path} exists already", hint="name a file that does not exist")
    write = write_image if archive.kind == "image" else write_blob
    result.bytes += write(snapshot, archive.files[0], path, verify)
    result.files += 1
    result.entries += 1
