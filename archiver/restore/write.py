"""The pass that writes a tree: directories and files here, all else in leaves.py.

Every name is relative to an open directory; directories are entered without following symlinks; hard links are resolved
name by name from the target's root. So no entry of an archive, and nothing that stands in the target, can lead out of
it. A file gets its name when it is complete, or is in a directory that gets its name when everything in it is: an
interruption leaves the old one, the new one or none. In directories that the pass has made nothing is looked for, and
nothing is ever replaced.
"""

from __future__ import annotations

import errno
import os
import stat as st
from contextlib import suppress

from archiver.core import linux
from archiver.core.clock import Random
from archiver.core.disk import explain, explained
from archiver.core.events import FileProblem, Listener
from archiver.core.locks import lock_directory
from archiver.core.pipeline import chunk_workers
from archiver.core.spill import SpillTable
from archiver.errors import Locked
from archiver.restore import attributes
from archiver.restore.choice import Choice
from archiver.restore.existing import Existing, has_time, is_same_file, look
from archiver.restore.extras import extras, remove_left
from archiver.restore.large import FILES_FROM, LargePieces
from archiver.restore.leaves import Leaves
from archiver.restore.outcome import Outcome, is_fatal
from archiver.restore.place import Placer
from archiver.restore.quarantine import Quarantine
from archiver.restore.reread import Rereader
from archiver.restore.sparse import write_at, write_sparse
from archiver.restore.staging import TempNames, staged_name
from archiver.restore.visitor import Directory, FileItem, Segment
from formats.pxar.constants import HEADER_SIZE
from formats.pxar.items import Entry
from formats.wire import Buffer

_NEW_FILE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SPARSE_FROM = 64 << 10  # bytes; holes are looked for in files at least this long


class Writer:
    """A visitor of :class:`archiver.restore.traversal.Traversal`. ``target`` is a directory."""

    threads = chunk_workers()
    segments_at_once = 512

    def __init__(
        self,
        target: str,
        choice: Choice,
        existing: Existing,
        quarantine: Quarantine | None,
        rereader: Rereader | None,
        large: LargePieces,
        kept_files: SpillTable,
        random: Random,
        listener: Listener,
    ) -> None:
        """``rereader``: what is written is compared with the archive, afterwards, but for what ``large`` has compared.
        ``kept_files`` is told which files in the target are not as the archive has them."""
        self._target = target
        self._choice = choice
        self._existing = existing
        self._of_ours = existing.of_ours()
        self._quarantine = quarantine
        self._rereader = rereader
        self._large = large
        self._listener = listener
        self._temps = TempNames(random(8))
        self._placer = Placer(self._temps, quarantine)
        self.outcome = Outcome(target, kept_files, listener, checks=rereader is not None)
        self._leaves = Leaves(self._placer, self._rule, self.outcome)
        self._owner: tuple[int, int] | None = None  # of new files in new directories, where it is known
        self._umask = linux.umask()
        self.keeps_names = quarantine is not None

    @property
    def replaced(self) -> int:
        """How many things gave way to others."""
        return self._placer.replaced

    def _rule(self, directory: Directory) -> Existing:
        return self._of_ours if directory.left else self._existing

    # -- directories -------------------------------------------------------------------------------------------------

    def open_directory(self, directory: Directory) -> int:
        if directory.parent is None:
            return self._open_root(directory)
        name, parent = directory.name, directory.parent
        found: os.stat_result | None = None
        try:
            if parent.found is not None:
                found = look(name, parent.fd)
                entered = directory.look_for_left() if found is None else found
                if entered is not None and st.S_ISDIR(entered.st_mode):
                    return self._enter(directory, parent, entered)
            if found is None:
                self._make(directory, parent)
            elif self._rule(parent).keeps(found, directory.metadata.stat):
                raise OSError(errno.ENOTDIR, "what is there stays, and is no directory")
            else:
                self._placer.exchange(name, parent.fd, found)
            fd = os.open(directory.present_name, _DIRECTORY, dir_fd=parent.fd)
            if parent.found is not None:
                _strip(fd)
            return fd
        except OSError as error:
            self.outcome.failed(parent, name, error)
            return -1

    def _make(self, directory: Directory, parent: Directory) -> None:
        staged = staged_name(directory.name)
        if staged is not None:
            with suppress(FileExistsError):  # the archive may have such a name, too
                os.mkdir(staged, 0o700, dir_fd=parent.fd)
                directory.staged = staged
                return
        os.mkdir(directory.name, 0o700, dir_fd=parent.fd)

    def _open_root(self, directory: Directory) -> int:
        with explained("restore to", self._target):
            fd = os.open(self._target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._prepare_root(fd, directory)
            except BaseException:
                os.close(fd)
                raise
        self._placer.root_fd = fd
        return fd

    def _prepare_root(self, fd: int, directory: Directory) -> None:
        """Find out what the target is like, and make it ready. Raises OSError, Locked."""
        if not lock_directory(fd):
            raise Locked(f"another restore writes to {self._target}")
        if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if self._rereader is not None:
            self._rereader.begin(fd)
        probe = linux.probe_new_file(fd)
        coarse = probe is not None and probe.st_mtime_ns != 1_000_000_001
        self.outcome.exact = linux.filesystem_type(fd) in linux.STABLE and not coarse
        if directory.above or os.listdir(fd):
            directory.found = os.fstat(fd)
            self._make_accessible(fd, directory)
            remove_left(fd)
            return
        _strip(fd)
        with suppress(OSError):
            os.fchmod(fd, 0o700)
            if probe is not None and (probe.st_uid, probe.st_gid) == (os.geteuid(), os.getegid()):
                self._owner = probe.st_uid, probe.st_gid

    def _enter(self, directory: Directory, parent: Directory, found: os.stat_result) -> int:
        directory.found = found
        if not self._stays(directory) and found.st_mode & 0o400 == 0 and found.st_uid == os.geteuid() != 0:
            linux.chmod_at(directory.present_name, st.S_IMODE(found.st_mode) | 0o700, dir_fd=parent.fd)
        fd = os.open(directory.present_name, _DIRECTORY, dir_fd=parent.fd)
        opened = os.fstat(fd)
        if not is_same_file(found, opened):
            os.close(fd)
            raise OSError(errno.EBUSY, "it was exchanged while it was being restored")
        if opened.st_dev != os.fstat(parent.fd).st_dev and linux.filesystem_type(fd) not in linux.STABLE:
            self.outcome.exact = False
        self._make_accessible(fd, directory)
        remove_left(fd)
        return fd

    def _make_accessible(self, fd: int, directory: Directory) -> None:
        """An ordinary user's own directory may forbid to write into it; its mode is set again in the end."""
        found = directory.found
        assert found is not None
        if not self._stays(directory) and found.st_mode & 0o700 != 0o700 and found.st_uid == os.geteuid() != 0:
            os.fchmod(fd, st.S_IMODE(found.st_mode) | 0o700)

    def _stays(self, directory: Directory) -> bool:
        """Whether the attributes of a directory stay as they are."""
        found = directory.found
        return found is not None and (directory.above or self._rule(directory).keeps(found, directory.metadata.stat))

    def finish_directory(self, directory: Directory) -> None:
        try:
            self._unstage(directory)
        except OSError as error:
            assert directory.parent is not None
            error.strerror = f"it stays {os.fsdecode(directory.staged)}: {error.strerror}"
            self.outcome.failed(directory.parent, directory.name, error)
        if self._quarantine is not None and directory.found is not None:
            self._set_aside(directory, self._quarantine)
        if directory.found is None:
            lost = attributes.apply(directory.fd, directory.metadata)
            self.outcome.tell_attributes(directory.fd, directory.metadata, directory.path, lost)
        elif not self._stays(directory):
            try:
                wrong = attributes.differences(directory.fd, directory.metadata, os.fstat(directory.fd))
                lost = attributes.bring(directory.fd, directory.metadata) if wrong else []
            except OSError as error:
                lost = [(error.strerror or str(error)).lower()]
            self.outcome.tell_attributes(directory.fd, directory.metadata, directory.path, lost)

    def _unstage(self, directory: Directory) -> None:
        """Raises OSError."""
        if directory.staged:
            assert directory.parent is not None
            fd = directory.parent.fd
            linux.rename_new(directory.staged, directory.name, src_dir_fd=fd, dst_dir_fd=fd)
            directory.staged = b""

    def abandon_directory(self, directory: Directory) -> None:
        """Everything that is in it now is complete. What is further out has been closed: the next run finds it."""
        if directory.parent is not None and directory.parent.fd >= 0:
            with suppress(OSError):
                self._unstage(directory)

    def _set_aside(self, directory: Directory, quarantine: Quarantine) -> None:
        try:
            for name in extras(directory, self._choice):
                try:
                    quarantine.take(self._placer.root_fd, directory, name)
                except OSError as error:
                    reason = f"cannot be moved away: {(error.strerror or str(error)).lower()}"
                    self._listener(FileProblem(directory.path_of(name), reason, "not-removed"))
        except OSError as error:
            self._listener(FileProblem(directory.path, (error.strerror or str(error)).lower(), "not-removed"))

    # -- entries without contents ------------------------------------------------------------------------------------

    def unreachable(self, directory: Directory, entry: Entry, number: int) -> None:
        """Nothing: the directory has been told about."""

    def leaf(self, directory: Directory, entry: Entry, number: int) -> None:
        self._leaves.make(directory, entry)

    def hardlink(self, directory: Directory, entry: Entry, number: int, root: Directory) -> None:
        self._leaves.link(directory, entry, root)

    # -- files -------------------------------------------------------------------------------------------------------

    def wants_file(self, item: FileItem) -> bool:
        directory = item.directory
        if directory.found is None:
            return True
        stat = item.metadata.stat
        try:
            item.found = found = look(item.name, directory.fd)
            if found is None or item.failed is not None:
                return True
            verdict = self._rule(directory).file(item.number, found, stat, item.size)
            if verdict == "keep":
                same = st.S_ISREG(found.st_mode) and found.st_size == item.size and has_time(found, stat)
                self.outcome.keep(found, faithful=same)
                return False
            if verdict == "same" and self._settle(item, found):
                return False
            self._placer.require_way(directory, item.name, found)
            return True
        except OSError as error:
            self.outcome.failed(directory, item.name, error, item.found)
            return False

    def _settle(self, item: FileItem, found: os.stat_result) -> bool:
        """Give a file with the right contents its attributes; False when it has to be made anew: what has another name
        too, which may lie anywhere, must not be changed."""
        try:
            fd = linux.open_noatime(item.name, os.O_NONBLOCK, item.directory.fd)
        except PermissionError:
            return False
        try:
            now = os.fstat(fd)
            if not is_same_file(found, now) or (now.st_size, now.st_mtime_ns) != (found.st_size, found.st_mtime_ns):
                return False
            wrong = attributes.differences(fd, item.metadata, now)
            if wrong and now.st_nlink > 1:
                return False
            lost = attributes.bring(fd, item.metadata) if wrong else []
            self.outcome.count_settled(wrong)
            if wrong:
                path = item.directory.path_of(item.name)
                self.outcome.tell_attributes(fd, item.metadata, path, lost)
            return True
        finally:
            os.close(fd)

    def segment(self, segment: Segment, data: Buffer | None, damage: str | None, *, zeros: bool) -> None:
        item = segment.item
        if item.failed is not None:
            return
        if damage is not None:
            item.failed = damage
            return
        try:
            if item.lock is None:
                self._open(item)
            else:
                with item.lock:
                    if item.fd < 0:
                        self._open(item)
            if data is not None or segment.end == segment.start:
                self._write(item, segment, memoryview(data or b"")[segment.start : segment.end], zeros)
        except OSError as error:
            if is_fatal(error):
                self.outcome.failed(item.directory, item.name, error)
            self._refused(item, error)

    def _open(self, item: FileItem) -> None:
        directory = item.directory
        if directory.staged and directory.found is None:
            temp, mode = item.name, item.metadata.stat.mode & 0o777 if self._has_mode_at_once(item) else 0o600
        else:
            temp, mode = self._temps.new(), 0o600
        access = os.O_WRONLY if self._rereader is None else os.O_RDWR
        item.fd = os.open(temp, _NEW_FILE | access, mode, dir_fd=directory.fd)
        item.temp = temp
        if self._rereader is not None:
            self._rereader.opened(item)
        attributes.prepare(item.fd, item.metadata.stat)
        if item.size >= _SPARSE_FROM:
            os.ftruncate(item.fd, item.size)  # it may end in a hole
            self._large.opened(item)

    def _has_mode_at_once(self, item: FileItem) -> bool:
        """Some permissions would forbid to set extended attributes, or to open a large file once more."""
        return item.size < FILES_FROM and attributes.is_plain(item.metadata)

    def _write(self, item: FileItem, segment: Segment, data: memoryview, zeros: bool) -> None:
        offset = segment.offset
        if offset < 0:
            count = min(-offset, len(data))
            start = HEADER_SIZE + offset
            if data[:count] != item.header[start : start + count]:
                item.failed = "the payload does not have the header that its entry describes"
                return
            data, offset = data[count:], offset + count
        if not data:
            return
        if item.size >= _SPARSE_FROM:
            if zeros:
                if self._rereader is not None:
                    self._rereader.left_out(item, offset, len(data))
                return
            start, stop = self._large.write(item, data, offset)
            for first, part in ((0, data[:start]), (stop, data[stop:])):
                if part:
                    write_sparse(item.fd, part, offset + first)
                    self._written(item, part, offset + first)
        else:
            write_at(item.fd, data, offset)
            self._written(item, data, offset)

    def _written(self, item: FileItem, data: memoryview, offset: int) -> None:
        if self._rereader is not None:
            self._rereader.written(item, offset, data)

    def finish_file(self, item: FileItem) -> None:
        if item.failed is not None:
            self._drop(item)
            return
        try:
            lost = self._complete(item)
        except OSError as error:
            if is_fatal(error):
                with suppress(OSError):
                    self.abandon(item)
                self.outcome.failed(item.directory, item.name, error)
            self._refused(item, error)
            self._drop(item)
            return
        if lost:
            self.outcome.attributes_lost(item.directory.path_of(item.name), lost)
        if self._rereader is not None:
            self._rereader.complete(item, told=bool(lost))

    def _complete(self, item: FileItem) -> list[str]:
        """Returns what attributes could not be set. Raises OSError."""
        self._large.close_file(item)
        fd, metadata = item.fd, item.metadata
        sealed = bool(metadata.stat.flags) and attributes.is_sealed(metadata.stat)
        # What has the rights of a directory that was there may have inherited some.
        wanted = attributes.unsealed(metadata) if sealed else metadata
        if item.directory.found is None:
            has_mode = item.temp is item.name and self._has_mode_at_once(item)
            mode = metadata.stat.mode & 0o777 & ~self._umask if has_mode else -1
            lost = attributes.apply(fd, wanted, owner=self._owner, mode=mode)
        else:
            lost = attributes.bring(fd, wanted)
        if item.found is not None:
            os.fsync(fd)  # what is replaced must not be lost before the new one is on the disk
        if sealed:
            self._name(item)
            lost = attributes.apply(fd, metadata)
        if not self.outcome.exact and not lost:
            wrong = attributes.differences(fd, metadata, os.fstat(fd))
            lost = [f"the file system keeps {what}" for what in wrong]
        # A file system over the network may tell only at a close that it has not written everything.
        if self._rereader is None:
            self._close(item)
        elif not self.outcome.exact:
            os.close(os.dup(fd))
        if not sealed:
            self._name(item)
        return lost

    def _name(self, item: FileItem) -> None:
        if item.temp is not item.name:
            self._placer.place(item.directory, item.temp, item.name, item.found)
        item.temp = b""

    def _refused(self, item: FileItem, error: OSError) -> None:
        item.failed, item.refused = (error.strerror or str(error)).lower(), True

    def _drop(self, item: FileItem) -> None:
        path = item.directory.path_of(item.name)
        try:
            self.abandon(item)
        except OSError as error:
            raise explain(error, "remove what there is of", self._target + os.fsdecode(path)) from error
        kind = "not-restored" if item.refused else "damaged"
        self.outcome.lost(path, item.failed or "", kind, item.found)

    def abandon(self, item: FileItem) -> None:
        """A file that was not restored completely is not left behind in part. Raises OSError."""
        with suppress(OSError):
            self._large.close_file(item)
        if self._rereader is not None:
            self._rereader.abandon(item)
        else:
            with suppress(OSError):
                self._close(item)
        if item.temp:
            with suppress(FileNotFoundError):
                os.unlink(item.temp, dir_fd=item.directory.fd)
            item.temp = b""  # only now: who tries again must fail again

    def _close(self, item: FileItem) -> None:
        fd, item.fd = item.fd, -1  # it is closed even when that fails
        if fd >= 0:
            os.close(fd)


def _strip(fd: int) -> None:
    """A directory's rights, and those it hands down to new entries, must not mix into the archive's attributes."""
    for name in (attributes.ACCESS_ACL, attributes.DEFAULT_ACL):
        with suppress(OSError):
            os.removexattr(fd, name)
