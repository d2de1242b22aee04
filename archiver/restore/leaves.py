"""Entries that are complete at once: symlinks, devices, fifos, sockets, and hard links to files that were written."""

from __future__ import annotations

import errno
import os
import stat as st
from collections.abc import Callable

from archiver.core import linux
from archiver.restore import attributes
from archiver.restore.existing import Existing, is_as_archived, is_same_file, look
from archiver.restore.outcome import Outcome
from archiver.restore.place import Placer
from archiver.restore.visitor import Directory, link_target
from formats.pxar.items import Entry


class Leaves:
    """Makes them as the archive has them. ``rule``: what becomes of what is in a directory."""

    def __init__(self, placer: Placer, rule: Callable[[Directory], Existing], outcome: Outcome) -> None:
        self._placer = placer
        self._rule = rule
        self._outcome = outcome

    def make(self, directory: Directory, entry: Entry) -> None:
        metadata = entry.metadata
        assert metadata is not None
        found: os.stat_result | None = None
        lost: list[str] = []
        try:
            if directory.found is not None:
                found = look(entry.name, directory.fd)
            if found is not None:
                verdict = self._rule(directory).leaf(found, entry, directory.fd)
                if verdict == "keep":
                    self._outcome.keep(found)
                    return
                if verdict == "same":
                    wrong = attributes.stat_differences(metadata.stat, found)
                    if not wrong or found.st_nlink == 1:
                        if wrong:
                            lost = attributes.apply_at(entry.name, directory.fd, metadata.stat)
                        self._outcome.count_settled(wrong)
                        self._check(directory, entry, lost)
                        return

            def make(name: bytes) -> None:
                if entry.kind == "symlink":
                    os.symlink(entry.target, name, dir_fd=directory.fd)
                else:
                    mode = st.S_IFMT(metadata.stat.mode) | 0o600
                    linux.make_node(name, mode, entry.major, entry.minor, dir_fd=directory.fd)
                lost.extend(attributes.apply_at(name, directory.fd, metadata.stat))

            self._placer.make(directory, entry.name, found, make)
        except OSError as error:
            self._outcome.failed(directory, entry.name, error, found)
            return
        self._check(directory, entry, lost)

    def _check(self, directory: Directory, entry: Entry, lost: list[str]) -> None:
        """Tell which attributes could not be set; what is different although they were."""
        if not lost and (self._outcome.checks or not self._outcome.exact) and entry.metadata is not None:
            path = directory.path_of(entry.name)
            found = look(entry.name, directory.fd)
            if found is None:
                self._outcome.differs(path, ["it is gone"])
            else:
                self._outcome.tell_differences(path, attributes.stat_differences(entry.metadata.stat, found))
                if not is_as_archived(found, entry, directory.fd):
                    self._outcome.differs(path, ["it is something else"])
        elif lost:
            self._outcome.attributes_lost(directory.path_of(entry.name), lost)

    def link(self, directory: Directory, entry: Entry, root: Directory) -> None:
        found: os.stat_result | None = None
        try:
            with link_target(entry, root) as (parent, last):
                if directory.found is not None:
                    found = look(entry.name, directory.fd)
                if self._rule(directory).overwrite == "never" and found is not None:
                    self._outcome.keep(found)
                    return
                first = look(last, parent)
                if first is not None and self._outcome.is_other(first):
                    raise OSError(
                        errno.EEXIST, f"the file it is linked to, {os.fsdecode(entry.target)}, stayed as it is"
                    )
                if found is not None and is_same_file(found, first):
                    self._outcome.unchanged += 1
                    return

                def make(name: bytes) -> None:
                    try:
                        os.link(last, name, src_dir_fd=parent, dst_dir_fd=directory.fd, follow_symlinks=False)
                    except PermissionError:
                        _link_fixed(last, parent, name, directory.fd)

                self._placer.make(directory, entry.name, found, make)
        except OSError as error:
            self._outcome.failed(directory, entry.name, error, found)


def _link_fixed(source: bytes, source_fd: int, name: bytes, dir_fd: int) -> None:
    """Link to a file whose attributes (immutable, append-only) forbid it for the moment."""
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=source_fd)
    try:
        flags = attributes.may_link(fd)
        try:
            os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
        finally:
            attributes.linked(fd, flags)
    finally:
        os.close(fd)
