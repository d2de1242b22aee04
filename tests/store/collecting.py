"""For tests of garbage collections: what is needed, told by the index files alone, and ways to make chunks old."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from archiver.core.clock import Clock
from archiver.store.gc.collect import collect
from archiver.store.gc.result import Result
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from formats.index import decode_index
from tests.stores import Heard, chunk_files

OLD = 1_000_000_000  # an access time of long ago


def needed(path: Path) -> set[str]:
    """Digests in all index files below ``path`` but in hidden directories, read one by one."""
    found = set()
    for file in path.rglob("*.?idx"):
        if not any(part.startswith(".") for part in file.relative_to(path).parts):
            index = decode_index(file.read_bytes())
            found |= {index.digest(entry).hex() for entry in range(len(index))}
    return found


def present(path: Path) -> set[str]:
    return {file.name for file in chunk_files(path)}


def forget(path: Path, ref: SnapshotRef) -> None:
    shutil.rmtree(path / ref.path)


def make_old(path: Path) -> None:
    """As if no chunk had been used for years."""
    for file in (path / ".chunks").glob("*/*"):
        os.utime(file, (OLD, file.stat().st_mtime))


def gc(path: Path, *, clock: Clock | None = None, heard: Heard | None = None, **options: Any) -> Result:
    """Open the store and collect."""
    with Store.open(path, clock=clock, listener=heard or Heard()) as store:
        return collect(store, **options)
