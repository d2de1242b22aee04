"""A store with signed snapshots to be tampered with, and a reader that never takes wrong bytes for right ones.

Three snapshots of a tree that changes and one of another group, all with the same key, and one nobody has signed in a
third group. The files are small, so that every byte can have its turn.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from archiver.backup.run import CryptMode, Mode
from archiver.browse.catalog import ensure
from archiver.browse.recorded import RunTree
from archiver.browse.snapshot import Snapshot
from archiver.errors import ArchiverError
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats import blob
from formats.index import DynamicIndexWriter
from formats.manifest import FileInfo, Manifest
from tests.random_trees import noise
from tests.stores import KEY, every_snapshot, make_store, save

GROUP, OTHER, PLAIN = (GroupRef("", "host", name) for name in ("victim", "other", "plain"))
TIMES = (1_700_000_000, 1_700_000_100, 1_700_000_200)
FIRST, SECOND, THIRD = (SnapshotRef(GROUP, when) for when in TIMES)
ELSEWHERE = SnapshotRef(OTHER, TIMES[1])
_LEAST = 100_000  # bytes of a file that fills chunks

Streams = dict[str, bytes]  # of a snapshot: logical bytes behind each file of its manifest
Listing = list[tuple[bytes, str, int]]


@dataclass
class Lab:
    """``expected``: what each snapshot held when it was made, ``listings`` what its catalog says."""

    path: Path
    source: Path
    mode: CryptMode
    expected: dict[SnapshotRef, Streams] = field(default_factory=dict)
    listings: dict[SnapshotRef, Listing] = field(default_factory=dict)

    @classmethod
    def build(cls, place: Path, mode: CryptMode, archive: Mode = "metadata") -> Lab:
        place.mkdir(exist_ok=True)
        lab = cls(make_store(place / "store"), place / "source", mode)
        lab.source.mkdir()
        for ref in (FIRST, SECOND, THIRD, ELSEWHERE):
            lab.change(TIMES.index(ref.time) if ref != ELSEWHERE else 3)
            save(lab.path, lab.source, group=ref.group, time=ref.time, crypt=KEY, crypt_mode=mode, mode=archive)
        save(lab.path, lab.source, group=PLAIN, time=TIMES[0], mode=archive)
        with Store.open(lab.path) as store:
            for ref in every_snapshot(store):
                lab.expected[ref] = streams(store, ref)
                lab.listings[ref] = listing(store, ref)
        assert len({tuple(held.items()) for ref, held in lab.expected.items() if ref.group != PLAIN}) == 4
        return lab

    def change(self, number: int) -> None:
        (self.source / "text").write_bytes(b"number %d\n" % number)
        (self.source / f"file-{number}").write_bytes(noise(number, 300))
        (self.source / "same").write_bytes(noise(99, 500))
        if number == 0:
            (self.source / "large").write_bytes(noise(98, 2 * _LEAST))

    def copy(self, place: Path) -> Lab:
        """One to be spoiled, without its database."""
        shutil.copytree(self.path, place)
        shutil.rmtree(place / ".archiver" / "db")
        return Lab(place, self.source, self.mode, self.expected, self.listings)

    # -- what an attacker works with -----------------------------------------------------------------------------------

    def directory(self, ref: SnapshotRef) -> Path:
        return self.path / ref.path

    def manifest_file(self, ref: SnapshotRef) -> Path:
        return self.directory(ref) / "index.json.blob"

    def fields(self, ref: SnapshotRef) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(blob.decode(self.manifest_file(ref).read_bytes()))
        return fields

    def write_fields(self, ref: SnapshotRef, fields: dict[str, Any]) -> None:
        self.manifest_file(ref).write_bytes(blob.encode(json.dumps(fields).encode()))

    def alter(self, ref: SnapshotRef, change: Callable[[dict[str, Any]], object]) -> None:
        fields = self.fields(ref)
        change(fields)
        self.write_fields(ref, fields)

    def indexes(self, ref: SnapshotRef) -> list[Path]:
        return [self.directory(ref) / file["filename"] for file in self.fields(ref)["files"]]

    def chunks(self, ref: SnapshotRef) -> dict[Path, tuple[str, int, bytes]]:
        """The chunk files of a snapshot: (index file, position in it, plain bytes)."""
        found = {}
        with Store.open(self.path, read_only=True) as store:
            snapshot = Snapshot(store, ref, KEY)
            for file in snapshot.manifest.files:
                stream = snapshot.stream(file)
                for number in range(len(stream.index)):
                    path = Path(store.layout.chunk(stream.index.digest(number).hex()))
                    found[path] = (file.filename, number, stream.chunk(number))
        return found

    def forge(self, ref: SnapshotRef, data: bytes) -> None:
        """A whole plain snapshot in the place of one, made without any key: an image of one chunk."""
        shutil.rmtree(self.directory(ref))
        self.directory(ref).mkdir(parents=True)
        digest = sha256(data).digest()
        index = DynamicIndexWriter(bytes(16), ref.time)
        index.add(len(data), digest)
        entries = index.take()
        (self.directory(ref) / "tree.pxar.didx").write_bytes(index.finish() + entries)
        chunk = self.path / ".chunks" / digest.hex()[:4] / digest.hex()
        chunk.parent.mkdir(exist_ok=True)
        chunk.write_bytes(blob.encode(data))
        file = FileInfo("tree.pxar.didx", "none", index.size, index.csum)
        manifest = Manifest(ref.group.type, ref.group.id, ref.time, (file,))
        self.manifest_file(ref).write_bytes(blob.encode(manifest.encode()))

    # -- what a reader gets --------------------------------------------------------------------------------------------

    def read(self, ref: SnapshotRef, *, database: bool = False) -> str | None:
        """None: what was saved. Else the sentence with which it is refused. Anything else is what must never be."""
        with Store.open(self.path, read_only=not database) as store:
            try:
                if database:
                    assert store.database is not None
                    found = listing(store, ref)
                    assert found == self.listings[ref], "the database tells of other files"
                held = streams(store, ref)
            except ArchiverError as error:
                assert error.exit_code in (12, 20), error
                return str(error)
        assert held == self.expected.get(ref), "wrong bytes"
        return None


def streams(store: Store, ref: SnapshotRef) -> Streams:
    snapshot = Snapshot(store, ref, KEY)
    assert snapshot.archives()
    held = {}
    for file in snapshot.manifest.files:
        stream = snapshot.stream(file)
        held[file.filename] = b"".join(stream.pieces(0, stream.size))
    return held


def listing(store: Store, ref: SnapshotRef) -> Listing:
    """Paths, kinds and sizes as the file catalog in the database has them."""
    catalog = ensure(Snapshot(store, ref, KEY), "tree.pxar")
    assert catalog is not None
    tree = RunTree(catalog, ref.time)

    def walk(key: int, above: bytes) -> Iterator[tuple[bytes, str, int]]:
        for item in tree.entries(key):
            yield above + item.name, item.kind, item.size
            if item.kind == "dir":
                yield from walk(item.key, above + item.name + b"/")

    return sorted(walk(tree.root, b""))


def flipped(path: Path, at: int, bit: int, *, unseen: bool = False) -> Iterator[None]:
    """With one bit changed; ``unseen``: the times stay, as when a disk does it."""
    status = path.stat()
    with path.open("r+b", buffering=0) as file:
        (before,) = os.pread(file.fileno(), 1, at)
        for value in (before ^ 1 << bit, before):
            os.pwrite(file.fileno(), bytes([value]), at)
            if unseen or value == before:
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            if value != before:
                yield
