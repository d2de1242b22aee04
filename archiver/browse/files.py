"""Single entries of a tree: listing, and contents of one file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from archiver.browse.snapshot import Tree
from archiver.errors import Damaged, NotFound, UsageError
from formats.errors import FormatError
from formats.pxar.accessor import Accessor, Node
from formats.pxar.items import Entry
from formats.wire import Buffer


class Found(NamedTuple):
    """``path`` from the archive's root (``b"/a/b"``); ``shown`` relative to what was listed."""

    path: bytes
    shown: bytes
    entry: Entry


def _open(tree: Tree, path: bytes) -> tuple[Accessor, Node]:
    accessor = tree.accessor()
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    node = accessor.open_path(b"/".join(parts)) if b".." not in parts else None
    if node is None:
        shown = path.decode("utf-8", "backslashreplace")
        raise NotFound(f"there is no {shown} in {tree.files.name} of {tree.snapshot.ref}")
    return accessor, node


def _damaged(tree: Tree, error: FormatError) -> Damaged:
    return Damaged(f"{tree.files.name} of {tree.snapshot.ref} is damaged: {error}")


def listing(tree: Tree, path: bytes, *, recursive: bool) -> Iterator[Found]:
    """The entries of a directory in the order of the archive, usually that of their names, or the one entry that
    ``path`` is. NotFound, Damaged."""
    try:
        accessor, top = _open(tree, path)
        base = b"/" + b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))
        if top.kind != "dir":
            yield Found(base, base.rsplit(b"/", 1)[-1], top)
            return
        above = bytearray(base.rstrip(b"/") + b"/")
        start = len(above)
        levels = [(start, accessor.entries(top))]
        while levels:
            length, entries = levels[-1]
            del above[length:]
            node = next(entries, None)
            if node is None:
                levels.pop()
                continue
            yield Found(bytes(above) + node.name, bytes(above[start:]) + node.name, node)
            if recursive and node.kind == "dir":
                above += node.name + b"/"
                levels.append((len(above), accessor.entries(node)))
    except FormatError as error:
        raise _damaged(tree, error) from error


def contents(tree: Tree, path: bytes) -> Iterator[Buffer]:
    """The bytes of a regular file, piece by piece; hard links are followed. NotFound, UsageError, Damaged."""
    try:
        accessor, node = _open(tree, path)
        if node.kind == "hardlink":
            node = accessor.follow_hardlink(node)
        if node.kind != "file":
            raise UsageError(f"{path.decode('utf-8', 'backslashreplace')} is not a regular file")
        stream, offset, size = accessor.content(node)
    except FormatError as error:
        raise _damaged(tree, error) from error
    yield from (tree.content if stream == "payload" else tree.archive).pieces(offset, size)
