"""Media, sets and catalogs for tests, made without a drive."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from archiver.core.clock import Clock
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.inventory import Inventory, InventoryFile, Location, Medium
from archiver.tape.state.place import TapePlace
from formats.tape.catalog import ChunkFile, Digests, SnapshotEntry
from formats.tape.labels import MediaLabel, MediaSetLabel


class StoppedClock(Clock):
    def __init__(self, now: int = 1_700_000_000) -> None:
        self.time = now

    def now(self) -> int:
        return self.time


def uuid_of(text: str) -> bytes:
    return uuid.uuid5(uuid.NAMESPACE_URL, text).bytes


def medium(name: str, time: int = 0, pool: str | None = None, **rest: Any) -> Medium:
    return Medium(MediaLabel(name, uuid_of(name), time, pool), **rest)


def in_set(each: Medium, pool: str, media_set: str, seq_nr: int, time: int, key: bytes | None = None) -> Medium:
    return replace(each, set_label=MediaSetLabel(pool, uuid_of(media_set), seq_nr, time, key))


def online(each: Medium, changer: str) -> Medium:
    return replace(each, location=Location("online", changer))


def inventory_of(*media: Medium) -> Inventory:
    return Inventory({each.uuid: each for each in media})


def store(place: TapePlace, *media: Medium) -> None:
    def put(inventory: Inventory) -> None:
        for each in media:
            inventory.put(each)

    InventoryFile(place).change(put)


def digests(start: int, count: int) -> Digests:
    """Distinct ones, the same for the same numbers."""
    raw = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(start, start + count))
    return np.frombuffer(raw, np.uint8).reshape(-1, 32)


def archive(file: int, found: Digests, name: str = "s") -> ChunkFile:
    return ChunkFile(file, uuid_of(f"file {file}"), name, found)


def snapshot(file: int, path: str, name: str = "s") -> SnapshotEntry:
    return SnapshotEntry(file, uuid_of(f"file {file}"), name, path)


def append(place: TapePlace, each: Medium, *entries: ChunkFile | SnapshotEntry) -> None:
    place_in = each.in_set
    assert place_in is not None
    logs = CatalogLogs(place)
    if logs.stamp(each.uuid) is None:
        logs.create(each.uuid, place_in.uuid, place_in.seq_nr)
    log = logs.open(each.uuid, place_in.uuid, place_in.seq_nr)
    for entry in entries:
        log.add(entry)
    log.commit()


def new_place(tmp_path: Path) -> TapePlace:
    return TapePlace(str(tmp_path / "state"))
