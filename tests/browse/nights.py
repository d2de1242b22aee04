"""Nights of backups of a random tree, and what each snapshot restored to, as a plain walk finds it."""

from __future__ import annotations

import os
import stat as st
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from archiver.backup.run import Mode
from archiver.browse.snapshot import Snapshot
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from formats.pxar.items import Entry
from tests.random_trees import SECOND, START, build_plain, mutate
from tests.stores import GROUP, bring_back, make_store, save

DAY = 86_400
FIRST = START // SECOND + 2 * 365 * DAY
MODES: tuple[Mode, ...] = ("metadata", "data", "legacy")
KINDS = {st.S_IFREG: "file", st.S_IFDIR: "dir", st.S_IFLNK: "symlink"}


class Plain(NamedTuple):
    """What lstat says."""

    kind: str
    size: int
    mode: int
    mtime: int
    target: bytes


def plain(entry: Entry) -> Plain:
    """The same of an entry of an archive."""
    assert entry.metadata is not None
    stat = entry.metadata.stat
    mtime = stat.mtime_secs * SECOND + stat.mtime_nanos
    return Plain(entry.kind, entry.size, 0 if entry.kind == "symlink" else stat.mode & 0o7777, mtime, entry.target)


def walk(root: Path) -> dict[bytes, Plain]:
    """Everything below ``root`` by its path (``b"/a/b"``)."""
    found = {}
    base = os.fsencode(root)
    for above, directories, files in os.walk(base):
        for name in directories + files:
            path = os.path.join(above, name)
            status = os.lstat(path)
            kind = KINDS[st.S_IFMT(status.st_mode)]
            target = os.readlink(path) if kind == "symlink" else b""
            size, mode = status.st_size if kind == "file" else 0, status.st_mode & 0o7777
            found[path[len(base) :]] = Plain(kind, size, 0 if target else mode, status.st_mtime_ns, target)
    return found


@dataclass
class Nights:
    store: Path
    source: Path
    crypt: CryptConfig | None
    restored: dict[int, Path]
    """Where the snapshot of each time was restored to."""

    @property
    def times(self) -> list[int]:
        return list(self.restored)

    def walk(self, time: int) -> dict[bytes, Plain]:
        return walk(self.restored[time])

    def contents(self, time: int, path: bytes) -> bytes:
        with open(os.fsencode(self.restored[time]) + path, "rb") as file:
            return file.read()

    @contextmanager
    def snapshots(self, *times: int) -> Iterator[list[Snapshot]]:
        """Those of the given times, or all."""
        with Store.open(self.store) as store:
            yield [Snapshot(store, SnapshotRef(GROUP, time), self.crypt) for time in times or self.times]


def many_nights(place: Path, seed: int, crypt: CryptConfig | None, count: int = 7, many: int = 0) -> Nights:
    """A store with ``count`` snapshots in all modes; ``many`` further names in one directory."""
    source = place / "source"
    source.mkdir(parents=True)
    build_plain(source / "tree", seed, files=60, max_size=5000)
    if many:
        (source / "many").mkdir()
        for number in range(many):
            (source / "many" / f"{number:05}").touch()
    nights = Nights(make_store(place / "store"), source, crypt, {})
    for night in range(count):
        time = FIRST + night * DAY
        save(nights.store, source, time=time, mode=MODES[night % len(MODES)], crypt=crypt)
        bring_back(nights.store, SnapshotRef(GROUP, time), place / f"restored-{night}", crypt=crypt, verify=False)
        nights.restored[time] = place / f"restored-{night}"
        mutate(source / "tree", seed * 1000 + night, changes=9)
        if many and night % 2:
            for number in range(night, many, 97):
                (source / "many" / f"{number:05}").unlink(missing_ok=True)
            (source / "many" / f"new-{night}").write_bytes(b"x" * night)
    return nights
