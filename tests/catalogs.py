"""File catalogs for tests: a live tree that changes by numbers, recorded as a backup records it, and read again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from archiver.browse.recorded import RunTree
from archiver.core.row import ROW, signed
from archiver.store.catalog.catalog import Catalog
from archiver.store.catalog.record import NOWHERE, SPLIT_FROM, Draft, inode_key, leaves
from archiver.store.catalog.seal import Seal
from archiver.store.catalog.writer import RunWriter, new_names
from archiver.store.database.database import Database
from archiver.store.layout import GroupRef
from formats.crypt import CryptConfig
from formats.pxar.encoder import encode_attributes, encode_file
from formats.pxar.metadata import Metadata, Stat

GROUP = GroupRef("", "host", "model")
KEY = CryptConfig(bytes(range(32)))
NAMES = [b"a", b"b", b"report.txt", b"report-2.txt", b"x" * 200, b"\xff\n", b"[odd]", b".hidden", b"caf\xc3\xa9"]


@dataclass
class File:
    inode: int
    size: int
    mtime: int
    ctime: int


@dataclass
class Folder:
    inode: int
    mtime: int
    children: dict[bytes, File | Folder] = field(default_factory=dict)


Seen = tuple[Any, ...]


class Disk:
    """A live tree that changes by numbers."""

    def __init__(self, *, large: bool = True) -> None:
        """``large``: it also gets directories that are split."""
        self.large = large
        self.free: list[int] = []
        self.last = 2
        self.now = 1000
        self.root = Folder(self.inode(), self.now)

    def inode(self) -> int:
        """Inodes are used again."""
        if self.free:
            return self.free.pop()
        self.last += 1
        return self.last

    def folders(self) -> list[tuple[bytes, Folder]]:
        found = []
        todo: list[tuple[bytes, Folder]] = [(b"", self.root)]
        while todo:
            path, folder = todo.pop()
            found.append((path, folder))
            for name, child in folder.children.items():
                if isinstance(child, Folder):
                    todo.append((path + b"/" + name if path else name, child))
        return found

    def release(self, node: File | Folder) -> None:
        self.free.append(node.inode)
        if isinstance(node, Folder):
            for child in node.children.values():
                self.release(child)

    def step(self, random: Random) -> None:
        self.now += 1
        path, folder = random.choice(self.folders())
        name = random.choice(NAMES)
        old = folder.children.get(name)
        match random.randrange(60) if self.large and random.random() < 0.2 else random.randrange(7):
            case 0 | 1 | 2:
                if not isinstance(old, Folder):
                    inode = old.inode if old is not None else self.inode()
                    folder.children[name] = File(inode, random.randrange(5), self.now, self.now)
            case 3 | 4:
                if old is None and path.count(b"/") < 4:
                    folder.children[name] = Folder(self.inode(), self.now)
            case 5:
                if old is not None:
                    self.release(folder.children.pop(name))
            case 6:  # renamed or moved, never into itself
                target = random.choice(self.folders())[1]
                other = random.choice(NAMES)
                inside = isinstance(old, Folder) and target in [one for _, one in _below(old)]
                if old is not None and other not in target.children and not inside:
                    target.children[other] = folder.children.pop(name)
                    target.mtime = self.now
            case 7:
                for number in range(random.randrange(SPLIT_FROM - 100, SPLIT_FROM + 700)):
                    folder.children.setdefault(b"name-%04d" % number, File(self.inode(), 1, self.now, self.now))
            case 8:
                many = [one for one in folder.children if one.startswith(b"name-")]
                for one in random.sample(many, len(many) // random.choice((1, 2, 100))):
                    self.release(folder.children.pop(one))
        folder.mtime = self.now


def _below(folder: Folder) -> Iterator[tuple[bytes, Folder]]:
    yield b"", folder
    for name, child in folder.children.items():
        if isinstance(child, Folder):
            yield name, child
            yield from _below(child)


def seen(root: Folder) -> dict[bytes, Seen]:
    """Every path with what a catalog must know about it."""
    found: dict[bytes, Seen] = {}
    todo: list[tuple[bytes, Folder]] = [(b"", root)]
    while todo:
        path, folder = todo.pop()
        for name, child in folder.children.items():
            below = path + b"/" + name if path else name
            if isinstance(child, Folder):
                found[below] = ("dir", child.mtime)
                todo.append((below, child))
            else:
                found[below] = ("file", child.inode, child.size, child.mtime, child.ctime)
    return found


class Nights:
    """Records a disk as a backup does."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.paths: dict[int, bytes] = {}  # of the directories in the last run, by key

    def record(self, disk: Disk, time: int, random: Random) -> None:
        newest = self.catalog.newest()
        self.writer = RunWriter(self.catalog, newest, self.catalog.database.directory)
        self.random = random
        before, self.paths = self.paths, {}
        self.position = 16
        self._folder(b"", disk.root, before)
        root = inode_key(b"", disk.root.inode, True)
        assert self.writer.record(time, csum=time.to_bytes(32), fields="model", root=root)
        self.writer.close()

    def _folder(self, path: bytes, folder: Folder, before: dict[int, bytes]) -> None:
        key = inode_key(b"", folder.inode, True)
        self.paths[key] = path
        own = encode_attributes(Metadata(Stat(0o40755, 0, 0, 0, folder.mtime, 0)))
        names = sorted(folder.children)
        draft = Draft(folder.inode, folder.mtime, 7, own=own)
        if len(names) < SPLIT_FROM:
            self._fill(draft, folder, names)
            self._put(key, draft, path, before.get(key) == path)
            below = names
        else:
            split = []
            for leaf, start, stop in leaves(key, names):
                part = Draft()
                self._fill(part, folder, names[start:stop])
                self._put(leaf, part, path, before.get(key) == path)
                split.append((leaf, names[start]))
            self.writer.put(key, draft.encode_split(split), NOWHERE)
            below = names
        for name in below:
            child = folder.children[name]
            if isinstance(child, Folder):
                self._folder(path + b"/" + name if path else name, child, before)

    def _fill(self, draft: Draft, folder: Folder, names: list[bytes]) -> None:
        for name in names:
            child = folder.children[name]
            if isinstance(child, Folder):
                key = signed(inode_key(b"", child.inode, True))
                draft.add(b"d", name, ROW.pack(child.inode, -1, key, 0), b"")
                continue
            stat = Stat(0o100644, 0, 0, 0, child.mtime, 0)
            item = encode_file(name, Metadata(stat), self.position, child.size)
            self.position += child.size + 16
            draft.add(b"f", name, ROW.pack(child.inode, child.size, child.mtime, child.ctime), item)

    def _put(self, key: int, draft: Draft, path: bytes, is_there: bool) -> None:
        raw, layout = draft.encode()
        newest = self.writer.before
        number = -1 if newest is None else newest.find(key)
        old = None if newest is None or number < 0 else self.catalog.load(newest.place(number))
        if old is not None and old.raw == raw and self.random.random() < 0.7:
            self.writer.keep(number, layout)
        else:
            self.writer.put(key, raw, layout)
        if names := new_names(old if is_there else None, draft.names):
            self.writer.names(path, names)


def walked(tree: RunTree) -> dict[bytes, Seen]:
    found: dict[bytes, Seen] = {}
    todo = [(b"", tree.root)]
    while todo:
        path, key = todo.pop()
        for item in tree.entries(key):
            below = path + b"/" + item.name if path else item.name
            entry = tree.entry(item)
            assert entry.name == item.name and entry.kind == item.kind and entry.metadata is not None
            again = tree.lookup(key, item.name)
            assert again is not None and again.row == item.row
            if item.kind == "dir":
                found[below] = ("dir", entry.metadata.stat.mtime_secs)
                todo.append((below, item.key))
            else:
                inode, size, mtime, ctime = item.row
                assert (entry.size, entry.metadata.stat.mtime_secs) == (size, mtime)
                found[below] = ("file", inode, size, mtime, ctime)
    assert tree.lookup(tree.root, b"not there") is None
    return found


def open_catalog(database: Database, crypt: CryptConfig | None, random: Random) -> Catalog:
    """With nothing kept in memory."""
    return Catalog(database, GROUP, "tree.pxar", Seal(crypt, random.randbytes))
