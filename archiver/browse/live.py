"""A live directory as a backup would see it: names left out by the same rules, attributes that an archive keeps."""

from __future__ import annotations

import json
import os
import stat as st
from collections.abc import Iterable, Iterator

from archiver.browse.snapshot import Tree
from archiver.browse.view import ArchiveView, View, plain_parts
from archiver.errors import Damaged
from archiver.source.content import OpenFile, Replaced, data_extents, may_have_holes, open_file
from archiver.source.metadata import plain
from archiver.source.problem import Report, explain
from archiver.source.selection import EXCLUDE_FILE, LARGEST_EXCLUDE_FILE
from archiver.source.walk import SourceDirectory, SourceEntry, Walk, WalkOptions
from formats.errors import FormatError
from formats.patterns import Pattern, parse_exclude_file
from formats.pxar.items import KINDS, Entry, Kind
from formats.wire import Buffer

CLI_EXCLUDES = b".pxarexclude-cli"
ZEROS = bytes(16 << 20)  # what a hole is read as
_PIECE = 1 << 20  # bytes
_LARGEST_EXCLUDES = 16 << 20


class LiveNode:
    """``above`` is the directory that it is in; the root has none."""

    __slots__ = ("above", "entered", "kind", "name", "readable", "source")

    def __init__(self, above: SourceDirectory | None, source: SourceEntry) -> None:
        self.above = above
        self.source = source
        self.name = source.name
        self.kind: Kind = KINDS[source.stat.st_mode >> 12]
        self.readable = True
        self.entered: SourceDirectory | None = None

    @property
    def size(self) -> int:
        return self.source.stat.st_size if self.kind == "file" else 0


class LiveView(View[LiveNode]):
    """Further names of a file are files. The tree is gone through once: a directory must be asked for its entries, and
    for all of them, before the next entry of the directory around it. What cannot be read is reported."""

    def __init__(self, path: str, options: WalkOptions, problem: Report) -> None:
        """Raises ArchiverError when there is no such directory."""
        self.name = path
        self.walk = Walk(path, options, problem)
        self._root = self.walk.open_root()

    def __enter__(self) -> LiveView:
        return self

    def __exit__(self, *_: object) -> None:
        self.walk.close()

    def root(self) -> LiveNode:
        node = LiveNode(None, SourceEntry(b"", self._root.stat))
        node.entered = self._root
        return node

    def readable(self, node: LiveNode) -> bool:
        return node.readable

    def resolved(self, node: LiveNode) -> LiveNode:
        return node

    def entries(self, directory: LiveNode) -> Iterator[LiveNode]:
        entered = self._enter(directory)
        if entered is None:
            return
        for name in entered.names:
            try:
                source = entered.look(name)
            except OSError as error:
                self.walk.report_unseen(entered, name, error)
                if explain(error)[0] != "vanished":
                    yield self._unseen(entered, name)
                continue
            yield LiveNode(entered, source)
        if directory.above is not None:
            self.walk.leave()

    @staticmethod
    def _unseen(above: SourceDirectory, name: bytes) -> LiveNode:
        node = LiveNode(above, SourceEntry(name, os.stat_result((st.S_IFREG, *[0] * 9))))
        node.readable = False
        return node

    def _enter(self, node: LiveNode) -> SourceDirectory | None:
        if node.entered is None and node.readable:
            node.entered = self.walk.enter(node.source)
            node.readable = node.entered is not None
        return node.entered

    def entry(self, node: LiveNode) -> Entry:
        stat, target, major, minor = node.source.stat, b"", 0, 0
        metadata = plain(stat)
        try:
            if node.kind == "dir":
                entered = self._enter(node)
                metadata = metadata if entered is None else entered.metadata
            elif node.kind == "file" and node.above is not None:
                with self.open(node) as file:
                    stat, metadata = file.stat, node.above.metadata_of(node.name, file)
            elif node.kind == "symlink" and node.above is not None:
                target = os.readlink(node.name, dir_fd=node.above.fd)
            elif node.kind in ("char", "block"):
                major, minor = os.major(stat.st_rdev), os.minor(stat.st_rdev)
        except OSError as error:
            self._unreadable(node, error)
        size = stat.st_size if node.kind == "file" else 0
        return Entry(node.kind, node.name, 1, metadata, size, 0, None, target, 0, major, minor, 0, 0, 0)

    def open(self, node: LiveNode) -> OpenFile:
        """A regular file. Raises OSError."""
        if node.above is None:
            raise Replaced
        return open_file(node.above, node.source)

    def _unreadable(self, node: LiveNode, error: OSError) -> None:
        node.readable = False
        if node.above is not None:
            node.above.note(node.name, *explain(error))

    def contents(self, node: LiveNode, size: int) -> Iterator[Buffer]:
        """The first ``size`` bytes of a file, piece by piece; of one that cannot be read, as many as can be. Those of
        holes lie in ``ZEROS``."""
        try:
            with self.open(node) as file:
                size = min(size, file.stat.st_size)
                extents = data_extents(file.fd, size) if may_have_holes(file.stat) else iter([(0, size, True)])
                for offset, left, is_data in extents:
                    while left:
                        length = min(left, _PIECE if is_data else len(ZEROS))
                        piece = os.pread(file.fd, length, offset) if is_data else memoryview(ZEROS)[:length]
                        if not piece:
                            return
                        yield piece
                        offset, left = offset + len(piece), left - len(piece)
        except OSError as error:
            self._unreadable(node, error)


def walk_options(
    tree: Tree, path: bytes, excludes: Iterable[Pattern], never_enter: frozenset[tuple[int, int]] = frozenset()
) -> WalkOptions:
    """Those with which a live directory is looked at as the backup ``tree`` has seen what is at ``path``: without what
    was excluded then, and ``excludes``. Raises Damaged."""
    view, parts = ArchiveView(tree), plain_parts(path)
    base = b"".join(b"/" + part for part in parts)
    patterns = _stored_excludes(view) + [pattern.below(base) for pattern in excludes]
    for depth in range(len(parts)):
        patterns += _exclude_file(view, b"/" + b"/".join(parts[:depth]))
    return WalkOptions(excludes=patterns, never_enter=never_enter, base=base)


def _exclude_file(view: ArchiveView, directory: bytes) -> list[Pattern]:
    """The patterns that were in a directory."""
    node = view.open_path(directory + b"/" + EXCLUDE_FILE)
    if node is None or node.kind != "file" or node.size > LARGEST_EXCLUDE_FILE:
        return []
    return parse_exclude_file(b"".join(view.pieces(node)), directory, lambda line, reason: None)


def _stored_excludes(view: ArchiveView) -> list[Pattern]:
    """spec pxar.md 9, 13.4: in the prelude, or in a file that a version 1 archive has for them."""
    node = view.open_path(CLI_EXCLUDES) if view.accessor.prelude is None else None
    try:
        if node is not None and node.kind == "file" and node.size <= _LARGEST_EXCLUDES:
            text = b"".join(view.pieces(node))
        else:
            prelude = json.loads(view.accessor.prelude or b"{}")
            text = str(prelude.get("exclude-patterns") or "").encode() if isinstance(prelude, dict) else b""
        return [Pattern.parse(line) for line in text.split(b"\n") if line]
    except (ValueError, FormatError) as error:
        raise Damaged(f"the exclude patterns in {view.name} cannot be read: {error}") from error
