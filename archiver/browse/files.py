"""Single entries of a tree: listing, sizes of directories, and contents of one file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple

from archiver.browse.recorded import LETTERS, Item, RunTree
from archiver.browse.snapshot import Tree
from archiver.browse.view import (
    AnyView,
    ArchiveView,
    N,
    Node,
    RecordedNode,
    RecordedView,
    StoredView,
    plain_parts,
)
from archiver.errors import UsageError
from archiver.store.catalog.record import HAS_DIRECTORIES, content_sizes
from formats.wire import Buffer

_DIRECTORY = LETTERS["dir"]


class Found(NamedTuple, Generic[N]):
    """``path`` from the archive's root (``b"/a/b"``); ``shown`` relative to what was listed."""

    path: bytes
    shown: bytes
    node: N


def listing(view: StoredView[N], path: bytes, *, recursive: bool) -> Iterator[Found[N]]:
    """The entries of a directory in the order of the archive, usually that of their names, or the one entry that
    ``path`` is. NotFound, Damaged."""
    top = view.find(path)
    base = b"/" + b"/".join(plain_parts(path))
    if top.kind != "dir":
        yield Found(base, base.rsplit(b"/", 1)[-1], top)
        return
    above = bytearray(base.rstrip(b"/") + b"/")
    start = len(above)
    levels = [(start, view.entries(top))]
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
            levels.append((len(above), view.entries(node)))


def names_below(view: AnyView, path: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What a recursive ``listing`` shows and in the same order, as (what is before the name, name), for little more
    than the names cost."""
    top = view.find(path)
    if not isinstance(view, RecordedView) or not isinstance(top, RecordedNode) or top.kind != "dir":
        looked: Any = view
        for found in listing(looked, path, recursive=True):
            yield found.shown[: len(found.shown) - len(found.node.name)], found.node.name
        return
    levels = [(b"", _stretches(view, top.key))]
    while levels:
        above, stretches = levels[-1]
        stretch = next(stretches, None)
        if stretch is None:
            levels.pop()
            continue
        names, key = stretch
        for name in names:
            yield above, name
        if key is not None:
            levels.append((above + names[-1] + b"/", _stretches(view, key)))


def _stretches(view: RecordedView, key: int) -> Iterator[tuple[list[bytes], int | None]]:
    """The names of a directory up to and with each directory in it, and that one's key."""
    for record in view.tree.records(key):
        names, kinds, start = record.names, record.kinds, 0
        directory = kinds.find(_DIRECTORY)
        while directory >= 0:
            yield names[start : directory + 1], Item(record, directory, names[directory]).key
            start = directory + 1
            directory = kinds.find(_DIRECTORY, start)
        if start < len(names):
            yield names[start:], None


def size_below(view: AnyView, node: Node) -> int:
    """Bytes of the contents of all files in a directory and below it, or of one file; a hard link has none."""
    if isinstance(view, RecordedView) and isinstance(node, RecordedNode):
        return _recorded_size(view.tree, node.key) if node.kind == "dir" else node.size
    looked: Any = view
    total, todo = node.size, [node] if node.kind == "dir" else []
    while todo:
        for entry in looked.entries(todo.pop()):
            total += entry.size
            if entry.kind == "dir":
                todo.append(entry)
    return total


def _recorded_size(tree: RunTree, key: int) -> int:
    total, todo = 0, [key]
    while todo:
        for record in tree.records(todo.pop()):
            total += int(content_sizes(record).sum())
            if record.flags & HAS_DIRECTORIES:
                numbers = (number for number, kind in enumerate(record.kinds) if kind == _DIRECTORY[0])
                todo += [Item(record, number, b"").key for number in numbers]
    return total


def contents(tree: Tree, path: bytes) -> Iterator[Buffer]:
    """The bytes of a regular file, piece by piece; hard links are followed. NotFound, UsageError, Damaged."""
    view = ArchiveView(tree)
    node = view.resolved(view.find(path))
    if node is None or node.kind != "file":
        raise UsageError(f"{path.decode('utf-8', 'backslashreplace')} is not a regular file")
    yield from view.pieces(node)
