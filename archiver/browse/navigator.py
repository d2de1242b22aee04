"""Going about in a tree as a shell does: a current directory, paths with ``.`` and ``..``, symbolic links.

Paths are bytes. The root is its own parent, and links that lead out of the tree lead to its root: an absolute target
starts there, a relative one in the directory of the link.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from archiver.browse.snapshot import Tree
from archiver.errors import Damaged, NotFound, UsageError
from formats.errors import FormatError
from formats.pxar.accessor import Node
from formats.pxar.decoder import LEAVE
from formats.pxar.items import Entry

_MOST_LINKS = 40
_SPECIAL = re.compile(rb"([\\*?\[])")

Way = tuple[Node, ...]  # the directories from the root on, and the entry


class Navigator:
    """Of one tree. Everything raises NotFound, UsageError (not a directory, a link where none may be) and Damaged."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        with self._explained():
            self._accessor = tree.accessor()
        self._here: Way = (self._accessor.root,)

    @property
    def here(self) -> bytes:
        """The current directory, ``b"/a/b"``."""
        return path_of(self._here)

    def change(self, path: bytes) -> None:
        """Go to a directory. A symbolic link is no directory."""
        way = self.resolve(path)
        if way[-1].kind == "symlink":
            raise UsageError(f"{_shown(path)} is a symbolic link", hint=f"to {_shown(way[-1].target)}")
        self._here = self._directory(way, path)

    def resolve(self, path: bytes) -> Way:
        """Where a path leads. Links in the middle are followed, the last one is not."""
        with self._explained():
            way = [self._accessor.root] if path.startswith(b"/") else list(self._here)
            parts = deque(part for part in path.split(b"/") if part not in (b"", b"."))
            links = 0
            while parts:
                if way[-1].kind == "symlink":
                    links += 1
                    if links > _MOST_LINKS:
                        raise UsageError(f"{_shown(path)}: too many symbolic links")
                    target = way.pop().target
                    if target.startswith(b"/"):
                        del way[1:]
                    parts.extendleft(reversed([part for part in target.split(b"/") if part not in (b"", b".")]))
                    continue
                part = parts.popleft()
                self._directory(tuple(way), path)
                if part == b"..":
                    del way[max(1, len(way) - 1) :]
                    continue
                child = self._accessor.lookup(way[-1], part)
                if child is None:
                    raise NotFound(f"there is no {_shown(path)}")
                way.append(child)
            return tuple(way)

    @staticmethod
    def _directory(way: Way, path: bytes) -> Way:
        if way[-1].kind != "dir":
            raise UsageError(f"{_shown(path)}: {_shown(path_of(way))} is not a directory")
        return way

    def entries(self, way: Way) -> Iterator[Node]:
        """What is in a directory, in the order of the archive; anything else is itself."""
        if way[-1].kind != "dir":
            yield way[-1]
            return
        with self._explained():
            yield from self._accessor.entries(way[-1])

    def file_of(self, node: Node) -> Node:
        """The file that a hard link is another name of; everything else is itself."""
        with self._explained():
            return self._accessor.follow_hardlink(node) if node.kind == "hardlink" else node

    def walk(self) -> Iterator[tuple[bytes, Entry]]:
        """Every entry below the root with its path."""
        path = bytearray()
        lengths: list[int] = []
        with self._explained():
            for event in self.tree.decoder():
                if event is LEAVE:
                    del path[lengths.pop() :]
                    continue
                length = len(path)
                if event.depth:
                    path += b"/" + event.name
                    yield bytes(path), event
                if event.kind == "dir":
                    lengths.append(length)
                else:
                    del path[length:]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except FormatError as error:
            tree = self.tree
            raise Damaged(f"{tree.files.name} of {tree.snapshot.ref} is damaged: {error}") from error


def path_of(way: Way) -> bytes:
    return b"/" + b"/".join(node.name for node in way[1:])


def literal(path: bytes) -> bytes:
    """The pattern that fits this path and nothing else; for the root one that fits everything."""
    return b"/**" if path == b"/" else _SPECIAL.sub(rb"\\\1", path)


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
