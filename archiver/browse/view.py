"""One way to look at a tree, whoever knows it: the catalog, the archive, or the disk (see live.py).

Nothing of a directory is looked at before its entries are asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

from archiver.browse.catalog import Catalogs, recorded_tree
from archiver.browse.recorded import LETTERS, Item, Lost, RunTree
from archiver.browse.snapshot import ArchiveFiles, Snapshot, Tree
from archiver.errors import ArchiverError, Damaged, NotFound
from archiver.store.catalog.record import UNSORTED, Record
from formats.errors import FormatError
from formats.pxar.accessor import Accessor
from formats.pxar.items import Entry, Kind
from formats.wire import Buffer

_DIRECTORY = LETTERS["dir"][0]
_HELD = 2048  # entries of a directory that are sorted without a look whether they need it
_SORTED_AT_MOST = 200_000  # entries; some 100 MB


class Node(Protocol):
    """An entry of a tree. Name b"": its root."""

    @property
    def name(self) -> bytes: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def size(self) -> int:
        """Bytes of a file's contents, else 0."""


N = TypeVar("N", bound=Node)
T = TypeVar("T")


class View(ABC, Generic[N]):
    """A tree of nodes of one kind. Not for several threads."""

    name: str  # for messages

    @abstractmethod
    def root(self) -> N: ...

    @abstractmethod
    def entries(self, directory: N) -> Iterator[N]:
        """Those of a directory in the order of the archive, usually that of names. What is in one of them is to be
        asked for before the next one is."""

    def ordered(self, directory: N) -> Iterator[N]:
        """The same in the order of their names always."""
        return self.entries(directory)

    @abstractmethod
    def entry(self, node: N) -> Entry:
        """What an archive says or would say about it, positions apart."""

    def readable(self, node: N) -> bool:
        """Whether all could be read that was asked for about it; asked afterwards."""
        return True

    @abstractmethod
    def resolved(self, node: N) -> N | None:
        """The file that a hard link is another name of; every other node itself. None: there is no such file."""


class StoredView(View[N]):
    """One whose paths can be looked up."""

    @abstractmethod
    def lookup(self, directory: N, name: bytes) -> N | None: ...

    def resolved(self, node: N) -> N | None:
        return self.open_path(self.entry(node).target) if node.kind == "hardlink" else node

    def open_path(self, path: bytes) -> N | None:
        """The entry at ``path`` (``b"a/b"`` or ``b"/a/b"``), or None. Follows no links."""
        node = self.root()
        for name in plain_parts(path):
            found = self.lookup(node, name) if node.kind == "dir" and name != b".." else None
            if found is None:
                return None
            node = found
        return node

    def find(self, path: bytes) -> N:
        """The same; NotFound."""
        node = self.open_path(path)
        if node is None:
            raise NotFound(f"there is no {path.decode('utf-8', 'backslashreplace')} in {self.name}")
        return node


def plain_parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


class RecordedNode:
    """Of the catalog. Without an item it is the root."""

    __slots__ = ("item", "key", "kind", "name", "tree")

    def __init__(self, tree: RunTree, item: Item | None) -> None:
        self.tree = tree
        self.item = item
        self.kind: Kind = "dir" if item is None else item.kind
        self.name = b"" if item is None else item.name
        self.key = tree.root if item is None else item.key if self.kind == "dir" else 0  # of a directory

    @property
    def size(self) -> int:
        return 0 if self.item is None else self.item.size


class RecordedView(StoredView[RecordedNode]):
    """The tree of a run. Every method raises Lost where the catalog lacks something."""

    def __init__(self, tree: RunTree, name: str) -> None:
        self.tree = tree
        self.name = name

    def root(self) -> RecordedNode:
        return RecordedNode(self.tree, None)

    def entries(self, directory: RecordedNode) -> Iterator[RecordedNode]:
        for record in self.tree.records(directory.key):
            for number, name in enumerate(record.names):
                yield RecordedNode(self.tree, Item(record, number, name))

    def ordered(self, directory: RecordedNode) -> Iterator[RecordedNode]:
        """Raises Lost where very many are in another order: nobody writes such archives."""
        if self.tree.record(directory.key).flags & UNSORTED:
            raise Lost
        for record in self.tree.records(directory.key):
            yield from self.nodes(record)

    def nodes(self, record: Record) -> Iterator[RecordedNode]:
        """The entries of a record of this tree in the order of their names."""
        names = record.names
        order: Iterable[int] = range(len(names))
        if not all(map(bytes.__le__, names, islice(names, 1, None))):
            order = sorted(order, key=names.__getitem__)
        return self._numbered(record, order)

    def chosen(self, record: Record, wanted: Collection[bytes] = ()) -> Iterator[RecordedNode]:
        """Of the same the directories, and those with the names ``wanted``, each of which stands in it once at most."""
        names, kinds, place = record.names, record.kinds, record.place if wanted else {}
        numbers = {place[name] for name in wanted if name in place}
        number = kinds.find(_DIRECTORY)
        while number >= 0:
            numbers.add(number)
            number = kinds.find(_DIRECTORY, number + 1)
        return self._numbered(record, sorted(sorted(numbers), key=names.__getitem__))

    def _numbered(self, record: Record, numbers: Iterable[int]) -> Iterator[RecordedNode]:
        names = record.names
        for number in numbers:
            yield RecordedNode(self.tree, Item(record, number, names[number]))

    def entry(self, node: RecordedNode) -> Entry:
        return self.tree.directory_entry(self.tree.root) if node.item is None else self.tree.entry(node.item)

    def lookup(self, directory: RecordedNode, name: bytes) -> RecordedNode | None:
        item = self.tree.lookup(directory.key, name)
        return None if item is None else RecordedNode(self.tree, item)


def _name(node: Node) -> bytes:
    return node.name


class ArchiveView(StoredView[Entry]):
    """The tree as the archive has it. Every method raises Damaged where the archive is wrong."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.name = f"{tree.files.name} of {tree.snapshot.ref}"
        self._accessor: Accessor | None = None

    @property
    def accessor(self) -> Accessor:
        if self._accessor is None:
            try:
                self._accessor = self.tree.accessor()
            except FormatError as error:
                raise self.damaged(error) from error
        return self._accessor

    def damaged(self, error: FormatError) -> Damaged:
        return Damaged(f"{self.name} is damaged: {error}")

    def root(self) -> Entry:
        return self.accessor.root

    def entries(self, directory: Entry) -> Iterator[Entry]:
        try:
            yield from self.accessor.entries(directory)
        except FormatError as error:
            raise self.damaged(error) from error

    def ordered(self, directory: Entry) -> Iterator[Entry]:
        """Raises ArchiverError for a very large one in another order: nobody writes such archives."""
        first = list(islice(self.entries(directory), _HELD))
        if len(first) < _HELD:
            return iter(sorted(first, key=_name))
        del first
        count, last, ordered = 0, b"", True
        for node in self.entries(directory):
            ordered = ordered and last <= node.name
            last = node.name
            count += 1
        if not ordered and count > _SORTED_AT_MOST:
            raise ArchiverError(f"a directory of {count} entries in {self.name} is not in the order of its names")
        return self.entries(directory) if ordered else iter(sorted(self.entries(directory), key=_name))

    def entry(self, node: Entry) -> Entry:
        return node

    def lookup(self, directory: Entry, name: bytes) -> Entry | None:
        try:
            return self.accessor.lookup(directory, name)
        except FormatError as error:
            raise self.damaged(error) from error

    def resolved(self, node: Entry) -> Entry | None:
        try:
            return self.accessor.follow_hardlink(node) if node.kind == "hardlink" else node
        except FormatError as error:
            raise self.damaged(error) from error

    def pieces(self, node: Entry) -> Iterator[Buffer]:
        """The contents of a file, piece by piece. Raises Damaged, ChunkDamaged."""
        try:
            stream, offset, size = self.accessor.content(node)
        except FormatError as error:
            raise self.damaged(error) from error
        return (self.tree.content if stream == "payload" else self.tree.archive).pieces(offset, size)


AnyView = RecordedView | ArchiveView


def open_view(
    snapshot: Snapshot, archive: ArchiveFiles, catalogs: Catalogs | None = None, *, use_catalog: bool = True
) -> AnyView:
    """A directory tree of a snapshot: as the catalog has it if it is there, else as the archive says."""
    if archive.kind == "tree" and use_catalog:
        recorded = recorded_tree(snapshot, archive, catalogs)
        if recorded is not None:
            return RecordedView(recorded, f"{archive.name} of {snapshot.ref}")
    return ArchiveView(snapshot.tree(archive))


def answered(ask: Callable[[bool], Iterator[T]]) -> Iterator[T]:
    """What ``ask`` gives, which is told whether it may use the catalog. Where that turns out to lack something it is
    asked once more without: the answers are the same, in the same order."""
    count = 0
    try:
        for answer in ask(True):
            count += 1
            yield answer
    except Lost:
        yield from islice(ask(False), count, None)
