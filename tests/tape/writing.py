"""A pool whose media lie in one directory, and backups onto them as the command makes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from archiver.core.clock import Clock, Random, system_random
from archiver.core.events import Listener, ignore
from archiver.errors import TargetAbsent
from archiver.store.store import Store
from archiver.tape.drive.interface import Drive
from archiver.tape.drive.virtual import VirtualDrive
from archiver.tape.known_set import KnownSet
from archiver.tape.media_sets.media_sets import MediaSets
from archiver.tape.members import Member
from archiver.tape.restore.routes import snapshot_on_medium
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.inventory import InventoryFile, Location
from archiver.tape.state.place import TapePlace
from archiver.tape.state.pools import Pool
from archiver.tape.state.session import WriteSession
from archiver.tape.write.media import Media, UseKey, no_key
from archiver.tape.write.plan import Step, WriteOptions, WritePlan, estimate, make_plan, name_on_media
from archiver.tape.write.run import WriteResult, carry_out
from formats.tape.catalog import decode_catalog
from formats.tape.labels import MediaLabel
from tests.tape.media import put_stream
from tests.tape.restoring import LogCatalog


class Online:
    """A loader of whatever lies in the directory of its drive."""

    def __init__(self, drive: VirtualDrive, absent: Iterable[str] = ()) -> None:
        self.drive, self.absent = drive, set(absent)
        self.loads: list[str] = []

    def load(self, member: Member) -> Drive:
        if member.label in self.absent:
            raise TargetAbsent(f"medium {member.label} is not at hand")
        self.loads.append(member.label)
        self.drive.load(member.label)
        return self.drive


@dataclass
class Outcome:
    plan: WritePlan
    result: WriteResult
    loads: list[str]


@dataclass
class Library:
    """``base`` holds the state and the media; each medium holds ``max_size`` bytes."""

    base: Path
    max_size: int | None = None
    pool: Pool = field(default_factory=lambda: Pool.make("daily"))
    clock: Clock = field(default_factory=Clock)
    random: Random = system_random

    @property
    def media(self) -> Path:
        return self.base / "media"

    @property
    def place(self) -> TapePlace:
        return TapePlace(str(self.base / "state"))

    def drive(self) -> VirtualDrive:
        return VirtualDrive("shelf", str(self.media), max_size=self.max_size, new=True)

    def label(self, *texts: str, uuids: Iterable[bytes] = (), pool: str | None = None, content: bytes = b"") -> None:
        """New media, one second apart."""
        self.base.mkdir(parents=True, exist_ok=True)
        given = list(uuids)
        with self.drive() as drive:
            for number, text in enumerate(texts):
                uuid = given[number] if given else self.random(16)
                label = MediaLabel(text, uuid, self.clock.now() + number, pool)
                drive.add(text)
                put_stream(drive, label.content(content or self.random(16), self.clock.now()).encode())
                drive.flush()
                InventoryFile(self.place).change(lambda inventory, label=label: self._enter(inventory, label))  # type: ignore[misc]

    @staticmethod
    def _enter(inventory: Any, label: MediaLabel) -> None:
        inventory.put(
            replace(inventory.store_labels(label, None, keep_status=False), location=Location("online", "shelf"))
        )

    def backup(
        self,
        store: Path,
        *,
        options: WriteOptions | None = None,
        listener: Listener = ignore,
        close_from: int = 4 << 30,
        absent: Iterable[str] = (),
        force_new: bool = False,
        dry: bool = False,
        snapshots: Iterable[str] | None = None,
        change_drive: Callable[[VirtualDrive], Any] = lambda drive: drive,
        use_key: UseKey = no_key,
    ) -> Outcome:
        options = options or WriteOptions(require_encryption=self.pool.require_encryption)
        with (
            Store.open(store) as opened,
            self.drive() as drive,
            MediaSets(self.place, listener, {**os.environ, "ARCHIVER_DB_DIR": str(self.base / "db")}) as sets,
            WriteSession(
                self.place, self.pool, "shelf", force_new=force_new, clock=self.clock, random=self.random
            ) as session,
        ):
            known = KnownSet(self.place, sets, session.members())
            loader = Online(change_drive(drive), absent)
            media = Media(
                self.place,
                session,
                known,
                loader,
                listener,
                self.clock,
                self.random,
                namespaces=options.has_namespaces,
                use_key=use_key,
            )
            if snapshots is None:
                plan = make_plan(opened, media, options)
            else:
                steps = [Step(snapshot_on_medium(text), "write", "chosen") for text in snapshots]
                plan = WritePlan(name_on_media(opened), steps)
            if dry:
                estimate(opened, media, plan)
                return Outcome(plan, WriteResult(), [])
            result = carry_out(opened, plan, options, media, listener, close_from=close_from)
            return Outcome(plan, result, loader.loads)

    def logs(self) -> dict[str, bytes]:
        """By label text."""
        logs = CatalogLogs(self.place)
        return {medium.name: bytes(logs.read(medium.uuid)) for medium in self.inventory() if logs.stamp(medium.uuid)}

    def known(self) -> LogCatalog:
        """The newest set of the pool, as its logs have it."""
        found = self.inventory().latest_set(self.pool.name)
        members = [Member(number, medium.uuid, medium.name) for number, medium in sorted(found.members.items())]
        logs = self.logs()
        return LogCatalog(found.uuid, members, {each.seq_nr: decode_catalog(logs[each.label]) for each in members})

    def inventory(self) -> Any:
        return InventoryFile(self.place).load()

    def files(self, label: str) -> list[bytes]:
        """The files of a medium as they are."""
        count = len(list(self.media.glob(f"tapefile-*-{label}.json")))
        return [(self.media / f"tapefile-{number}-{label}.json").read_bytes() for number in range(count)]
