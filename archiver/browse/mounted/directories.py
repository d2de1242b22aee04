"""What lies above the entries of archives: namespaces, types, groups, snapshots, archives.

Each is a value: equal ones are the same node. What they show is asked of the store each time.
"""

from __future__ import annotations

import errno
import os
import stat as st
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from archiver.browse.mounted.tree import MountedTree, read_pieces, seek_in, zero_chunks
from archiver.browse.snapshot import ArchiveFiles
from archiver.browse.stream import ChunkStream
from archiver.core.fuse.protocol import Attributes, Found
from archiver.errors import ArchiverError, NotFound
from archiver.store import snapshots
from archiver.store.layout import WRAPPED_KEY, GroupRef, SnapshotRef
from formats.errors import FormatError
from formats.naming import format_time, parse_time

if TYPE_CHECKING:
    from archiver.browse.mounted.view import View

_DIRECTORY = st.S_IFDIR | 0o555
_FILE = st.S_IFREG | 0o444
_LINK = st.S_IFLNK | 0o777
_FRESH = 1.0  # seconds that names and attributes may be a matter of yesterday
_LATEST = b"latest"
_BLOCK = 512
_KEPT_BLOB = 1 << 20  # bytes


class Inner(ABC):
    """A node. Its ``view`` does not count when two are compared."""

    @abstractmethod
    def found(self, node: int) -> Found: ...


class Directory(Inner):
    """Raises ArchiverError where the store cannot be read."""

    @abstractmethod
    def names(self) -> Iterator[tuple[bytes, int]]:
        """(name, mode) of what is in it."""

    @abstractmethod
    def child(self, name: bytes) -> Inner | None: ...

    def found(self, node: int) -> Found:
        return Found(node, self._attributes(), _FRESH)

    def _attributes(self) -> Attributes:
        try:
            status = os.stat(self._path())
        except OSError:
            return Attributes(_DIRECTORY)
        seconds, nanos = divmod(status.st_mtime_ns, 10**9)
        mode = st.S_IFDIR | (status.st_mode & 0o555)
        return Attributes(mode, mtime=seconds, mtime_nanos=nanos, uid=status.st_uid, gid=status.st_gid)

    @abstractmethod
    def _path(self) -> str:
        """The directory in the store."""


@dataclass(frozen=True, slots=True)
class Namespace(Directory):
    """Also the whole store."""

    view: View = field(compare=False)
    name: str

    def names(self) -> Iterator[tuple[bytes, int]]:
        yield from ((each, _DIRECTORY) for each in sorted(self._children()))

    def _children(self) -> dict[bytes, Inner]:
        layout = self.view.store.layout
        found: dict[bytes, Inner] = {}
        for group in snapshots.groups(layout, self.name):
            found[group.type.encode()] = Type(self.view, self.name, group.type)
        if next(iter(below(self.view, self.name)), None) is not None:
            found[b"ns"] = Namespaces(self.view, self.name)
        return found

    def child(self, name: bytes) -> Inner | None:
        return self._children().get(name)

    def _path(self) -> str:
        return self.view.store.layout.namespace(self.name)


def below(view: View, namespace: str) -> Iterator[str]:
    """The names of the namespaces directly in a namespace."""
    prefix = f"{namespace}/" if namespace else ""
    for each in snapshots.namespaces(view.store.layout, namespace):
        rest = each[len(prefix) :]
        if each != namespace and "/" not in rest:
            yield rest


@dataclass(frozen=True, slots=True)
class Namespaces(Directory):
    """The directory ``ns`` of a namespace."""

    view: View = field(compare=False)
    parent: str

    def names(self) -> Iterator[tuple[bytes, int]]:
        yield from ((each.encode(), _DIRECTORY) for each in below(self.view, self.parent))

    def child(self, name: bytes) -> Inner | None:
        for each in below(self.view, self.parent):
            if each.encode() == name:
                return Namespace(self.view, f"{self.parent}/{each}" if self.parent else each)
        return None

    def _path(self) -> str:
        return os.path.join(self.view.store.layout.namespace(self.parent), "ns")


@dataclass(frozen=True, slots=True)
class Type(Directory):
    view: View = field(compare=False)
    namespace: str
    type: str

    def _groups(self) -> list[GroupRef]:
        return [group for group in snapshots.groups(self.view.store.layout, self.namespace) if group.type == self.type]

    def names(self) -> Iterator[tuple[bytes, int]]:
        yield from ((group.id.encode(), _DIRECTORY) for group in self._groups())

    def child(self, name: bytes) -> Inner | None:
        for group in self._groups():
            if group.id.encode() == name:
                return Group(self.view, group)
        return None

    def _path(self) -> str:
        return os.path.join(self.view.store.layout.namespace(self.namespace), self.type)


@dataclass(frozen=True, slots=True)
class Group(Directory):
    """Finished snapshots, and ``latest``."""

    view: View = field(compare=False)
    group: GroupRef

    def names(self) -> Iterator[tuple[bytes, int]]:
        store, found = self.view.store, False
        for when in store.times(self.group):
            if store.is_finished(SnapshotRef(self.group, when)):
                found = True
                yield format_time(when).encode(), _DIRECTORY
        if found:
            yield _LATEST, _LINK

    def child(self, name: bytes) -> Inner | None:
        store = self.view.store
        if name == _LATEST:
            newest = store.newest(self.group)
            return None if newest is None else Latest(format_time(newest.time).encode())
        try:
            when = parse_time(name.decode("ascii", "replace"))
        except FormatError:
            return None
        ref = SnapshotRef(self.group, when)
        if format_time(when).encode() != name or not store.is_finished(ref):
            return None
        return SnapshotDirectory(self.view, ref)

    def _path(self) -> str:
        return self.view.store.layout.group(self.group)


@dataclass(frozen=True, slots=True)
class Latest(Inner):
    target: bytes

    def found(self, node: int) -> Found:
        return Found(node, Attributes(_LINK, len(self.target)), _FRESH)


@dataclass(frozen=True, slots=True)
class SnapshotDirectory(Directory):
    view: View = field(compare=False)
    ref: SnapshotRef

    def _archives(self) -> Iterator[ArchiveFiles]:
        with self.view.snapshots.using(self.ref) as (snapshot, _):
            for archive in snapshot.archives():
                if archive.files[0].filename != WRAPPED_KEY:
                    yield archive

    def names(self) -> Iterator[tuple[bytes, int]]:
        for archive in self._archives():
            yield archive.name.encode(), _DIRECTORY if archive.kind == "tree" else _FILE

    def child(self, name: bytes) -> Inner | None:
        for archive in self._archives():
            if archive.name.encode() == name:
                return stored(self.view, self.ref, archive)
        return None

    def _path(self) -> str:
        return self.view.store.layout.snapshot(self.ref)


def stored(view: View, ref: SnapshotRef, archive: ArchiveFiles) -> Stored:
    return Stored(view, ref, archive.name, archive.kind, archive.files[0].csum)


@dataclass(frozen=True, slots=True)
class Stored(Inner):
    """An archive. ``csum``: of its (first) file, so that another one in its place is another node."""

    view: View = field(compare=False)
    ref: SnapshotRef
    name: str
    kind: str  # tree, image, blob
    csum: bytes

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.ref}/{self.name}"

    def _opened(self, archives: list[ArchiveFiles]) -> ArchiveFiles:
        for archive in archives:
            if (archive.name, archive.files[0].csum) == (self.name, self.csum):
                return archive
        raise NotFound(f"{self.ref} is not the snapshot any more that it was")

    @contextmanager
    def tree(self) -> Iterator[MountedTree]:
        """Its entries. What is wrong when it is opened is an OSError already, and told."""
        with ExitStack() as stack:
            try:
                tree = stack.enter_context(self._tree())
            except (ArchiverError, FormatError) as error:
                raise self.view.failed(error, os.fsencode(self.place)) from error
            yield tree

    @contextmanager
    def _tree(self) -> Iterator[MountedTree]:
        with self.view.snapshots.using(self.ref) as (snapshot, parts):
            tree = parts.get(self.name)
            if not isinstance(tree, MountedTree):
                archive = self._opened(snapshot.archives())
                tree = MountedTree(snapshot, archive, self.view.number(self), self.view.chunks)
                tree = parts.setdefault(self.name, tree)
                assert isinstance(tree, MountedTree)
            yield tree

    def found(self, node: int) -> Found:
        """Where it cannot be opened it is shown all the same, as something that nobody may read."""
        try:
            if self.kind == "tree":
                with self.tree() as tree:
                    return tree.root(node)
            return Found(node, self._file_attributes())
        except OSError:
            return Found(node, Attributes(st.S_IFDIR if self.kind == "tree" else st.S_IFREG), _FRESH)
        except (ArchiverError, FormatError) as error:
            self.view.failed(error, os.fsencode(self.place))
            return Found(node, Attributes(st.S_IFREG), _FRESH)

    # -- images and blobs: one file each -------------------------------------------------------------------------------

    def _file_attributes(self) -> Attributes:
        if self.kind == "image":
            with self._image() as stream:
                size = stream.size
                holes = sum(end - start for start, end in zero_chunks(stream, self.view.chunks, 0, size))
        else:
            size, holes = len(self._blob()), 0
        return Attributes(_FILE, size, -(-(size - holes) // _BLOCK), mtime=self.ref.time)

    @contextmanager
    def _image(self) -> Iterator[ChunkStream]:
        with self.view.snapshots.using(self.ref) as (snapshot, parts):
            stream = parts.get(self.name)
            if not isinstance(stream, ChunkStream):
                file = self._opened(snapshot.archives()).files[0]
                stream = snapshot.shared_stream(file, self.view.chunks)
                parts[self.name] = stream
            yield stream

    def _blob(self) -> bytes:
        with self.view.snapshots.using(self.ref) as (snapshot, parts):
            data = parts.get(self.name)
            if not isinstance(data, bytes):
                data = snapshot.blob(self._opened(snapshot.archives()).files[0])
                if len(data) <= _KEPT_BLOB:
                    parts[self.name] = data
            return data

    def check(self) -> None:
        """Raises what reading would."""
        if self.kind == "image":
            with self._image():
                return
        self._blob()

    def read(self, offset: int, size: int) -> list[bytes | memoryview]:
        if self.kind == "image":
            with self._image() as stream:
                return read_pieces(stream, offset, min(size, stream.size - offset))
        return [self._blob()[offset : offset + size]]

    def seek(self, offset: int, whence: int) -> int:
        if self.kind == "image":
            with self._image() as stream:
                return seek_in(stream, self.view.chunks, 0, stream.size, offset, whence)
        size = len(self._blob())
        if not 0 <= offset < size:
            raise OSError(errno.ENXIO, "behind the end")
        return size if whence == os.SEEK_HOLE else offset
