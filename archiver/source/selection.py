"""Which entries of a directory are archived (spec pxar.md 13.2 to 13.4).

The patterns in effect in a directory are, in this order: the excludes given by the user, ``lost+found`` where asked
for, and the lines of every ``.pxarexclude`` from the source's root down to here. The last one that matches decides.
"""

from __future__ import annotations

import errno
import os
import stat as st
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from blake3 import blake3

from archiver.core.linux import open_noatime
from archiver.source.problem import Note, explain
from formats.patterns import Pattern, PatternList, parse_exclude_file

EXCLUDE_FILE = b".pxarexclude"
LARGEST_EXCLUDE_FILE = 1 << 20  # bytes
CACHE_TAG = b"CACHEDIR.TAG"
CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"


class Selection(NamedTuple):
    """The user's part of the choice, the same for all directories. ``known`` is what the archive's prelude tells."""

    known: tuple[Pattern, ...] = ()
    exclude_caches: bool = False

    @classmethod
    def of(cls, excludes: Iterable[Pattern], *, skip_lost_and_found: bool, exclude_caches: bool) -> Selection:
        known = tuple(excludes)
        if skip_lost_and_found:
            known += (Pattern.parse(b"lost+found"),)
        return cls(known, exclude_caches)

    def decides_below(self, names: list[bytes]) -> bool:
        """Whether a file among ``names`` decides with its contents what is archived."""
        return EXCLUDE_FILE in names or (self.exclude_caches and CACHE_TAG in names)

    def digest(self, inherited: PatternList, path: Callable[[], bytes]) -> bytes:
        """16 bytes for the rules by which names of a directory are chosen, as long as no file in it decides."""
        rules = inherited.text()
        return blake3(b"caches\0" * self.exclude_caches + rules + (path() if rules else b"")).digest(length=16)

    def start(self) -> PatternList:
        """The patterns in effect above the source's root."""
        return PatternList(list(self.known))

    def choose(
        self, fd: int, names: list[bytes], inherited: PatternList, path: Callable[[], bytes], problem: Note
    ) -> tuple[list[bytes], PatternList]:
        """Those of the ``names`` in the open directory ``fd`` that are archived, and the patterns for what is below.

        ``path`` gives the directory's path in the archive; it is asked only when a pattern needs it.
        """
        patterns = inherited
        if EXCLUDE_FILE in names:
            patterns = inherited.extended(_exclude_file(fd, path(), problem))
        if self.exclude_caches and CACHE_TAG in names and _is_cache(fd):
            names = [CACHE_TAG]
        if not patterns:
            return names, patterns
        prefix = path().rstrip(b"/") + b"/"
        match = patterns.match
        kept = [name for name in names if match(prefix + name, partial(_is_directory, fd, name)) != "exclude"]
        return kept, patterns


def _is_directory(fd: int, name: bytes) -> bool:
    try:
        return st.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
    except OSError:
        return False  # reported when the entry itself is looked at


def _exclude_file(fd: int, directory: bytes, problem: Note) -> list[Pattern]:
    """Patterns of a directory's exclude file. One that cannot be read excludes nothing: rather too much is saved."""
    try:
        data = _read_small(fd, EXCLUDE_FILE, LARGEST_EXCLUDE_FILE + 1)
    except OSError as error:
        if error.errno != errno.ENOENT:
            problem("pattern", f"exclude file has no effect: {explain(error)[1]}")
        return []
    if len(data) > LARGEST_EXCLUDE_FILE:
        problem("pattern", f"exclude file has no effect: larger than {LARGEST_EXCLUDE_FILE} bytes")
        return []
    return parse_exclude_file(
        data, directory, lambda line, reason: problem("pattern", f"line {line} has no effect: {reason}")
    )


def _is_cache(fd: int) -> bool:
    try:
        return _read_small(fd, CACHE_TAG, len(CACHE_SIGNATURE)) == CACHE_SIGNATURE
    except OSError as error:
        explain(error)
        return False  # not a readable tag, so not a cache; the file is reported like any other


def _read_small(dir_fd: int, name: bytes, limit: int) -> bytes:
    """At most ``limit`` bytes of a regular file; OSError for anything else, which is not even opened: a device may
    act on that."""
    _require_regular(os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
    fd = open_noatime(name, os.O_NONBLOCK, dir_fd)
    try:
        _require_regular(os.fstat(fd))
        data = b""
        while len(data) < limit and (block := os.read(fd, limit - len(data))):
            data += block
        return data
    finally:
        os.close(fd)


def _require_regular(stat: os.stat_result) -> None:
    if not st.S_ISREG(stat.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
