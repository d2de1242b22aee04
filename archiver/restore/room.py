"""Whether there is room for what is restored: refused before anything is written when there certainly is none.

What a restore writes at least is not the size of its files, as blocks of zeros become holes. But what a chunk takes in
the store it takes because it is no zeros: compressed bytes are never notably more than those that are not zero. So of
a stream with P bytes, F of which are contents of files, and chunks that take S bytes in the store, S - (P - F) bytes of
contents are written, and more where they compress well. P and S are known from indexes and database, F from the
catalog, which is asked only where P bytes would not fit. What zeros take in the store is left out of S: a file that is
nearly nothing but a hole refers to them so often that it would be all of S. Where the catalog does not have the archive
nothing is said, and nothing is certain where the target's file system itself may compress. The blocks that are reserved
for root count as free, and so does what a quota forbids.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from archiver.browse.catalog import recorded_tree
from archiver.browse.files import size_below
from archiver.browse.recorded import Lost
from archiver.browse.snapshot import ArchiveFiles, Snapshot
from archiver.browse.view import RecordedView
from archiver.core import linux
from archiver.core.disk import explained
from archiver.core.events import Listener, Notice
from archiver.errors import NoSpace
from archiver.store.indexes import is_index

_SHARE = 16  # one part in so many of S is left out, far more than a chunk's header and what does not compress at all
_MARGIN = 16 << 20  # bytes
_HEADER = 128  # bytes of a chunk in the store, more than all headers have
_ZEROS = 13  # zeros compress to less than one part in 2^13

Places = Sequence[tuple[ArchiveFiles, str]]


def check_room(snapshot: Snapshot, places: Places, listener: Listener) -> None:
    """``places``: where whole trees go, new or empty directories. Raises NoSpace; where it is not certain that they
    do not fit, but they are larger than what is free, that is told."""
    by_file_system: dict[int, list[tuple[ArchiveFiles, str]]] = {}
    for archive, place in places:
        there = existing_part(place)
        with explained("look at", there):
            by_file_system.setdefault(os.stat(there).st_dev, []).append((archive, there))
    for found in by_file_system.values():
        there = found[0][1]
        with explained("look at", there):
            space = os.statvfs(there)
        free = space.f_bfree * space.f_frsize
        if space.f_blocks == 0 or sum(archive.files[-1].size for archive, _ in found) <= free:
            continue
        known = [sizes(snapshot, archive) for archive, _ in found]
        least, most = (sum(column) for column in zip(*known, strict=True))
        if least > free + _MARGIN and linux.stores_as_it_is(there):
            raise NoSpace(
                f"no space left to restore to {there}: at least {least >> 20} MiB would be written,"
                f" {free >> 20} MiB are free",
                hint="make room there, choose another place, or restore a part with --include",
            )
        if most > free:
            text = (
                f"the files have {most >> 20} MiB, {free >> 20} MiB are free in {there}: without holes in them, or a"
                " file system that compresses, they do not fit"
            )
            listener(Notice(text, "warning"))


def existing_part(place: str) -> str:
    """The directory that is there of the way to ``place``."""
    while not os.path.exists(place):
        place = os.path.dirname(os.path.abspath(place))
    return place


def sizes(snapshot: Snapshot, archive: ArchiveFiles) -> tuple[int, int]:
    """Bytes that the files of a tree take at least, and that they have; zeros when that is not known."""
    database, file = snapshot.store.database, archive.files[-1]
    references = None if database is None else database.references(snapshot.ref.path)
    try:
        tree = recorded_tree(snapshot, archive)
        if database is None or references is None or tree is None:
            return 0, 0
        view = RecordedView(tree, archive.name)
        contents = size_below(view, view.root())
    except Lost:
        return 0, 0
    indexes = [known.filename for known in snapshot.manifest.files if is_index(known.filename)]
    plain, stored = database.sizes()
    stored -= ((plain >> _ZEROS) + _HEADER).clip(max=stored)
    numbers = references[indexes.index(file.filename)]
    taken = int(stored[numbers[numbers < len(stored)]].sum(dtype="i8"))
    return max(0, taken - taken // _SHARE - max(0, file.size - contents)), contents
