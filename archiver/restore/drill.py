"""A fire drill: one file of a snapshot is really restored, read again and removed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from archiver.browse.snapshot import ArchiveFiles, Snapshot, Tree
from archiver.browse.stream import Cursor
from archiver.core import linux
from archiver.core.disk import explained
from archiver.core.events import Listener
from archiver.errors import Damaged, NotFound
from archiver.restore.run import restore
from archiver.store.layout import WRAPPED_KEY
from formats.errors import FormatError
from formats.pxar.decoder import LEAVE, Decoder, LeaveDirectory
from formats.pxar.items import Entry

_USUAL_SIZE = 64 << 20  # bytes; a larger one is taken only where there is no other
_CANNOT_BE_REMOVED = linux.FS_IMMUTABLE_FL | linux.FS_APPEND_FL


@dataclass(frozen=True, slots=True)
class Restored:
    """The file that came back: its archive, its path in there (the archive's name for an image or blob), bytes."""

    archive: str
    path: str
    size: int


def drill(snapshot: Snapshot, listener: Listener) -> Restored:
    """Restore one file of ``snapshot`` to a temporary directory the way a restore does it, with its verification.

    Raises NotFound where there is no file, Damaged when it does not come back as it was saved, ArchiverError.
    """
    sample = _Sample(snapshot)
    chosen = sample.choose()
    with explained("write into", "a directory for temporary files"):
        directory = tempfile.TemporaryDirectory(prefix="archiver-drill-")
    with directory as place:
        result = restore(sample, [chosen], os.path.join(place, "restored"), verify=True, listener=listener)
    wrong = [f"{os.fsdecode(problem.path)}: {problem.reason}" for problem in result.problems if _is_wrong(problem.kind)]
    if wrong or result.files != 1:
        raise Damaged(f"the file of {snapshot.ref} did not come back as it was saved: {'; '.join(wrong) or 'missing'}")
    return Restored(chosen.name, sample.path or chosen.name, result.bytes)


def _is_wrong(kind: str) -> bool:
    """What an ordinary user may not restore, such as owners, proves nothing about the backup."""
    return kind != "attribute"


class _Sample(Snapshot):
    """A snapshot that has one file."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(snapshot.store, snapshot.ref, snapshot.crypt, manifest=snapshot.manifest)
        self._tree: Tree | None = None
        self.path: str | None = None

    def choose(self) -> ArchiveFiles:
        """The archive with the file: a tree where one has a file, else a blob or image. Raises NotFound."""
        archives = [archive for archive in self.archives() if archive.files[0].filename != WRAPPED_KEY]
        for archive in archives:
            if archive.kind == "tree":
                tree = _OneFile(self, archive)
                if tree.find():
                    self._tree, self.path = tree, tree.path
                    return archive
        others = [archive for archive in archives if archive.kind != "tree" and archive.files[0].size <= _USUAL_SIZE]
        if not others:
            raise NotFound(f"{self.ref} has no file that could be restored")
        return others[0]

    def tree(self, archive: ArchiveFiles) -> Tree:
        assert self._tree is not None
        return self._tree


class _OneFile(Tree):
    """A tree with one of its files and the directories that lead to it."""

    def find(self) -> bool:
        """Look for a file; False when there is none. Raises Damaged."""
        above: list[Entry] = []
        self.entries: list[Entry] = []
        try:
            for event in super().decoder():
                if event is LEAVE:
                    above.pop()
                elif event.kind == "dir":
                    above.append(event)
                elif event.kind == "file" and event.size and _can_be_removed([*above, event]):
                    if event.size <= _USUAL_SIZE:
                        self.entries = [*above, event]
                        break
                    self.entries = self.entries or [*above, event]
        except FormatError as error:
            raise Damaged(f"{self.files.name} of {self.snapshot.ref} is damaged: {error}") from error
        return bool(self.entries)

    @property
    def path(self) -> str:
        return os.fsdecode(b"/".join(entry.name for entry in self.entries))

    def decoder(self) -> Decoder:
        return _Chosen(Cursor(self.archive), self.entries)


class _Chosen(Decoder):
    """Yields the entries chosen before."""

    def __init__(self, archive: Cursor, entries: list[Entry]) -> None:
        super().__init__(archive)
        self._chosen = entries

    def __iter__(self) -> Iterator[Entry | LeaveDirectory]:
        yield from self._chosen
        for _ in self._chosen[:-1]:
            yield LEAVE


def _can_be_removed(entries: list[Entry]) -> bool:
    flags = 0
    for entry in entries:
        assert entry.metadata is not None
        flags |= linux.chattr_flags(entry.metadata.stat.flags)
    return not flags & _CANNOT_BE_REMOVED
