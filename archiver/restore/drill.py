"""A fire drill: files of a snapshot are really restored, read again and removed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from archiver.browse.snapshot import ArchiveFiles, Snapshot, Tree
from archiver.browse.stream import Cursor
from archiver.core import linux
from archiver.core.disk import explained
from archiver.core.events import Listener
from archiver.errors import Damaged, NotFound
from archiver.restore.run import RestoreResult, restore
from archiver.store.layout import WRAPPED_KEY
from formats.errors import FormatError
from formats.pxar.decoder import LEAVE, Decoder, LeaveDirectory
from formats.pxar.items import Entry

_USUAL_SIZE = 64 << 20  # bytes; a larger one is taken only where there is no other
_REASONS = 3
_CANNOT_BE_REMOVED = linux.FS_IMMUTABLE_FL | linux.FS_APPEND_FL

Event = Entry | LeaveDirectory
Chooser = Callable[[Entry], bool]


@dataclass(frozen=True, slots=True)
class Restored:
    """The file that came back: its archive, its path in there (the archive's name for an image or blob), bytes."""

    archive: str
    path: str
    size: int


@dataclass(slots=True)
class Sample:
    """Some files of a tree. ``events``: these and the directories that lead to them, as a decoder yields them;
    ``chosen``: the paths of the files with their entries."""

    archive: ArchiveFiles
    events: list[Event] = field(default_factory=list)
    chosen: list[tuple[bytes, Entry]] = field(default_factory=list)


def drill(snapshot: Snapshot, listener: Listener) -> Restored:
    """Restore one file of ``snapshot`` to a temporary directory the way a restore does it, with its verification.

    Raises NotFound where there is no file, Damaged when it does not come back as it was saved, ArchiverError.
    """
    sample = _one_file(snapshot)
    with restored(snapshot, sample, listener) as (_, result):
        path = "/" + os.fsdecode(sample.chosen[0][0]) if sample.chosen else sample.archive.name
        return Restored(sample.archive.name, path, result.bytes)


@contextmanager
def restored(
    snapshot: Snapshot, sample: Sample, listener: Listener, scratch: str | None = None
) -> Iterator[tuple[str, RestoreResult]]:
    """While inside, the files of a sample are in a directory of their own below ``scratch``, read again and right.

    Raises Damaged when they do not come back as they were saved, ArchiverError.
    """
    with explained("write into", scratch or "a directory for temporary files"):
        directory = tempfile.TemporaryDirectory(prefix="archiver-drill-", dir=scratch)
    with directory as place:
        target = os.path.join(place, "restored")
        result = restore(
            _Sampled(snapshot, sample), [sample.archive], target, verify=True, listener=listener, needs_room=False
        )
        wrong = [
            f"{os.fsdecode(problem.path)}: {problem.reason}" for problem in result.problems if _is_wrong(problem.kind)
        ]
        if wrong or result.files != max(len(sample.chosen), 1):
            what = "the file" if len(sample.chosen) < 2 else f"{len(sample.chosen)} files"
            reason = "; ".join(wrong[:_REASONS]) or "missing"
            raise Damaged(f"{what} of {snapshot.ref} did not come back as saved: {reason}")
        yield target, result


def _is_wrong(kind: str) -> bool:
    """What an ordinary user may not restore, such as owners, proves nothing about the backup."""
    return kind != "attribute"


def choose(snapshot: Snapshot, archive: ArchiveFiles, wanted: Chooser, *, first_only: bool = False) -> Sample:
    """The files of a tree that ``wanted`` says yes to; it is asked for each one that has contents and could be removed
    again. Raises Damaged."""
    sample = Sample(archive)
    above: list[Entry] = []
    entered = 0  # of those, how many are in the sample
    try:
        for event in snapshot.tree(archive).decoder():
            if event is LEAVE:
                above.pop()
                if entered > len(above):
                    sample.events.append(LEAVE)
                    entered -= 1
            elif event.kind == "dir":
                above.append(event)
            elif event.kind == "file" and event.size and _can_be_removed([*above, event]) and wanted(event):
                sample.events += [*above[entered:], event]
                entered = len(above)
                sample.chosen.append((b"/".join(entry.name for entry in [*above[1:], event]), event))
                if first_only:
                    break
    except FormatError as error:
        raise Damaged(f"{archive.name} of {snapshot.ref} is damaged: {error}") from error
    sample.events += [LEAVE] * entered
    return sample


def _one_file(snapshot: Snapshot) -> Sample:
    """In a tree where one has a file, else a blob or image. Raises NotFound."""
    archives = [archive for archive in snapshot.archives() if archive.files[0].filename != WRAPPED_KEY]
    for archive in archives:
        if archive.kind == "tree":
            sample = choose(snapshot, archive, lambda entry: entry.size <= _USUAL_SIZE, first_only=True)
            sample = sample if sample.chosen else choose(snapshot, archive, lambda entry: True, first_only=True)
            if sample.chosen:
                return sample
    others = [archive for archive in archives if archive.kind != "tree" and archive.files[0].size <= _USUAL_SIZE]
    if not others:
        raise NotFound(f"{snapshot.ref} has no file that could be restored")
    return Sample(others[0])


class _Sampled(Snapshot):
    """A snapshot that has nothing but a sample."""

    def __init__(self, snapshot: Snapshot, sample: Sample) -> None:
        super().__init__(snapshot.store, snapshot.ref, snapshot.crypt, manifest=snapshot.manifest)
        self._sample = sample

    def tree(self, archive: ArchiveFiles) -> Tree:
        return _SampledTree(self, archive, self._sample.events)


class _SampledTree(Tree):
    def __init__(self, snapshot: Snapshot, archive: ArchiveFiles, events: list[Event]) -> None:
        super().__init__(snapshot, archive)
        self._events = events

    def decoder(self) -> Decoder:
        return _Chosen(Cursor(self.archive), self._events)


class _Chosen(Decoder):
    """Yields what was chosen before."""

    def __init__(self, archive: Cursor, events: list[Event]) -> None:
        super().__init__(archive)
        self._chosen = events

    def __iter__(self) -> Iterator[Event]:
        yield from self._chosen


def _can_be_removed(entries: list[Entry]) -> bool:
    flags = 0
    for entry in entries:
        assert entry.metadata is not None
        flags |= linux.chattr_flags(entry.metadata.stat.flags)
    return not flags & _CANNOT_BE_REMOVED
