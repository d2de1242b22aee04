"""What an archive says of its directories, read into the file catalog."""

from __future__ import annotations

from archiver.browse.recorded import LETTERS
from archiver.browse.snapshot import Tree
from archiver.core.row import ROW, signed
from archiver.store.catalog.catalog import LIVE, Catalog, Places
from archiver.store.catalog.record import (
    HAS_DIRECTORIES,
    NOWHERE,
    SPLIT_FROM,
    UNSORTED,
    Draft,
    Record,
    begins_leaf,
    leaf_key,
    path_key,
)
from archiver.store.catalog.writer import RunWriter, new_names
from formats.errors import FormatError
from formats.pxar.decoder import LEAVE
from formats.pxar.encoder import encode_attributes, encode_entry
from formats.pxar.items import Entry

FROM_ARCHIVE = "archive"  # what the rows of such a run depend on: nothing but the archive

_LARGEST_RECORD = 4 << 20  # bytes, about; a directory with more is split, however few names it has
_LARGEST_HELD = 24 << 20  # bytes of the entries of all open directories, about
_ENTRY = 250  # of these for an entry itself, its items and name apart
_MOST_LEVELS = 1 << 16  # of directories; no file system gets there


def record_archive(catalog: Catalog, tree: Tree) -> bool:
    """Record the run of an archive as a child of the latest earlier one. False when the database cannot take it.

    Raises FormatError and ArchiverError for an archive that cannot be read to its end; nothing is recorded then.
    Memory: some 24 MiB and what the decoder takes, however large the archive or a directory of it is.
    """
    time = tree.snapshot.ref.time
    writer = RunWriter(catalog, _before(catalog, time), catalog.database.directory)
    try:
        root = _Recorder(catalog, tree, writer).run()
        return writer.record(time, csum=tree.metadata_file.csum, fields=FROM_ARCHIVE, root=root)
    finally:
        writer.close()


def _before(catalog: Catalog, time: int) -> Places | None:
    """The places of the latest run before ``time``."""
    newest = catalog.newest()
    if newest is not None and newest.time < time:
        return newest
    for earlier in reversed(catalog.times()):
        if earlier < time:
            head = catalog.head(earlier)
            places = catalog.places(earlier) if head is not None and head.state == LIVE else None
            if places is not None:
                return places
    return None


class _Directory:
    """An open directory."""

    __slots__ = ("attributes", "draft", "flags", "held", "is_split", "key", "last", "leaves", "mtime", "path_length")

    def __init__(self, key: int, mtime: int, attributes: bytes, path_length: int) -> None:
        self.key, self.mtime, self.attributes, self.path_length = key, mtime, attributes, path_length
        self.draft = self.record()  # takes the entries: of the whole directory, or of the leaf that is being filled
        self.held = 0  # bytes in that, about
        self.is_split = False
        self.leaves: list[tuple[int, bytes]] = []
        self.flags = 0  # of all its leaves
        self.last = b""  # name

    def record(self) -> Draft:
        return Draft(mtime=self.mtime, own=self.attributes)


class _Recorder:
    """Tells the directories of one archive to a RunWriter as they end, those of very many entries in leaves."""

    def __init__(self, catalog: Catalog, tree: Tree, writer: RunWriter) -> None:
        self._catalog = catalog
        self._decoder = tree.decoder()
        self._writer = writer
        self._path = bytearray()
        self._open: list[_Directory] = []
        self._held = 0  # bytes in all open directories, about

    def run(self) -> int:
        """The key of the root."""
        for event in self._decoder:
            if event is LEAVE:
                self._leave()
            elif event.kind == "dir":
                self._enter(event)
            else:
                self._add(event)
        return path_key(b"")

    def _enter(self, entry: Entry) -> None:
        assert entry.metadata is not None
        if len(self._open) >= _MOST_LEVELS:
            raise FormatError("directories in directories", expected=f"at most {_MOST_LEVELS}")
        if self._path:
            self._path += b"/"
        self._path += entry.name
        key = path_key(bytes(self._path))
        if self._open:
            self._put(b"d", entry.name, ROW.pack(0, -1, signed(key), 0), b"")
        attributes = encode_attributes(entry.metadata)
        self._open.append(_Directory(key, _mtime(entry), attributes, len(self._path)))

    def _add(self, entry: Entry) -> None:
        if entry.kind == "hardlink":
            entry = entry._replace(link_offset=0)
        row = ROW.pack(0, entry.size, _mtime(entry), 0)
        self._put(LETTERS[entry.kind], entry.name, row, encode_entry(entry))

    def _put(self, kind: bytes, name: bytes, row: bytes, items: bytes) -> None:
        directory = self._open[-1]
        if name < directory.last:
            directory.flags |= UNSORTED
        directory.last = name
        if directory.is_split and begins_leaf(name):
            self._end_leaf(directory)
        directory.draft.add(kind, name, row, items)
        size = len(name) + len(items) + _ENTRY
        directory.held += size
        self._held += size
        if directory.held > _LARGEST_RECORD:
            self._end_leaf(directory)
        elif not directory.is_split and len(directory.draft.names) == SPLIT_FROM:
            self._split(directory)
        if self._held > _LARGEST_HELD:
            for outer in self._open:
                self._end_leaf(outer)

    def _split(self, directory: _Directory) -> None:
        """A directory turns out to have very many names: those that came so far go into leaves."""
        whole, directory.draft, directory.is_split = directory.draft, Draft(), True
        for number, (kind, name, row, items) in enumerate(whole.entries()):
            if number and begins_leaf(name):
                self._end_leaf(directory)
            directory.draft.add(kind, name, row, items)

    def _end_leaf(self, directory: _Directory) -> None:
        """Write what a directory has so far as a leaf of it."""
        leaf = directory.draft
        if not leaf.names:
            return
        first = leaf.names[0]
        directory.is_split, leaf.mtime, leaf.own = True, 0, b""
        key = leaf_key(directory.key, first if directory.leaves else b"")
        directory.leaves.append((key, first))
        directory.flags |= leaf.flags & HAS_DIRECTORIES
        self._tell(key, leaf, self._path[: directory.path_length])
        self._held -= directory.held
        directory.held = 0
        directory.draft = Draft()

    def _leave(self) -> None:
        directory = self._open.pop()
        if directory.is_split:
            self._end_leaf(directory)
            record = directory.record()
            record.flags = directory.flags
            self._writer.put(directory.key, record.encode_split(directory.leaves), NOWHERE)
        else:
            self._tell(directory.key, directory.draft, self._path)
            self._held -= directory.held
        del self._path[self._open[-1].path_length if self._open else 0 :]

    def _tell(self, key: int, draft: Draft, path: bytearray) -> None:
        raw, layout = draft.encode()
        if self._writer.put(key, raw, layout) and draft.names:
            names = new_names(self._record_before(key), draft.names)
            if names:
                self._writer.names(bytes(path), names)

    def _record_before(self, key: int) -> Record | None:
        before = self._writer.before
        number = -1 if before is None else before.find(key)
        return None if before is None or number < 0 else self._catalog.load(before.place(number))


def _mtime(entry: Entry) -> int:
    """In ns; 0 for a hard link, which has none of its own."""
    if entry.metadata is None:
        return 0
    stat = entry.metadata.stat
    return signed(stat.mtime_secs * 1_000_000_000 + stat.mtime_nanos)
