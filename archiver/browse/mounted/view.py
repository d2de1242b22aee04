"""A store, a snapshot or an archive as the file system that FUSE shows.

    [ns/NAME/[ns/NAME/...]]TYPE/ID/TIME/ARCHIVE        of a store; ``latest`` in a group leads to the newest snapshot
    ARCHIVE                                            of a snapshot
    ...                                                of an archive: what is in it

ARCHIVE is a directory for ``x.pxar``, the image or the contents for ``x.img`` and ``x.conf``. What is above the entries
of archives is looked up in the store each time, so that new snapshots appear; below nothing ever changes.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from archiver.browse.mounted.chunk_cache import ChunkCache
from archiver.browse.mounted.directories import Directory, Inner, Latest, Stored
from archiver.browse.mounted.opened import Opener, OpenSnapshots
from archiver.browse.mounted.tree import ARCHIVES, IN_ARCHIVE, MountedTree, archive_number
from archiver.core.events import FileProblem, Notice
from archiver.core.fuse import protocol
from archiver.core.fuse.protocol import Found, Listed
from archiver.errors import ArchiverError, KeyProblem, Locked, NotFound
from archiver.store.store import Store
from formats.crypt import CryptConfig
from formats.errors import FormatError

_TOLD = 1000  # messages that are not repeated
_UNKNOWN = 0xFFFF_FFFF  # inode of what nobody has looked up yet


class _Counted:
    """A node above the entries: how often the kernel was told of it."""

    __slots__ = ("count", "inner", "key")

    def __init__(self, inner: Inner, key: tuple[int, bytes]) -> None:
        self.inner = inner
        self.key = key
        self.count = 0


class View:
    """A FileSystem (core/fuse/server.py). ``opener`` opens a snapshot with the key for it, if there is one."""

    def __init__(self, store: Store, top: Callable[[View], Inner], opener: Opener, crypt: CryptConfig | None) -> None:
        self.store = store
        self.snapshots = OpenSnapshots(store, opener)
        self.chunks = ChunkCache(store.layout, crypt)
        self._lock = threading.Lock()
        self._numbers = protocol.ROOT
        self._inner: dict[int, _Counted] = {protocol.ROOT: _Counted(top(self), (0, b""))}
        self._by_name: dict[tuple[int, bytes], int] = {}
        self._archives: list[Stored] = []
        self._archive_numbers: dict[Stored, int] = {}
        self._told: set[str] = set()

    def close(self) -> None:
        self.snapshots.close()

    # -- archives ------------------------------------------------------------------------------------------------------

    def number(self, stored: Stored) -> int:
        """The number that the nodes of an archive have in them."""
        with self._lock:
            number = self._archive_numbers.get(stored)
            if number is None:
                number = len(self._archives)
                if number == ARCHIVES:
                    raise OSError(errno.ENFILE, "too many archives were looked at; mount again")
                self._archives.append(stored)
                self._archive_numbers[stored] = number
            return number

    def _stored(self, node: int) -> Stored | None:
        """The archive that a node is in or stands for; None for one above archives."""
        if node & IN_ARCHIVE:
            return self._archives[archive_number(node)]
        inner = self._at(node)
        return inner if isinstance(inner, Stored) else None

    def _at(self, node: int) -> Inner:
        counted = self._inner.get(node)
        if counted is None:
            raise OSError(errno.ESTALE, "no such node")
        return counted.inner

    @contextmanager
    def _tree(self, node: int) -> Iterator[MountedTree | None]:
        """The tree that a node is in, or is the root of."""
        stored = self._stored(node)
        if stored is None or stored.kind != "tree":
            yield None
            return
        with stored.tree() as tree, self._explained(tree, node):
            yield tree

    # -- what goes wrong -----------------------------------------------------------------------------------------------

    @contextmanager
    def _explained(self, tree: MountedTree | None, node: int) -> Iterator[None]:
        """What is wrong with a store becomes an error number, and is told in words."""
        try:
            yield
        except OSError:
            raise
        except (FormatError, ArchiverError) as error:
            stored = self._stored(node)
            place = b"" if stored is None else os.fsencode(stored.place)
            if tree is not None:
                place += tree.path(node)
            raise self.failed(error, place) from error

    def failed(self, error: Exception, place: bytes = b"") -> OSError:
        """The OSError for ``error``, of which the listener is told once."""
        number = errno.EIO
        if isinstance(error, KeyProblem):
            number = errno.EACCES
        elif isinstance(error, NotFound):
            number = errno.ENOENT
        elif isinstance(error, Locked):
            number = errno.EBUSY
        text = f"{os.fsdecode(place)}: {error}"
        with self._lock:
            new = text not in self._told
            if len(self._told) >= _TOLD:
                self._told.clear()
            self._told.add(text)
        if new:
            if number == errno.EIO and place:
                self.store.listener(FileProblem(place, str(error), "damaged"))
            else:
                self.store.listener(Notice(str(error), "warning"))
        return OSError(number, str(error))

    # -- FileSystem ----------------------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Found:
        with self._tree(parent) as tree:
            if tree is not None:
                return tree.lookup(parent, name)
        with self._explained(None, parent):
            inner = self._at(parent)
            if not isinstance(inner, Directory):
                raise NotADirectoryError(errno.ENOTDIR, "not a directory")
            child = inner.child(name)
            if child is None:
                raise FileNotFoundError(errno.ENOENT, "no such file or directory")
        return child.found(self._count(parent, name, child))

    def _count(self, parent: int, name: bytes, child: Inner) -> int:
        """The number of a node that the kernel is told of once more."""
        with self._lock:
            key = (parent, name)
            node = self._by_name.get(key)
            if node is None or self._inner[node].inner != child:
                self._numbers += 1
                node = self._by_name[key] = self._numbers
                self._inner[node] = _Counted(child, key)
            self._inner[node].count += 1
            return node

    def forget(self, node: int, count: int) -> None:
        if node & IN_ARCHIVE or node == protocol.ROOT:
            return
        with self._lock:
            counted = self._inner.get(node)
            if counted is None:
                return
            counted.count -= count
            if counted.count <= 0:
                del self._inner[node]
                if self._by_name.get(counted.key) == node:
                    del self._by_name[counted.key]

    def attributes(self, node: int) -> Found:
        if not node & IN_ARCHIVE:
            with self._explained(None, node):
                return self._at(node).found(node)
        with self._tree(node) as tree:
            assert tree is not None
            return tree.attributes(node)

    def target(self, node: int) -> bytes:
        with self._tree(node) as tree:
            if tree is not None:
                return tree.target(node)
        inner = self._at(node)
        if not isinstance(inner, Latest):
            raise OSError(errno.EINVAL, "not a symbolic link")
        return inner.target

    def open(self, node: int) -> None:
        stored = self._stored(node)
        if stored is None:
            return
        if stored.kind == "tree":
            with self._tree(node):
                pass  # it can be opened
        else:
            with self._explained(None, node):
                stored.check()
        self.snapshots.acquire(stored.ref)

    def release(self, node: int) -> None:
        stored = self._stored(node)
        if stored is not None:
            self.snapshots.release(stored.ref)

    def read(self, node: int, offset: int, size: int) -> list[bytes | memoryview]:
        with self._tree(node) as tree:
            if tree is not None:
                return tree.read(node, offset, size)
        with self._explained(None, node):
            return self._file(node).read(offset, size)

    def _file(self, node: int) -> Stored:
        stored = self._stored(node)
        if stored is None:
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        return stored

    def seek(self, node: int, offset: int, whence: int) -> int:
        with self._tree(node) as tree:
            if tree is not None:
                return tree.seek(node, offset, whence)
        with self._explained(None, node):
            return self._file(node).seek(offset, whence)

    def list_directory(self, node: int) -> Iterator[Listed]:
        for name in (b".", b".."):
            yield Listed(name, node if name == b"." else _UNKNOWN, 0o040000)
        stored = self._stored(node)
        if stored is None:
            with self._explained(None, node):
                inner = self._at(node)
                if not isinstance(inner, Directory):
                    raise NotADirectoryError(errno.ENOTDIR, "not a directory")
                names = list(inner.names())
            for name, mode in names:
                yield Listed(name, self._by_name.get((node, name), _UNKNOWN), mode)
            return
        with self._tree(node) as tree:
            if tree is None:
                raise NotADirectoryError(errno.ENOTDIR, "not a directory")
            yield from tree.list_directory(node)

    def keeps(self, node: int) -> bool:
        return self._stored(node) is not None

    def extended(self, node: int) -> dict[bytes, bytes]:
        with self._tree(node) as tree:
            return {} if tree is None else tree.extended(node)

    def control(self, node: int, command: int, size: int) -> bytes:
        with self._tree(node) as tree:
            if tree is None:
                raise OSError(errno.ENOTTY, "no such control")
            return tree.control(node, command, size)
