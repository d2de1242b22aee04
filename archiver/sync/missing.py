"""Which chunks have no file: the database's list of them beside the names in the shards, both in order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archiver.core.disk import explain
from archiver.store.database import bulk, records
from archiver.store.database.database import Database
from archiver.store.layout import Layout
from archiver.store.store import Store


def missing_chunks(store: Store, used: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Of the chunks ``used``, by number: those that have no file, or a damaged one as far as is known. None without a
    database."""
    database = store.database
    if database is None:
        return None
    if not len(used):
        return used
    return database.ask(lambda txn: _missing(txn, database, store.layout, used))


def _missing(txn: Any, database: Database, layout: Layout, used: NDArray[np.bool_]) -> NDArray[np.bool_]:
    missing = used.copy()
    shard, present = "", frozenset[str]()
    for digest, number, stored in _used(txn, database, used):
        if digest[:4] != shard:
            shard = digest[:4]
            present = frozenset(_names(layout.shard(digest)))
        missing[number] = not stored or digest not in present
    return missing


def _used(txn: Any, database: Database, used: NDArray[np.bool_]) -> Iterator[tuple[str, int, int]]:
    """(digest, number, stored length) of the chunks ``used``, in the order of the digests."""
    table = database.table(records.DIGEST)
    for keys, entries in bulk.scan(txn, table, bulk.DIGEST_KEYS, bulk.DIGEST_VALUES):
        numbers = entries["number"]
        mine = (numbers < len(used)) & used[np.minimum(numbers, len(used) - 1)]
        texts = np.ascontiguousarray(keys[mine]).view("V32").tolist()
        stored = entries["stored"][mine].tolist()
        yield from zip(map(bytes.hex, texts), numbers[mine].tolist(), stored, strict=True)


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise explain(error, "list", path) from error
