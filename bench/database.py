"""How large an LMDB environment is, looked at from outside while nobody writes.

The file never shrinks, and pages that were given back are used again: what a backup costs is the growth of the pages
in use, and the length of the file only shows how much was in use at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DATA = "data.mdb"
MAP_BYTES = 1 << 40  # address space only
MAX_TABLES = 64


@dataclass(frozen=True, slots=True)
class DatabaseSize:
    """Bytes: ``used`` by pages that hold something, ``length`` of the file."""

    used: int
    length: int

    def __sub__(self, before: DatabaseSize) -> DatabaseSize:
        return DatabaseSize(self.used - before.used, self.length - before.length)


def size(directory: Path) -> DatabaseSize:
    """Of the environment in ``directory``; nothing, as long as there is none."""
    import lmdb

    file = directory / DATA
    if not file.exists():
        return DatabaseSize(0, 0)
    with lmdb.open(
        str(directory), readonly=True, lock=False, create=False, map_size=MAP_BYTES, max_dbs=MAX_TABLES
    ) as environment:
        with environment.begin() as transaction:
            tables = [bytes(name) for name, _ in transaction.cursor()]
        found = [environment.stat()]
        for name in tables:
            table = environment.open_db(name, create=False)
            with environment.begin() as transaction:
                found.append(transaction.stat(table))
    pages = sum(one["branch_pages"] + one["leaf_pages"] + one["overflow_pages"] for one in found)
    return DatabaseSize(pages * found[0]["psize"], file.stat().st_size)
