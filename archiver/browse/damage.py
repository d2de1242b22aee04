"""Which places of an index damaged chunks are, and which files of a tree a damaged range of its streams belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from archiver.browse.snapshot import ArchiveFiles, Snapshot, Tree
from archiver.errors import ArchiverError
from archiver.store.digests import prefixes_of
from archiver.store.indexes import Index
from formats.errors import FormatError
from formats.manifest import FileInfo
from formats.pxar.constants import HEADER_SIZE
from formats.pxar.decoder import LEAVE

_FILES_AT_MOST = 1000  # of one range
Range = tuple[int, int]


BadChunks = Mapping[tuple[bytes, int, bool], str]  # by digest, size and whether it is to be encrypted: what is wrong


class BadChunk(NamedTuple):
    """A place of an index whose chunk is damaged."""

    position: int
    digest: bytes
    reason: str


class DamagedFile(NamedTuple):
    """``start`` and ``end``: which bytes of its contents are lost; of an empty one its header. Without them ``path``
    are words in parentheses that stand for files nobody can name."""

    path: str
    start: int | None
    end: int | None


def bad_chunks(index: Index, encrypted: bool, bad: BadChunks) -> list[BadChunk]:
    """The damaged chunks of an index in its order. Few others start with the same 8 bytes as one of them."""
    if not bad:
        return []
    starts = np.array([int.from_bytes(digest[:8]) for digest, _, _ in bad], np.uint64)
    found = []
    for position in np.flatnonzero(np.isin(prefixes_of(index.digests), starts)).tolist():
        digest = index.digest(position)
        reason = bad.get((digest, index.end(position) - index.start(position), encrypted))
        if reason is not None:
            found.append(BadChunk(position, digest, reason))
    return found


def damaged_files(tree: Tree, content: list[Range], room: int) -> list[list[DamagedFile]]:
    """For each of the ``content`` ranges [start, end) (sorted, disjoint, of the content stream) the files with contents
    in it. The tree is read once, however many ranges there are; the paths have ``room`` characters together.

    Damage to names and attributes hides the rest: every list then ends with words that say from where on.
    """
    found: list[list[DamagedFile]] = [[] for _ in content]
    names: list[bytes] = []  # the path of the entry that was read last
    position = 0
    try:
        for event in tree.decoder():
            if event is LEAVE:
                continue
            del names[max(event.depth - 1, 0) :]
            names.append(event.name)
            if event.kind != "file":
                continue
            first, end = event.content_offset, event.content_offset + event.size
            start = first - HEADER_SIZE if tree.split else first  # its header is needed too
            while position < len(content) and content[position][1] <= start:
                position += 1
            for number in range(position, len(content)):
                if content[number][0] >= end:
                    break
                if len(found[number]) < _FILES_AT_MOST and room > 0:
                    lost = max(content[number][0] - first, 0), max(min(content[number][1], end) - first, 0)
                    found[number].append(DamagedFile(_path(names), *lost))
                    room -= len(found[number][-1].path)
                elif found[number][-1:] != [_MORE]:
                    found[number].append(_MORE)
    except (FormatError, ArchiverError):
        for files in found:
            files.append(DamagedFile(f"(everything after {_path(names)})", None, None))
    return found


def files_of(
    snapshot: Snapshot, archive: ArchiveFiles | None, file: FileInfo, ranges: list[Range], room: int
) -> list[list[DamagedFile]]:
    """The files that each of the damaged ranges of ``file``, an index of ``archive``, concerns; none of a catalog,
    which has no archive, nor where the key is missing. ``room`` as above."""
    if archive is None:
        return [[] for _ in ranges]
    if archive.kind != "tree":
        return [[DamagedFile(archive.name, start, end)] for start, end in ranges]
    try:
        tree = snapshot.tree(archive)
    except ArchiverError:
        return [[] for _ in ranges]
    if file is archive.files[-1]:
        return damaged_files(tree, ranges, room)
    (hidden,) = damaged_files(tree, [(0, 0)], 0)  # of names and attributes: it is not known what they were
    return [hidden for _ in ranges]


def _path(names: list[bytes]) -> str:
    return "/" + b"/".join(names).decode("utf-8", "surrogateescape")


_MORE = DamagedFile("(and more)", None, None)
