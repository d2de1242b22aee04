"""Depth-first walk over live directories by descriptor (spec pxar.md 11.1, 11.2, 11.6).

* Names come sorted by bytes; an entry is looked at (lstat) only when the caller reaches it, so a directory of a million
  files costs its names, and little time passes between looking and opening.
* About 50 descriptors are open at most, however deep the tree. Outer directories are closed, and opened again by ``..``
  on the way back, or by their names from the source's root where that fails; only the very same directory (device and
  inode) is accepted.
* Mount points are not entered unless the options say so; file systems that show the kernel's state and the directories
  of ``never_enter`` never are. All of these are stored as empty directories. They are not opened where a look is enough
  to know them, so that a dead server or an automount does no harm; of them lstat's part of the metadata is kept.
* What cannot be read is reported and left out; the walk goes on. Only a lack of descriptors or memory ends it.
"""

from __future__ import annotations

import errno
import os
import stat as st
import struct
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from types import TracebackType
from typing import NamedTuple

from archiver.core import linux
from archiver.core.row import ROW, file_row, signed
from archiver.errors import ArchiverError, NotFound, UsageError
from archiver.source.content import OpenFile
from archiver.source.metadata import Features, collect, plain
from archiver.source.problem import Kind, Note, Problem, Report, explain
from archiver.source.selection import EXCLUDE_FILE, Selection
from formats.patterns import Pattern, PatternList
from formats.pxar.metadata import Metadata

__all__ = ["Looked", "Problem", "SourceDirectory", "SourceEntry", "Walk", "WalkOptions"]

_CLI_EXCLUDES = b".pxarexclude-cli"  # an archive of version 1 makes a file of this name in its root
_TYPE_SHIFT = 12
_DIRECTORY = st.S_IFDIR >> _TYPE_SHIFT
_NAMES_AT_ONCE = 4096  # decoding them one by one takes three times as long
_UNSEEN = ROW.pack(0, 0, 0, 0)
_KEPT_OPEN = 48  # innermost directories whose descriptors stay open; the root's does too
_FOR_LOOKUP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class WalkOptions(NamedTuple):
    """``include_dev``: st_dev of further file systems to enter. ``never_enter``: (st_dev, st_ino) of directories.
    ``base``: path in the archive of what is walked through (b"/a/b"), where that is not all of it."""

    excludes: Sequence[Pattern] = ()
    all_file_systems: bool = False
    include_dev: frozenset[int] = frozenset()
    skip_lost_and_found: bool = False
    skip_e2big_xattr: bool = False
    exclude_caches: bool = False
    never_enter: frozenset[tuple[int, int]] = frozenset()
    base: bytes = b""


class SourceEntry(NamedTuple):
    """A name in a directory and its lstat."""

    name: bytes
    stat: os.stat_result


class Looked(NamedTuple):
    """lstat of some names; None for one that cannot be looked at, which was reported. ``rows``: ROW of each.

    ``usual``: all of them were there, and none is a further name of a file or lies on another file system.
    """

    stats: list[os.stat_result | None]
    rows: list[bytes]
    usual: bool


class SourceDirectory:
    """A directory of the walk. ``fd`` serves as ``dir_fd`` while this is the walk's current directory; it is -1 for one
    that is not entered, and for one that was moved away while the walk was deep below it.

    ``metadata`` and ``names`` are read when it is entered, but for what somebody knows who is asked before.
    """

    __slots__ = (
        "_metadata",
        "_names",
        "_patterns",
        "_walk",
        "decided",
        "fd",
        "features",
        "is_known",
        "name",
        "parent",
        "stat",
    )

    def __init__(self, walk: Walk, parent: SourceDirectory | None, name: bytes, stat: os.stat_result) -> None:
        self._walk = walk
        self.parent = parent
        self.name = name
        self.stat = stat
        self.fd = -1
        self.features: Features
        self.decided = False  # by a file in it: what of it is archived; or it could not be listed
        self.is_known = False  # its metadata are not asked for
        self._metadata: Metadata | None = None
        self._names: list[bytes] | None = None
        self._patterns: PatternList | None = None

    @property
    def metadata(self) -> Metadata:
        """Attributes that cannot be read are reported."""
        if self._metadata is None:
            self._metadata = self._walk.collect(self.fd, self.stat, self.features, self._note_here)
        return self._metadata

    @property
    def names(self) -> list[bytes]:
        """The selected names, sorted by bytes."""
        if self._names is None:
            self._names, self._patterns = self._walk.list(self)
        return self._names

    @property
    def patterns(self) -> PatternList:
        """Those in effect below this directory."""
        if self._patterns is None:
            self._names, self._patterns = self._walk.list(self)
        return self._patterns

    @property
    def inherited(self) -> PatternList:
        """The patterns in effect above this directory."""
        return self._walk.initial_patterns if self.parent is None else self.parent.patterns

    def adopt(self, names: list[bytes]) -> None:
        """Take ``names`` for what a listing would give; the rules for it are ``selection``, and no file decides."""
        self._names, self._patterns = names, self.inherited

    def read(self) -> None:
        """Read what is not known."""
        if not self.is_known:
            _ = self.metadata
        _ = self.names

    def close_for(self, metadata: Metadata) -> None:
        """Take it for an empty directory: it is not entered."""
        self.close()
        self._metadata, self._names, self._patterns = metadata, [], self.inherited

    @property
    def selection(self) -> bytes:
        """16 bytes that stand for the rules by which the names are chosen, unless ``decided``."""
        return self._walk.selection(self)

    def _note_here(self, kind: Kind, reason: str) -> None:
        self._walk.report(Problem(self.path, reason, kind))

    @property
    def path(self) -> bytes:
        """Path in the archive: ``b"/a/b"``, ``b"/"`` for the root. Made when asked, so that deep trees stay cheap."""
        names = []
        directory: SourceDirectory | None = self
        while directory is not None:
            names.append(directory.name)
            directory = directory.parent
        return b"/".join(reversed(names)) or b"/"

    def path_of(self, name: bytes) -> bytes:
        return self.path.rstrip(b"/") + b"/" + name

    def look_at(self, names: Sequence[bytes], key: Callable[[bytes, os.stat_result], int]) -> Looked:
        """Look at several names. ``key`` gives the number that the row of a directory has for its size.

        The hot path of a run in which nothing has changed.
        """
        stats: list[os.stat_result | None] = []
        rows: list[bytes] = []
        usual = True
        fd, device, pack, look = self.fd, self.features.device, ROW.pack, os.stat
        for name in names:
            try:
                stat = look(name, dir_fd=fd, follow_symlinks=False)
                if stat[0] >> _TYPE_SHIFT == _DIRECTORY:
                    rows.append(pack(signed(stat[1]), -1, key(name, stat), 0))
                else:
                    rows.append(pack(stat[1], stat[6], stat.st_mtime_ns, stat.st_ctime_ns))
                    if stat[3] > 1 or stat[2] != device:
                        usual = False
            except OSError as error:
                self._walk.report_unseen(self, name, error)
                stats.append(None)
                rows.append(_UNSEEN)
                usual = False
                continue
            except struct.error:
                rows.append(file_row(stat))
                usual = False
            stats.append(stat)
        return Looked(stats, rows, usual)

    def look(self, name: bytes) -> SourceEntry:
        """One entry, looked at again. Raises OSError."""
        return SourceEntry(name, os.stat(name, dir_fd=self.fd, follow_symlinks=False))

    def metadata_of(self, name: bytes, file: OpenFile) -> Metadata:
        """Metadata of an open regular file in this directory; attributes that cannot be read are reported."""
        features = self.features
        if file.stat.st_dev != features.device:  # a file mounted on a file, or a layered file system
            features = Features.of(file.fd, file.stat.st_dev)
        return self._walk.collect(file.fd, file.stat, features, partial(self.note, name))

    def note(self, name: bytes, kind: Kind, reason: str) -> None:
        """Report a problem with an entry of this directory."""
        self._walk.report(Problem(self.path_of(name), reason, kind))

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1  # closed even when that fails
            os.close(fd)


class Walk:
    """``open_root``, then ``enter`` and ``leave`` as the caller's archive goes down and up. Not for several threads."""

    def __init__(
        self,
        root: bytes | str,
        options: WalkOptions,
        problem: Report,
        known: Callable[[SourceDirectory], None] = lambda directory: None,
    ) -> None:
        """``known`` is asked about each directory that was opened, before it is read."""
        self.report = problem
        self._known = known
        self._root = os.fsencode(root)
        self._options = options
        self._never_enter = options.never_enter
        self._selection = Selection.of(
            options.excludes, skip_lost_and_found=options.skip_lost_and_found, exclude_caches=options.exclude_caches
        )
        self.initial_patterns = self._selection.start()
        self._without_patterns = self._selection.digest(PatternList(), bytes)
        self._devices: frozenset[int] | None = None  # st_dev of the file systems to enter; None: all
        self._stack: list[SourceDirectory] = []
        self._revisited: SourceDirectory | None = None

    @property
    def prelude_patterns(self) -> list[Pattern]:
        """The patterns known before the walk, which an archive tells its readers."""
        return list(self._selection.known)

    def open_root(self) -> SourceDirectory:
        """Raises ArchiverError when the source cannot be read or must not be archived."""
        shown = os.fsdecode(self._root)
        try:
            fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            root = SourceDirectory(self, None, self._options.base, os.fstat(fd))
            root.fd = fd
            self._stack.append(root)
            magic = linux.filesystem_type(fd)
            is_forbidden = bool(self._options.never_enter) and self._is_forbidden(root)
            root.features = Features.of(fd, root.stat.st_dev)
        except FileNotFoundError as error:
            raise NotFound(f"source {shown} does not exist") from error
        except OSError as error:
            raise ArchiverError(f"cannot open source {shown}: {(error.strerror or str(error)).lower()}") from error
        if magic in linux.VIRTUAL:
            raise UsageError(f"source {shown} is a {linux.VIRTUAL[magic]} file system: it has no files to save")
        if is_forbidden:
            raise UsageError(f"source {shown} is part of the store or of its database, which are never archived")
        if not self._options.all_file_systems:
            self._devices = self._options.include_dev | {root.stat.st_dev}
        self._known(root)
        root.read()
        return root

    def enter(self, entry: SourceEntry) -> SourceDirectory | None:
        """Make a listed directory the current one. None: it cannot be read (reported) and is to be left out."""
        self._end_visit()
        parent = self._stack[-1]
        directory = SourceDirectory(self, parent, entry.name, entry.stat)
        directory.features = parent.features
        try:
            closed = self._open(directory)
        except OSError as error:
            directory.close()
            parent.note(entry.name, *explain(error))
            return None
        self._stack.append(directory)
        if closed is not None:
            directory.close_for(plain(directory.stat))
            parent.note(entry.name, *closed)
        self._known(directory)
        directory.read()
        outer = len(self._stack) - _KEPT_OPEN - 1
        if outer > 0:
            self._stack[outer].close()
        return directory

    def leave(self) -> None:
        """Back to the parent, whose descriptor is valid again."""
        self._end_visit()
        child = self._stack.pop()
        if self._stack and self._stack[-1].fd < 0:
            self._reopen(self._stack[-1], child)
        child.close()

    def close(self) -> None:
        self._end_visit()
        for directory in self._stack:
            directory.close()
        self._stack.clear()

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def collect(self, fd: int, stat: os.stat_result, features: Features, note: Note) -> Metadata:
        """Metadata as this walk's options want it."""
        return collect(fd, stat, features, skip_e2big=self._options.skip_e2big_xattr, problem=note)

    def report_unseen(self, directory: SourceDirectory, name: bytes, error: OSError) -> None:
        """An entry gave ``error`` instead of its lstat."""
        kind, reason = explain(error)
        if kind != "vanished" and self._is_foreign(directory, name):
            kind, reason = "mount", f"mount point not entered and not stored: {reason}"
        directory.note(name, kind, reason)

    def _is_foreign(self, directory: SourceDirectory, name: bytes) -> bool:
        """Whether ``name`` lies on a file system that is not entered. A private FUSE mount tells others only that."""
        try:
            device = linux.device_of(name, directory.fd)
        except OSError:
            return False
        return device != directory.stat.st_dev and self._devices is not None and device not in self._devices

    def _is_forbidden(self, root: SourceDirectory) -> bool:
        """Whether the root or a directory above it is in ``never_enter``."""
        here, below = _identity(root.stat), None
        fd = os.dup(root.fd)
        try:
            while here != below:  # the parent of / is / itself
                if here in self._options.never_enter:
                    return True
                above = os.open(b"..", _FOR_LOOKUP, dir_fd=fd)
                os.close(fd)
                fd = above
                here, below = _identity(os.fstat(fd)), here
        except PermissionError:
            pass  # what lies further up cannot be known
        finally:
            os.close(fd)
        return False

    def _open(self, directory: SourceDirectory) -> tuple[Kind, str] | None:
        """Open a listed directory; gives the reason when it is one that is not entered. Raises OSError."""
        parent = self._stack[-1]
        closed = self._rule(directory, parent)
        if closed is not None:
            return closed
        directory.fd = linux.open_noatime(directory.name, os.O_DIRECTORY, parent.fd)
        directory.stat = os.fstat(directory.fd)
        if directory.stat.st_dev != parent.stat.st_dev:
            magic = linux.filesystem_type(directory.fd)
            if magic in linux.VIRTUAL:
                return "mount", f"{linux.VIRTUAL[magic]} file system, never entered"
            directory.features = Features.of(directory.fd, directory.stat.st_dev)
        return self._rule(directory, parent)  # once more: the name may have changed hands before it was opened

    def _rule(self, directory: SourceDirectory, parent: SourceDirectory) -> tuple[Kind, str] | None:
        stat = directory.stat
        device = stat.st_dev
        if (device, stat.st_ino) in self._never_enter:
            return "skipped", "belongs to the store, never archived"
        if device != parent.stat.st_dev and self._devices is not None and device not in self._devices:
            return "mount", "mount point, not entered"
        return None

    def list(self, directory: SourceDirectory) -> tuple[list[bytes], PatternList]:
        """The selected names of an open directory, and the patterns in effect below it."""
        names: list[bytes] = []
        try:
            with os.scandir(directory.fd) as found:
                while some := [entry.name for entry in islice(found, _NAMES_AT_ONCE)]:
                    names += os.fsencode("\0".join(some)).split(b"\0")
        except OSError as error:
            kind, reason = explain(error)
            reason = reason if kind == "vanished" else f"not all of its entries could be listed: {reason}"
            self.report(Problem(directory.path, reason, kind))
            directory.decided = True
        names.sort()
        if self._selection.decides_below(names):
            directory.decided = True
        chosen, patterns = self._selection.choose(
            directory.fd, names, directory.inherited, lambda: directory.path, partial(directory.note, EXCLUDE_FILE)
        )
        if directory.parent is None and _CLI_EXCLUDES in chosen:
            chosen.remove(_CLI_EXCLUDES)
            directory.note(_CLI_EXCLUDES, "skipped", "this name is kept for the exclude patterns of a run")
            directory.decided = True
        return chosen, patterns

    def selection(self, directory: SourceDirectory) -> bytes:
        """See SourceDirectory."""
        if not directory.inherited:
            return self._without_patterns
        return self._selection.digest(directory.inherited, lambda: directory.path)

    def _reopen(self, directory: SourceDirectory, child: SourceDirectory) -> None:
        """Give the current directory a descriptor again: only ever of that directory, else none and a report."""
        for way in (partial(os.open, b"..", _FOR_LOOKUP, dir_fd=child.fd), self._open_by_names):
            try:
                fd = way()
            except OSError as error:
                explain(error)
                continue
            if _identity(os.fstat(fd)) == _identity(directory.stat):
                directory.fd = fd
                return
            os.close(fd)
        reason = "was moved or replaced while it was read: the rest of it is missing"
        self.report(Problem(directory.path, reason, "unreadable"))

    def _open_by_names(self) -> int:
        """Open the current directory by the names from the root on."""
        return self._open_chain(self._stack[1:])

    def _open_chain(self, directories: Sequence[SourceDirectory]) -> int:
        """Open the last of ``directories``, each in the one before, the first in the root."""
        fd = os.dup(self._stack[0].fd)
        for directory in directories:
            try:
                below = os.open(directory.name, _FOR_LOOKUP, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def revisit(self, directory: SourceDirectory) -> None:
        """Give a directory that the walk may have left its descriptor until the walk goes on, or another one is
        revisited. Raises OSError when it is gone."""
        if directory.fd >= 0:
            return
        self._end_visit()
        chain = []
        above: SourceDirectory | None = directory
        while above is not None and above.parent is not None:
            chain.append(above)
            above = above.parent
        fd = self._open_chain(chain[::-1])
        if _identity(os.fstat(fd)) != _identity(directory.stat):
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        directory.fd = fd
        self._revisited = directory

    def _end_visit(self) -> None:
        if self._revisited is not None:
            self._revisited.close()
            self._revisited = None


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino
