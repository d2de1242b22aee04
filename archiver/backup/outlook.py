"""Whether there will be room for a run, told before its work.

Nobody knows what a run will store before it has read what has changed: compression and deduplication may make anything
fit. So none is refused for what it might need (only where nothing is left, see store/reserve.py), but a person is told
when it looks bad: when the group's last runs stored more than is free; or, of a group's first run, when the files that
it would save are larger than what is free. To add these up costs a walk, which is made only where the file systems of
the sources hold more than is free. A night in which there is room costs two questions.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence

from archiver.backup.specification import ArchiveSpec
from archiver.core.disk import available
from archiver.core.events import SpaceShort
from archiver.errors import ArchiverError
from archiver.source.problem import Problem
from archiver.source.walk import SourceDirectory, SourceEntry, Walk, WalkOptions
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store

_RUNS = 7  # looked at
_BLOCK = 512


def look_out(store: Store, group: GroupRef, specs: Sequence[ArchiveSpec], walk: WalkOptions) -> SpaceShort | None:
    """What there is to be told. Raises ArchiverError for a source that cannot be archived."""
    free = available(store.layout.base)
    limited = not walk.all_file_systems and not walk.include_dev
    if limited and sum(_held(spec.path) for spec in specs) <= free:
        return None
    times = store.times(group)
    if len(times) > 1:
        needed = max(_stored(store, SnapshotRef(group, when)) for when in times[1:][-_RUNS:])
        return SpaceShort(needed, free, "runs") if needed > free else None
    if times:
        return None
    needed = sum(_size(spec.path, walk) for spec in specs)
    return SpaceShort(needed, free, "sources") if needed > free else None


def _held(path: str) -> int:
    """Bytes in use on the file system of a source; more than it has for one that does not tell."""
    try:
        space = os.statvfs(path)
    except OSError:
        return 0  # the run will tell
    return (space.f_blocks - space.f_bfree) * space.f_frsize or 1 << 62


def _stored(store: Store, ref: SnapshotRef) -> int:
    """What a run stored, as its manifest has it (spec blob-index-crypto.md 8.1)."""
    try:
        found = store.manifest(ref).unprotected.get("chunk_upload_stats")
    except ArchiverError:
        return 0
    size = found.get("compressed_size") if isinstance(found, Mapping) else 0
    return size if isinstance(size, int) else 0


def _size(path: str, options: WalkOptions) -> int:
    """Bytes that the selected files take, holes apart. What cannot be read is told by the run itself."""
    with Walk(path, options, _not_told, _known) as walk:
        total, entered = 0, [_entries(walk.open_root())]
        while entered:
            entry = next(entered[-1], None)
            if entry is None:
                entered.pop()
                walk.leave()
            elif stat.S_ISDIR(entry.stat.st_mode):
                directory = walk.enter(entry)
                if directory is not None:
                    entered.append(_entries(directory))
            else:
                total += min(entry.stat.st_size, entry.stat.st_blocks * _BLOCK)
        return total


def _entries(directory: SourceDirectory) -> Iterator[SourceEntry]:
    for name in directory.names:
        try:
            yield directory.look(name)
        except OSError:
            continue


def _not_told(problem: Problem) -> None:
    pass


def _known(directory: SourceDirectory) -> None:
    """Its metadata are not needed."""
    directory.is_known = True
