"""A store with one small tree in it, for tests that read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from archiver.backup.run import BackupOptions, Mode, backup
from archiver.backup.specification import ArchiveSpec
from archiver.browse.snapshot import Snapshot, Tree
from archiver.core.events import ignore
from archiver.store.store import Store
from formats.crypt import CryptConfig
from tests.random_trees import noise
from tests.stores import CHUNK_SIZE, GROUP

KEY = CryptConfig(bytes(range(1, 33)))
ODD = b"\xff\xfe\n"


def build_tree(root: Path) -> dict[bytes, bytes]:
    """Fill ``root``; returns the contents of its files by path. Chunks end inside of files, and hold several."""
    sizes = {"a": 300_000, "dir/b": 100_000, "dir/c": 10, "dir/sub/d": 1, "empty": 0, "z": 70_000}
    sizes |= {f"many/{number:03}": 3000 for number in range(40)}
    contents: dict[bytes, bytes] = {}
    for number, (name, size) in enumerate(sizes.items()):
        contents[name.encode()] = noise(number, size)
    contents[ODD] = b"odd"
    contents[b"dir/" + b"n" * 255] = b"long"
    for name_, data in contents.items():
        path = os.fsencode(root) + b"/" + name_
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    with open(root / "sparse", "wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(b"in the middle")
    contents[b"sparse"] = (root / "sparse").read_bytes()
    (root / "dir/hard").hardlink_to(root / "a")  # the archive has "a" first
    contents[b"dir/hard"] = contents[b"a"]
    (root / "link").symlink_to("dir")
    (root / "none").mkdir()
    os.mkfifo(root / "fifo")
    return contents


def make_store(path: Path, source: Path, *, mode: Mode = "data", crypt: CryptConfig | None = None) -> None:
    """A store with one snapshot of ``source``."""
    Store.create(path)
    options = BackupOptions(
        GROUP, mode=mode, crypt=crypt, crypt_mode="none" if crypt is None else "encrypt", chunk_size=CHUNK_SIZE
    )
    with Store.open(path) as store:
        backup(store, [ArchiveSpec("source", str(source))], options, ignore)


@contextmanager
def opened(path: Path, crypt: CryptConfig | None = None) -> Iterator[Tree]:
    """The tree of its only snapshot."""
    with Store.open(path) as store:
        snapshot = Snapshot(store, store.find("latest", ""), crypt)
        yield snapshot.tree(snapshot.archive(None))
