"""The pass that finds out what a restore into an existing tree has to do; it changes nothing.

Files of the right size are read and compared, so that the writing pass leaves alone what has the right contents.
"""

from __future__ import annotations

import os
import stat as st
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

from archiver.core.holes import is_hole
from archiver.core.linux import open_noatime
from archiver.core.pipeline import chunk_workers
from archiver.restore import attributes
from archiver.restore.choice import Choice
from archiver.restore.existing import Existing, is_same_file, look, require_empty
from archiver.restore.extras import extras
from archiver.restore.marks import Marks
from archiver.restore.plan import Action, Deed, Plan
from archiver.restore.visitor import Directory, FileItem, Segment, link_target
from formats.pxar.items import Entry
from formats.pxar.metadata import Metadata
from formats.wire import Buffer

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 4096


class Planner:
    """A visitor of :class:`archiver.restore.traversal.Traversal`. Fills ``existing.equal``, and ``plan`` where given.
    ``target`` need not exist."""

    threads = chunk_workers()
    segments_at_once = 512

    def __init__(
        self, target: str, choice: Choice, existing: Existing, plan: Plan | None, *, delete: bool, fresh: bool
    ) -> None:
        """``fresh``: nothing is in the target."""
        self._target = target
        self._choice = choice
        self._existing = existing
        self._of_ours = existing.of_ours()
        self._plan = plan
        self._fresh = fresh
        self._freed = 0  # bytes of files that are replaced
        self._largest = 0  # of them
        self._blocked = Marks()  # directories that cannot be made
        self._lock = threading.Lock()
        self.keeps_names = delete and plan is not None

    # -- telling -----------------------------------------------------------------------------------------------------

    def _act(
        self,
        path: bytes,
        deed: Deed,
        kind: str,
        metadata: Metadata | None = None,
        size: int = 0,
        found: os.stat_result | None = None,
        reasons: Sequence[str] = (),
    ) -> None:
        plan = self._plan
        if plan is None:
            return
        if metadata is not None and deed in ("create", "replace", "update"):
            reasons = [*reasons, *attributes.beyond_rights(metadata, kind)]
        with self._lock:
            totals = plan.totals
            setattr(totals, deed, getattr(totals, deed) + 1)
            totals.incomplete += bool(reasons) and deed != "blocked"
            if deed in ("create", "replace"):
                totals.bytes += size
                needed = -(-size // _BLOCK) * _BLOCK + (_BLOCK if kind == "dir" else 0)
                totals.space += needed
                if found is not None and found.st_nlink == 1 and st.S_ISREG(found.st_mode):
                    self._freed += min(found.st_blocks * 512, needed)
                    self._largest = max(self._largest, needed)
            plan.add(Action(path, deed, kind, size if deed in ("create", "replace") else 0, tuple(reasons)))

    def finish(self) -> None:
        """The pass is over. A replaced file gives its space back once the new one is complete."""
        if self._plan is not None:
            self._plan.totals.space -= max(0, self._freed - self.threads * self._largest)

    def _count(self, what: Literal["kept", "unchanged"]) -> None:
        if self._plan is not None:
            with self._lock:
                setattr(self._plan.totals, what, getattr(self._plan.totals, what) + 1)

    def _rule(self, directory: Directory) -> Existing:
        return self._of_ours if directory.left else self._existing

    # -- directories -------------------------------------------------------------------------------------------------

    def open_directory(self, directory: Directory) -> int:
        parent, path = directory.parent, directory.path
        try:
            if parent is None:
                return self._open_root(directory)
            found = look(directory.name, parent.fd)
            if found is None:
                found = directory.look_for_left()
            if found is None:
                self._act(path, "create", "dir", directory.metadata)
                return -1
            if not st.S_ISDIR(found.st_mode):
                if self._rule(parent).keeps(found, directory.metadata.stat):
                    raise OSError("what is there stays, and is no directory")
                self._act(path, "replace", "dir", directory.metadata, found=found)
                return -1
            directory.found = found
            return os.open(directory.present_name, _DIRECTORY, dir_fd=parent.fd)
        except OSError as error:
            self._blocked.add(directory.number)
            self._act(path, "blocked", "dir", reasons=[(error.strerror or str(error)).lower()])
            return -1

    def _open_root(self, directory: Directory) -> int:
        try:
            fd = os.open(self._target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._act(b"/", "create", "dir", directory.metadata)
            return -1
        if self._fresh:
            self._act(b"/", "update", "dir", directory.metadata)
        directory.found = os.fstat(fd)
        return fd

    def unreachable(self, directory: Directory, entry: Entry, number: int) -> None:
        path = directory.path_of(entry.name)
        if directory.number in self._blocked:
            if entry.kind == "dir":
                self._blocked.add(number)
            self._act(path, "blocked", entry.kind, reasons=["its directory cannot be made"])
        else:
            self._act(path, "create", entry.kind, entry.metadata, entry.size)

    def finish_directory(self, directory: Directory) -> None:
        found = directory.found
        assert found is not None
        if self._plan is None:
            return
        if directory.names is not None:
            with suppress(OSError):
                for name in extras(directory, self._choice):
                    status = look(name, directory.fd)
                    self._act(directory.path_of(name), "remove", _kind(status))
        if directory.above or self._rule(directory).keeps(found, directory.metadata.stat):
            self._count("kept")
        elif not (self._fresh and directory.parent is None):
            # Its time alone changes with every entry that is made in it.
            wrong = attributes.differences(directory.fd, directory.metadata, found)
            if wrong:
                self._act(directory.path, "update", "dir", directory.metadata)
            else:
                self._count("unchanged")

    def abandon_directory(self, directory: Directory) -> None:
        """Nothing."""

    # -- entries without contents ------------------------------------------------------------------------------------

    def leaf(self, directory: Directory, entry: Entry, number: int) -> None:
        assert entry.metadata is not None
        path = directory.path_of(entry.name)
        try:
            found = look(entry.name, directory.fd)
            if found is None:
                self._act(path, "create", entry.kind, entry.metadata)
                return
            verdict = self._rule(directory).leaf(found, entry, directory.fd)
            if verdict == "keep":
                self._count("kept")
            elif verdict == "same":
                self._attributes(path, entry.kind, entry.metadata, bool(
                    attributes.stat_differences(entry.metadata.stat, found)
                ))  # fmt: skip
            else:
                self._replace(path, directory, entry.kind, entry.metadata, 0, found)
        except OSError as error:
            self._act(path, "blocked", entry.kind, reasons=[(error.strerror or str(error)).lower()])

    def _attributes(self, path: bytes, kind: str, metadata: Metadata, wrong: bool) -> None:
        if wrong:
            self._act(path, "update", kind, metadata)
        else:
            self._count("unchanged")

    def _replace(
        self, path: bytes, directory: Directory, kind: str, metadata: Metadata | None, size: int, found: os.stat_result
    ) -> None:
        if not self.keeps_names:
            require_empty(path.rpartition(b"/")[2], directory.fd, found)
        self._act(path, "replace", kind, metadata, size, found, _immovable(path, directory, found))

    def hardlink(self, directory: Directory, entry: Entry, number: int, root: Directory) -> None:
        path = directory.path_of(entry.name)
        try:
            found = look(entry.name, directory.fd)
            if found is None:
                self._act(path, "create", "hardlink")
            elif self._rule(directory).overwrite == "never":
                self._count("kept")
            else:
                first: os.stat_result | None = None
                if root.usable:
                    with suppress(OSError), link_target(entry, root) as (parent, last):
                        first = look(last, parent)
                if is_same_file(found, first):
                    self._count("unchanged")
                else:
                    self._replace(path, directory, "hardlink", None, 0, found)
        except OSError as error:
            self._act(path, "blocked", "hardlink", reasons=[(error.strerror or str(error)).lower()])

    # -- files -------------------------------------------------------------------------------------------------------

    def wants_file(self, item: FileItem) -> bool:
        directory = item.directory
        try:
            item.found = found = look(item.name, directory.fd)
            if found is None:
                self._act(directory.path_of(item.name), "create", "file", item.metadata, item.size)
                return False
            verdict = self._rule(directory).file(item.number, found, item.metadata.stat, item.size)
            if verdict == "compare":
                return True
            if verdict == "keep":
                self._count("kept")
            elif verdict == "same":
                self._same(item, found)
            else:
                path = directory.path_of(item.name)
                self._replace(path, directory, "file", item.metadata, item.size, found)
        except OSError as error:
            self._blocked_file(item, error)
        return False

    def _blocked_file(self, item: FileItem, error: OSError) -> None:
        path = item.directory.path_of(item.name)
        self._act(path, "blocked", "file", reasons=[(error.strerror or str(error)).lower()])

    def segment(self, segment: Segment, data: Buffer | None, damage: str | None, *, zeros: bool) -> None:
        item = segment.item
        if item.failed is not None:
            return
        if damage is not None:
            item.failed = damage
            return
        try:
            if item.lock is None:
                item.fd = open_noatime(item.name, os.O_NONBLOCK, item.directory.fd)
            else:
                with item.lock:
                    if item.fd < 0:
                        item.fd = open_noatime(item.name, os.O_NONBLOCK, item.directory.fd)
            wanted = memoryview(data or b"")[segment.start : segment.end]
            offset = segment.offset
            if offset < 0:
                wanted, offset = wanted[-offset:], 0
            if zeros and is_hole(item.fd, offset, offset + len(wanted)):
                return
            while wanted and item.failed is None:
                got = os.pread(item.fd, len(wanted), offset)
                if not got or got != wanted[: len(got)]:
                    item.failed = ""  # other contents
                wanted, offset = wanted[len(got) :], offset + len(got)
        except OSError:
            item.failed = ""

    def finish_file(self, item: FileItem) -> None:
        found = item.found
        assert found is not None
        try:
            if item.failed is None:
                self._existing.equal.add(item.number)
                self._same(item, found)
            elif item.failed:
                path = item.directory.path_of(item.name)
                self._act(path, "blocked", "file", reasons=[item.failed])
            else:
                path = item.directory.path_of(item.name)
                self._replace(path, item.directory, "file", item.metadata, item.size, found)
        except OSError as error:
            self._blocked_file(item, error)
        finally:
            self.abandon(item)

    def _same(self, item: FileItem, found: os.stat_result) -> None:
        """The contents are right; what about the attributes?"""
        if self._plan is None:
            return
        path = item.directory.path_of(item.name)
        try:
            fd = open_noatime(item.name, os.O_NONBLOCK, item.directory.fd)
        except PermissionError:
            self._replace(path, item.directory, "file", item.metadata, item.size, found)
            return
        try:
            wrong = attributes.differences(fd, item.metadata, os.fstat(fd))
        finally:
            os.close(fd)
        if wrong and found.st_nlink > 1:
            self._replace(path, item.directory, "file", item.metadata, item.size, found)
        else:
            self._attributes(path, "file", item.metadata, bool(wrong))

    def abandon(self, item: FileItem) -> None:
        if item.fd >= 0:
            os.close(item.fd)
            item.fd = -1


def _kind(found: os.stat_result | None) -> str:
    if found is None:
        return "unknown"
    kinds = {st.S_IFDIR: "dir", st.S_IFREG: "file", st.S_IFLNK: "symlink", st.S_IFIFO: "fifo", st.S_IFSOCK: "socket"}
    return kinds.get(st.S_IFMT(found.st_mode), "char" if st.S_ISCHR(found.st_mode) else "block")


def _immovable(path: bytes, directory: Directory, found: os.stat_result) -> list[str]:
    """Why what is there cannot be replaced, as far as that shows."""
    if not st.S_ISREG(found.st_mode):
        return []
    with suppress(OSError):
        fd = open_noatime(path.rpartition(b"/")[2], os.O_NONBLOCK, directory.fd)
        try:
            if attributes.is_sealed_now(fd):
                return ["what is there is immutable or append-only"]
        finally:
            os.close(fd)
    return []
