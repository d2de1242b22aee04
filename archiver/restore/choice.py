"""What of a tree is restored: everything, what patterns choose, or one entry under a name of its own.

An entry is chosen when a pattern of ``include`` fits it or a directory above it (without such patterns: always), and no
pattern of ``exclude`` fits it or a directory above it. A directory that is not chosen itself is gone through to what is
chosen below it (``Above``).

The first chosen name of a file whose own place in the archive is not chosen becomes the file; later ones link to that.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from archiver.browse.snapshot import Tree
from archiver.core.spill import SpillTable
from archiver.errors import Damaged, NotFound, UsageError
from archiver.restore.owners import Owners
from formats.errors import FormatError
from formats.patterns import Pattern, PatternList, parse_exclude_option
from formats.pxar.accessor import Accessor, Node
from formats.pxar.decoder import LEAVE, LeaveDirectory
from formats.pxar.items import Entry

_PLACE = 8  # bytes: position of the first name of a file
_SPECIAL = re.compile(rb"[*?\[\\]")
_MOST_LEVELS = 64  # of a path that is gone to directly


class Above(NamedTuple):
    """A directory that is only gone through: where it exists it stays as it is."""

    entry: Entry


Step = Entry | Above | LeaveDirectory


@dataclass(frozen=True, slots=True)
class Choice:
    """``path``: restore this entry alone (``b"a/b"``); a directory becomes the target itself, anything else is put into
    the target under ``name``."""

    include: PatternList = field(default_factory=PatternList)
    exclude: PatternList = field(default_factory=PatternList)
    literals: tuple[bytes, ...] | None = None  # the paths that ``include`` stands for, where that is all it says
    owners: Owners = field(default_factory=Owners)
    path: bytes | None = None
    name: bytes = b""

    @classmethod
    def of(cls, include: Iterable[str], exclude: Iterable[str], owners: Owners) -> Choice:
        """From the patterns of a command line. Raises UsageError."""
        wanted, unwanted = _parse(include, "--include"), _parse(exclude, "--exclude")
        return cls(PatternList(wanted), PatternList(unwanted), _literals(wanted), owners)

    @property
    def everything(self) -> bool:
        return not self.include and not self.exclude and self.path is None

    def chooses(self, path: bytes, is_directory: bool = False) -> bool:
        """Whether the entry at ``path`` (``b"/a/b"``) is chosen; whether there is one does not matter."""
        if self.path is not None:
            return True
        chosen = not self.include
        at = 0
        while at >= 0:
            at = path.find(b"/", at + 1)
            part, directory = (path, is_directory) if at < 0 else (path[:at], True)
            if self.exclude.match(part, directory) == "exclude":
                return False
            chosen = chosen or self.include.match(part, directory) == "exclude"
        return chosen

    def check(self, tree: Tree) -> None:
        """Raises NotFound where a path is named that the tree does not have."""
        for path in self.literals or ():
            entry_at(tree, path)

    def steps(self, tree: Tree, *, links: bool = True) -> Iterator[Step]:
        """What a pass goes through; the same every time. Without ``links`` hard links come as the files that they are.
        Raises FormatError, ArchiverError."""
        if self.path is not None:
            steps = _one(tree, self.path, self.name, links)
        elif not self.everything:
            steps = self._chosen(tree, links)
        elif links:
            steps = iter(tree.decoder())
        else:
            accessor = tree.accessor()
            steps = (_followed(accessor, event) for event in tree.decoder())
        return steps if self.owners.unchanged else map(self._owned, steps)

    def _owned(self, step: Step) -> Step:
        if step is LEAVE:
            return step
        if isinstance(step, Above):
            return Above(self._changed(step.entry))
        assert isinstance(step, Entry)
        return self._changed(step)

    def _changed(self, entry: Entry) -> Entry:
        if entry.metadata is None:
            return entry
        return entry._replace(metadata=entry.metadata._replace(stat=self.owners.of(entry.metadata.stat)))

    def _chosen(self, tree: Tree, links: bool) -> Iterator[Step]:
        accessor = tree.accessor()
        events: Iterator[Entry | LeaveDirectory]
        if self.literals is not None:
            events = _along(accessor, accessor.root, [path.strip(b"/").split(b"/") for path in self.literals])
        else:
            events = iter(tree.decoder())
        if not links:
            events = (_followed(accessor, event) for event in events)
        with _Links(accessor, self.chooses) as other_names:
            yield from self._filtered(events, other_names)

    def _filtered(self, events: Iterator[Entry | LeaveDirectory], links: _Links) -> Iterator[Step]:
        path = bytearray()
        opened: list[_Level] = []
        skipped = 0  # levels of directories that are excluded
        for event in events:
            if event is LEAVE:
                if skipped:
                    skipped -= 1
                    continue
                level = opened.pop()
                del path[level.above :]
                if level.told:
                    yield LEAVE
                continue
            assert isinstance(event, Entry)
            if skipped:
                skipped += event.kind == "dir"
                continue
            length = len(path)
            inherited = not self.include
            if opened:
                path += b"/" + event.name
                inherited = opened[-1].chosen
            is_directory = event.kind == "dir"
            if opened and self.exclude.match(bytes(path), is_directory) == "exclude":
                skipped += is_directory
                del path[length:]
                continue
            chosen = inherited or (bool(opened) and self.include.match(bytes(path), is_directory) == "exclude")
            if is_directory:
                opened.append(_Level(event, length, chosen))
                if chosen or len(opened) == 1:
                    yield from _told(opened)
                continue
            if chosen:
                yield from _told(opened)
                yield links.resolved(event, bytes(path)) if event.kind == "hardlink" else event
            del path[length:]


@dataclass(slots=True)
class _Level:
    """An open directory; ``above`` is the length of the path of the one around it."""

    entry: Entry
    above: int
    chosen: bool
    told: bool = False


def _told(opened: list[_Level]) -> Iterator[Step]:
    """The open directories that were not told yet."""
    for level in opened:
        if not level.told:
            level.told = True
            yield level.entry if level.chosen else Above(level.entry)


class _Links:
    """Hard links to files that are not chosen themselves."""

    def __init__(self, accessor: Accessor, chooses: Callable[[bytes], bool]) -> None:
        self._accessor = accessor
        self._chooses = chooses
        self._first = SpillTable(tempfile.gettempdir())

    def __enter__(self) -> _Links:
        return self

    def __exit__(self, *_: object) -> None:
        self._first.close()

    def resolved(self, link: Entry, path: bytes) -> Entry:
        if self._chooses(b"/" + link.target):
            return link
        return self.redirected(link, path.lstrip(b"/"))

    def redirected(self, link: Entry, path: bytes) -> Entry:
        """The file itself under the name of ``link``, which is at ``path``, or a link to where it was put before."""
        key = link.link_target.to_bytes(_PLACE, "little")
        first = self._first.get(key)
        if first is None:
            self._first.put(key, link.filename_offset.to_bytes(_PLACE, "little") + path)
            file = self._accessor.follow_hardlink(link)
            return file._replace(name=link.name, depth=link.depth, filename_offset=link.filename_offset)
        position = int.from_bytes(first[:_PLACE], "little")
        return link._replace(target=first[_PLACE:], link_offset=link.filename_offset - position)


def _followed(accessor: Accessor, event: Entry | LeaveDirectory) -> Entry | LeaveDirectory:
    """A hard link as the file that it is."""
    if event is LEAVE:
        return event
    assert isinstance(event, Entry)
    if event.kind != "hardlink":
        return event
    return accessor.follow_hardlink(event)._replace(
        name=event.name, depth=event.depth, filename_offset=event.filename_offset
    )


def _one(tree: Tree, path: bytes, name: bytes, links: bool) -> Iterator[Step]:
    """One entry, its name in the target changed to ``name``; of a directory everything in it."""
    accessor = tree.accessor()
    node = entry_at(tree, path)
    parts = _parts(path)
    if node.kind != "dir":
        if node.kind == "hardlink":
            node = accessor.follow_hardlink(node)
        yield Above(accessor.root)
        yield node._replace(name=name)
        yield LEAVE
        return
    prefix = b"".join(part + b"/" for part in parts)
    with _Links(accessor, lambda path: path.startswith(b"/" + prefix)) as other_names:
        inner = bytearray()
        lengths: list[int] = []
        for event in _whole(accessor, node):
            if not links:
                event = _followed(accessor, event)
            if event is LEAVE:
                del inner[lengths.pop() :]
                yield LEAVE
                continue
            assert isinstance(event, Entry)
            if event.kind == "dir":
                lengths.append(len(inner))
                if len(lengths) > 1:
                    inner += event.name + b"/"
                yield event if len(lengths) > 1 else event._replace(name=b"")
            elif event.kind != "hardlink":
                yield event
            elif event.target.startswith(prefix):
                yield event._replace(target=event.target[len(prefix) :])
            else:
                yield other_names.redirected(event, bytes(inner) + event.name)


def _whole(accessor: Accessor, top: Node) -> Iterator[Entry | LeaveDirectory]:
    """An entry, and what is below it."""
    yield top
    if top.kind != "dir":
        return
    levels = [accessor.entries(top)]
    while levels:
        node = next(levels[-1], None)
        if node is None:
            levels.pop()
            yield LEAVE
            continue
        yield node
        if node.kind == "dir":
            levels.append(accessor.entries(node))


def _along(accessor: Accessor, node: Node, paths: list[list[bytes]]) -> Iterator[Entry | LeaveDirectory]:
    """The entries at ``paths`` with all that is below them, and the directories that lead there."""
    if any(not path for path in paths):
        yield from _whole(accessor, node)
        return
    yield node
    below: dict[bytes, list[list[bytes]]] = {}
    for first, *rest in paths:
        below.setdefault(first, []).append(rest)
    children = [child for name in below if (child := accessor.lookup(node, name)) is not None]
    for child in sorted(children, key=lambda child: child.filename_offset):
        yield from _along(accessor, child, below[child.name])
    yield LEAVE


def entry_at(tree: Tree, path: bytes) -> Node:
    """The entry at a path. Raises NotFound, Damaged."""
    parts = _parts(path)
    try:
        node = None if b".." in parts else tree.accessor().open_path(b"/".join(parts))
    except FormatError as error:
        raise Damaged(f"{tree.files.name} of {tree.snapshot.ref} is damaged: {error}") from error
    if node is None:
        shown = path.decode("utf-8", "backslashreplace")
        raise NotFound(f"there is no {shown} in {tree.files.name} of {tree.snapshot.ref}")
    return node


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def _parse(texts: Iterable[str], option: str) -> list[Pattern]:
    patterns = []
    for text in texts:
        try:
            patterns.append(parse_exclude_option(text.encode("utf-8", "surrogateescape")))
        except FormatError as error:
            raise UsageError(f"{option} {text!r}: {error}") from error
    return patterns


def _literals(patterns: list[Pattern]) -> tuple[bytes, ...] | None:
    """The paths that the patterns stand for, if each stands for one."""
    for pattern in patterns:
        if not pattern.anchored or pattern.include or _SPECIAL.search(pattern.text):
            return None
        if pattern.text == b"/" or pattern.text.count(b"/") > _MOST_LEVELS:
            return None
    return tuple(pattern.text for pattern in patterns) or None
