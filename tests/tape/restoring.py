"""A media set for tests whose media lie in one directory, and restores from it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from archiver.core.events import Listener, ignore
from archiver.errors import TargetAbsent
from archiver.store.store import Store
from archiver.tape.drive.interface import Drive
from archiver.tape.drive.virtual import VirtualDrive
from archiver.tape.media_sets.media_sets import SnapshotPlace
from archiver.tape.members import Member, Numbers
from archiver.tape.restore.plan import RestorePlan, make_plan
from archiver.tape.restore.routes import NamespaceRule, Routes, Selected
from archiver.tape.restore.run import RestoreResult, carry_out, survey
from formats.crypt import CryptConfig
from formats.tape.catalog import ChunkFile, Digests, MediaCatalog, SnapshotEntry, decode_catalog
from formats.tape.content import encode_uuid
from tests.formats.tape.media import document


@dataclass
class LogCatalog:
    """A catalog of a set that asks the logs themselves."""

    uuid: bytes
    members: list[Member]
    logs: dict[int, MediaCatalog]
    holes: list[int] = field(default_factory=list)

    def log(self, member: Member) -> MediaCatalog | None:
        return self.logs.get(member.seq_nr)

    def snapshots(self) -> Iterable[SnapshotPlace]:
        return [
            SnapshotPlace(entry.store, entry.path, seq_nr, entry.file)
            for seq_nr, log in self.logs.items()
            for entry in log.snapshots
        ]

    def find_chunks(self, store: str, digests: Digests) -> tuple[Numbers, Numbers]:
        places = {
            row.tobytes(): (seq_nr, archive.file)
            for seq_nr, log in sorted(self.logs.items())
            for archive in log.archives
            if archive.store == store
            for row in archive.digests
        }
        found = np.array([places.get(row.tobytes(), (-1, -1)) for row in digests], np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]


def golden_members(name: str) -> list[Member]:
    labels: dict[str, dict[int, Any]] = {}
    for said in document(name)["dump"]:
        labels.setdefault(said["label"], {})[said["file"]] = said["header"]
    return [
        Member(heads[1]["seq_nr"], bytes.fromhex(heads[0]["uuid"].replace("-", "")), label)
        for label, heads in labels.items()
    ]


def golden_catalog(name: str, logs: dict[str, bytes]) -> LogCatalog:
    """``logs``: by the names of their files."""
    members = golden_members(name)
    decoded = {
        member.seq_nr: decode_catalog(logs[f"{encode_uuid(member.uuid)}.log"])
        for member in members
        if f"{encode_uuid(member.uuid)}.log" in logs
    }
    first = next(iter(decoded.values()), None)
    return LogCatalog(b"" if first is None or first.media_set is None else first.media_set, members, decoded)


def snapshots_of(name: str) -> list[str]:
    spec = document(name)["spec"]["snapshots"]
    return ["".join(f"ns/{part}/" for part in namespace.split("/") if part) + path for namespace, path in spec]


class Shelf:
    """A loader whose media lie in a directory; ``absent`` ones are not to be had. ``loads``: labels, in order."""

    def __init__(self, place: Path, absent: Iterable[str] = ()) -> None:
        self.drive = VirtualDrive("shelf", str(place))
        self.absent = set(absent)
        self.loads: list[str] = []

    def load(self, member: Member) -> Drive:
        if member.label in self.absent:
            raise TargetAbsent(f"medium {member.label} is not at hand")
        self.loads.append(member.label)
        self.drive.load(member.label)
        return self.drive

    def close(self) -> None:
        self.drive.close()


@dataclass
class Restored:
    plan: RestorePlan
    result: RestoreResult
    loads: list[str]
    catalogued: dict[str, list[ChunkFile | SnapshotEntry]]


def restore_from(
    place: Path,
    catalog: LogCatalog,
    target: Path,
    *snapshots: str,
    namespaces: Iterable[str] = (),
    stores: dict[str, Path] | None = None,
    crypt: CryptConfig | None = None,
    absent: Iterable[str] = (),
    owner: str = "root@pam",
    listener: Listener = ignore,
    dry: bool = False,
) -> Restored:
    """From the media in ``place`` into the store at ``target``, or ``stores`` by the names of source stores."""
    catalogued: dict[str, list[ChunkFile | SnapshotEntry]] = {}
    shelf = Shelf(place, absent)
    with ExitStack() as opened:
        opened.callback(shelf.close)
        named = {name: opened.enter_context(Store.open(path)) for name, path in (stores or {}).items()}
        default = None if stores else opened.enter_context(Store.open(target))
        routes = Routes(
            named,
            default,
            [NamespaceRule.parse(text) for text in namespaces],
            [Selected.parse(text) for text in snapshots],
            owner,
        )
        plan = make_plan(catalog, routes)
        if dry:
            survey(catalog, plan, routes, shelf, crypt, listener)
            result = RestoreResult()
        else:
            result = carry_out(
                catalog,
                plan,
                routes,
                shelf,
                crypt,
                listener,
                catalogued=lambda member, entries, lost: catalogued.update({member.label: entries}),
            )
    return Restored(plan, result, shelf.loads, catalogued)
