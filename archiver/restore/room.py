"""Whether there is room for what is restored: refused before anything is written when there certainly is none.

What a restore writes at least is not the size of its files, as blocks of zeros become holes. But what a chunk takes in
the store it takes because it is no zeros: compressed bytes are never notably more than those that are not zero. So of
a stream with P bytes, F of which are contents of files, and chunks that take S bytes in the store, S - (P - F) bytes of
contents are written, and more where they compress well. P and S are known from indexes and database, F from the
catalog, which is asked only where P bytes would not fit; of an image F is P. What zeros take in the store is left out
of S: what is nearly nothing but a hole refers to them so often that it would be all of S. Of a part of a tree the
archive tells which bytes of each chunk are wanted, and of each chunk the same is said. Where database or catalog do not
have the archive nothing is said, nor of a part of an archive in one stream, which would have to be read for it; and
nothing is certain where the target's file system itself may compress. The blocks that are reserved for root count as
free, and so does what a quota forbids.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from archiver.browse.catalog import recorded_tree
from archiver.browse.files import size_below
from archiver.browse.recorded import Lost
from archiver.browse.snapshot import ArchiveFiles, Snapshot, Tree
from archiver.browse.view import RecordedView
from archiver.core import linux
from archiver.core.disk import explained
from archiver.core.events import Listener, Notice
from archiver.errors import ArchiverError, NoSpace
from archiver.restore.choice import Above, Choice
from archiver.restore.image import size_without_holes
from archiver.store.indexes import Index, is_index
from formats.errors import FormatError
from formats.manifest import FileInfo
from formats.pxar.decoder import LEAVE
from formats.pxar.items import Entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHARE = 16  # one part in so many of S is left out, far more than what does not compress at all costs
_HEADER = 64  # bytes, and more than one has
_ZEROS_SHARE = 4096  # zeros that are compressed take much less than one part in so many
_MARGIN = 16 << 20  # bytes

_NOT_KNOWN = 0, 0

Part = Callable[[], tuple[Tree, Choice] | None]
"""What is chosen of a tree; None when something may be in its place."""


class New(NamedTuple):
    """A tree, or an image, that is written where nothing is: all of it or a ``part``."""

    archive: ArchiveFiles
    place: str
    part: Part | None = None


def check_room(snapshot: Snapshot, wanted: Iterable[New], listener: Listener) -> None:
    """Raises NoSpace; where it is not certain that what is ``wanted`` does not fit, but it is larger than what is free,
    that is told."""
    by_file_system: dict[int, list[tuple[New, str]]] = {}
    for new in wanted:
        there = existing_part(new.place)
        with explained("look at", there):
            by_file_system.setdefault(os.stat(there).st_dev, []).append((new, there))
    for found in by_file_system.values():
        there = found[0][1]
        with explained("look at", there):
            space = os.statvfs(there)
        free = space.f_bfree * space.f_frsize
        if space.f_blocks == 0 or sum(new.archive.files[-1].size for new, _ in found) <= free:
            continue
        known = [sizes(snapshot, new) for new, _ in found]
        least, most = (sum(column) for column in zip(*known, strict=True))
        if least > free + _MARGIN and linux.stores_as_it_is(there):
            raise NoSpace(
                f"no space left to restore to {there}: at least {least >> 20} MiB would be written,"
                f" {free >> 20} MiB are free",
                hint=_hint([new for new, _ in found]),
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


def _hint(wanted: Sequence[New]) -> str:
    if any(new.archive.kind == "tree" for new in wanted):
        return "make room there, choose another place, or restore a part with --include"
    return "make room there, or choose another place"


def sizes(snapshot: Snapshot, new: New) -> tuple[int, int]:
    """Bytes that the files take at least, and that they have; zeros when that is not known. Of an image the holes that
    are chunks of their own are left out of both."""
    try:
        if new.archive.kind == "image":
            return _image_sizes(snapshot, new.archive)
        if new.part is None:
            return _tree_sizes(snapshot, new.archive)
        part = new.part()
        return _NOT_KNOWN if part is None else _part_sizes(*part)
    except (ArchiverError, FormatError, Lost):  # whoever restores it will say so
        return _NOT_KNOWN


def _image_sizes(snapshot: Snapshot, archive: ArchiveFiles) -> tuple[int, int]:
    least = _least(snapshot, archive.files[0])
    return 0 if least is None else int(least.sum()), size_without_holes(snapshot, archive.files[0])


def _tree_sizes(snapshot: Snapshot, archive: ArchiveFiles) -> tuple[int, int]:
    least, tree = _least(snapshot, archive.files[-1]), recorded_tree(snapshot, archive)
    if least is None or tree is None:
        return _NOT_KNOWN
    view = RecordedView(tree, archive.name)
    contents = size_below(view, view.root())
    return max(0, int(least.sum()) - max(0, archive.files[-1].size - contents)), contents


def _part_sizes(tree: Tree, choice: Choice) -> tuple[int, int]:
    least = _least(tree.snapshot, tree.content_file) if tree.split else None
    if least is None:
        return _NOT_KNOWN
    index = tree.content.index
    wanted, contents = _wanted(tree, choice, index)
    if len(wanted) != len(least):
        return _NOT_KNOWN
    others = index.sizes().astype(np.int64) - np.frombuffer(wanted, np.int64)
    return int(np.maximum(least - np.maximum(others, 0), 0).sum()), contents


def _wanted(tree: Tree, choice: Choice, index: Index) -> tuple[array[int], int]:
    """How many bytes of each chunk are contents of chosen files, and of all together."""
    wanted, contents = array("q", bytes(8 * len(index))), 0
    for step in choice.steps(tree):
        if step is LEAVE or type(step) is Above:
            continue
        assert isinstance(step, Entry)
        at, end = step.content_offset, step.content_offset + step.size
        if step.kind != "file" or end > index.size:
            continue
        contents += step.size
        while at < end:
            number = index.find(at)
            until = min(end, index.end(number))
            wanted[number] += until - at
            at = until
    return wanted, contents


def _least(snapshot: Snapshot, file: FileInfo) -> NDArray[np.int64] | None:
    """How many bytes of each chunk of a file are certainly no zeros; None when that is not known."""
    database = snapshot.store.database
    references = None if database is None else database.references(snapshot.ref.path)
    if database is None or references is None:
        return None
    indexes = [known.filename for known in snapshot.manifest.files if is_index(known.filename)]
    numbers = references[indexes.index(file.filename)]
    plain, stored = database.sizes()  # of all chunks of the store
    is_known = numbers < len(stored)
    least = np.zeros(len(numbers), np.int64)
    taken, size = (sizes[numbers[is_known]].astype(np.int64) for sizes in (stored, plain))
    least[is_known] = np.maximum(taken - taken // _SHARE - _HEADER - size // _ZEROS_SHARE, 0)
    return least
