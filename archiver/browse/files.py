"""Single entries of a tree: listing, sizes of directories, and contents of one file."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from archiver.browse.recorded import LETTERS, Item, Lost, RunTree
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
from formats.pxar.items import Entry
from formats.wire import Buffer

T = TypeVar("T")
_DIRECTORY = LETTERS["dir"]
_LARGEST = 2**64 - 1


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


class Block(NamedTuple, Generic[T]):
    """Something about entries that follow each other in a listing. ``above`` is what is shown before their names, and
    in their paths behind ``top``."""

    top: bytes
    above: bytes
    those: list[T]


def names_below(view: AnyView, path: bytes, *, recursive: bool) -> Iterator[Block[bytes]]:
    """The names that a ``listing`` shows, in the same order, for little more than they cost."""
    key = _recorded_directory(view, path)
    if isinstance(view, RecordedView) and key is not None:
        return _blocks(partial(_stretches, view), _top(path), key, recursive=recursive)
    looked: Any = view
    return (_block(found, found.node.name) for found in listing(looked, path, recursive=recursive))


def entries_below(view: AnyView, path: bytes, *, recursive: bool) -> Iterator[Block[Entry]]:
    """What the archive says about the entries that a ``listing`` shows, in the same order, likewise."""
    key = _recorded_directory(view, path)
    if isinstance(view, RecordedView) and key is not None:
        return _blocks(partial(_described, view), _top(path), key, recursive=recursive)
    looked: Any = view
    return (_block(found, looked.entry(found.node)) for found in listing(looked, path, recursive=recursive))


def answered_blocks(ask: Callable[[bool], Iterator[Block[T]]]) -> Iterator[Block[T]]:
    """As ``answered``."""
    count = 0
    try:
        for block in ask(True):
            count += len(block.those)
            yield block
    except Lost:
        for block in ask(False):
            rest = block.those[count:]
            count = max(count - len(block.those), 0)
            if rest:
                yield block._replace(those=rest)


def _recorded_directory(view: AnyView, path: bytes) -> int | None:
    """The key of what is at ``path``, if that is a directory that the catalog has. NotFound."""
    top = view.find(path)
    return top.key if isinstance(top, RecordedNode) and top.kind == "dir" else None


def _top(path: bytes) -> bytes:
    """What stands before ``shown`` in the paths of what is in the directory ``path``."""
    return b"".join(b"/" + part for part in plain_parts(path)) + b"/"


def _block(found: Found[Any], that: T) -> Block[T]:
    path, shown, node = found
    return Block(path[: len(path) - len(shown)], shown[: len(shown) - len(node.name)], [that])


_Stretch = tuple[list[T], tuple[bytes, int] | None]
"""What is told of the entries of a directory up to and with each directory in it, and that one's name and key."""


def _blocks(
    stretches: Callable[[int], Iterator[_Stretch[T]]], top: bytes, key: int, *, recursive: bool
) -> Iterator[Block[T]]:
    levels = [(b"", stretches(key))]
    while levels:
        above, those = levels[-1]
        stretch = next(those, None)
        if stretch is None:
            levels.pop()
            continue
        told, directory = stretch
        yield Block(top, above, told)
        if recursive and directory is not None:
            name, key = directory
            levels.append((above + name + b"/", stretches(key)))


def _described(view: RecordedView, key: int) -> Iterator[_Stretch[Entry]]:
    for entries, directory in view.tree.described(key):
        yield entries, None if directory is None else (entries[-1].name, directory)


def _stretches(view: RecordedView, key: int) -> Iterator[_Stretch[bytes]]:
    for record in view.tree.records(key):
        names, kinds, start = record.names, record.kinds, 0
        directory = kinds.find(_DIRECTORY)
        while directory >= 0:
            name = names[directory]
            yield names[start : directory + 1], (name, Item(record, directory, name).key)
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


def sizes_below(view: StoredView[N], path: bytes) -> array[int]:
    """``size_below`` of all directories in a recursive ``listing`` of ``path``, in its order, each entry met once."""
    sizes = array("Q")
    around: list[int] = []  # places in it of the directories above the next entry

    def add(size: int) -> None:
        if around:
            sizes[around[-1]] = min(sizes[around[-1]] + size, _LARGEST)

    def leave(depth: int) -> None:
        while len(around) > depth:
            size = sizes[around.pop()]
            add(size)

    for found in listing(view, path, recursive=True):
        leave(found.shown.count(b"/"))
        if found.node.kind == "dir":
            around.append(len(sizes))
            sizes.append(0)
        else:
            add(found.node.size)
    leave(0)
    return sizes


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
