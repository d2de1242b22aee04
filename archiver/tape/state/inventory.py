"""The inventory: all media that this machine knows (spec tape.md 6.2-6.5). ``inventory.json``, as a PBS has it.

Values here are what was stored or read from a label. What follows from them, whether a medium can be written or has
expired, is in ``rules``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from archiver.errors import ArchiverError, NotFound, UsageError
from archiver.tape.state.place import TapePlace
from formats.errors import FormatError
from formats.tape.content import MEDIA_LABEL, MEDIA_SET_LABEL, Content, decode_uuid, encode_uuid
from formats.tape.labels import NO_SET, MediaLabel, MediaSetLabel

T = TypeVar("T")

FILE = "inventory.json"
StoredStatus = Literal["full", "damaged", "retired"]
STORED: tuple[StoredStatus, ...] = ("full", "damaged", "retired")
_HINT = "put a copy back, or remove it and read the labels again: archiver tape inventory --read-all-labels"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_VAULT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{2,31}")


@dataclass(frozen=True, slots=True)
class Location:
    """``online`` in the library or virtual drive ``name``, ``offline`` on the shelf, or in the ``vault`` ``name``."""

    kind: Literal["online", "offline", "vault"]
    name: str = ""

    @staticmethod
    def parse(text: str) -> Location:
        """Raises UsageError."""
        if text == "offline":
            return OFFLINE
        if text.startswith("online-") and _NAME.fullmatch(text[7:]):
            return Location("online", text[7:])
        if text.startswith("vault-"):
            return Location.vault(text[6:])
        raise UsageError(f"{text[:80]!r} is no location", hint="offline, online-CHANGER or vault-NAME")

    @staticmethod
    def vault(name: str) -> Location:
        """Raises UsageError."""
        if not _VAULT.fullmatch(name):
            raise UsageError(f"{name[:80]!r} is no name of a vault", hint="3 to 32 letters, digits, '_', '.' and '-'")
        return Location("vault", name)

    def __str__(self) -> str:
        return f"{self.kind}-{self.name}" if self.name else self.kind


OFFLINE = Location("offline")


@dataclass(frozen=True, slots=True)
class Medium:
    """An entry: the labels as they were read or written (the set label without its key), and what is stored here.

    ``set_label`` with a uuid of zeros: empty, and kept for a pool (old media); see ``in_set``.
    """

    label: MediaLabel
    set_label: MediaSetLabel | None = None
    location: Location = OFFLINE
    status: StoredStatus | None = None
    bytes_used: int | None = None

    @property
    def uuid(self) -> bytes:
        return self.label.uuid

    @property
    def name(self) -> str:
        return self.label.label_text

    @property
    def pool(self) -> str | None:
        return self.set_label.pool if self.set_label is not None else self.label.pool

    @property
    def in_set(self) -> MediaSetLabel | None:
        """The set label, of a medium that is in a set."""
        return None if self.set_label is None or self.set_label.uuid == NO_SET else self.set_label

    def as_json(self) -> dict[str, Any]:
        """The entry of the file."""
        identity: dict[str, Any] = {"label": dict(self.label.content(NO_SET, 0).fields)}
        if self.set_label is not None:
            identity["media_set_label"] = dict(replace(self.set_label, key=None).content(NO_SET, 0).fields)
        entry: dict[str, Any] = {"id": identity, "location": str(self.location)}
        if self.status is not None:
            entry["status"] = self.status
        if self.bytes_used is not None:
            entry["bytes_used"] = self.bytes_used
        return entry

    @staticmethod
    def from_json(members: Any) -> Medium:
        """Raises FormatError, UsageError."""
        identity = members.get("id") if isinstance(members, dict) else None
        if not isinstance(identity, dict):
            raise FormatError("entry of an inventory", expected="an object with an id", got=repr(members)[:80])
        label = MediaLabel.decode(Content(MEDIA_LABEL, NO_SET, 0, _object(identity.get("label"))))
        set_label = None
        if identity.get("media_set_label") is not None:
            fields = {key: value for key, value in _object(identity["media_set_label"]).items() if key != "key-config"}
            set_label = MediaSetLabel.decode(Content(MEDIA_SET_LABEL, NO_SET, 0, fields))
        location = members.get("location")
        status = members.get("status")
        used = members.get("bytes_used")
        if used is not None and (not isinstance(used, int) or isinstance(used, bool) or used < 0):
            raise FormatError("bytes_used of an inventory entry", expected="a number", got=repr(used)[:80])
        if location is not None and not isinstance(location, str):
            raise FormatError("location of an inventory entry", expected="a string", got=repr(location)[:80])
        place = OFFLINE if location is None else Location.parse(location)
        return Medium(label, set_label, place, status if status in STORED else None, used)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError("label of an inventory entry", expected="an object", got=repr(value)[:80])
    return value


@dataclass(frozen=True, slots=True)
class MediaSet:
    """The media of a set by their position. ``doubled``: a position that two have."""

    uuid: bytes
    members: dict[int, Medium]
    doubled: int | None = None

    @property
    def media(self) -> list[Medium]:
        return [self.members[number] for number in sorted(self.members)]

    @property
    def missing(self) -> list[int]:
        """Positions before the last one that no known medium has."""
        last = max(self.members, default=-1)
        return [number for number in range(min(last + 1, 100_000)) if number not in self.members]

    @property
    def start(self) -> int | None:
        """When its first medium joined it; None where that is not known."""
        first = self.members.get(0)
        return None if first is None or first.in_set is None else first.in_set.time

    @property
    def pool(self) -> str | None:
        return next((medium.pool for medium in self.members.values()), None)

    @property
    def last(self) -> Medium | None:
        return self.members[max(self.members)] if self.members else None


@dataclass(slots=True)
class Inventory:
    """The media by their uuid, as they were when it was loaded."""

    media: dict[bytes, Medium] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Medium]:
        return iter(self.media.values())

    def get(self, uuid: bytes) -> Medium:
        """Raises NotFound."""
        found = self.media.get(uuid)
        if found is None:
            raise NotFound(f"there is no medium {encode_uuid(uuid)}", hint="see: archiver tape media list")
        return found

    def find(self, text: str) -> Medium:
        """By label text, or by uuid. Raises NotFound, UsageError where two have that label."""
        try:
            uuid = decode_uuid(text, "uuid")
        except FormatError:
            uuid = None
        if uuid is not None and uuid in self.media:
            return self.media[uuid]
        found = self.labelled(text)
        if found is None:
            raise NotFound(f"there is no medium {text}", hint="see: archiver tape media list")
        return found

    def labelled(self, text: str) -> Medium | None:
        """The medium with that label text. Raises UsageError where there are two."""
        found = [medium for medium in self if medium.name == text]
        if len(found) > 1:
            raise UsageError(
                f"{len(found)} media have the label {text}", hint="name it by its uuid: archiver tape media list"
            )
        return found[0] if found else None

    def of_pool(self, pool: str | None) -> list[Medium]:
        return [medium for medium in self if medium.pool == pool]

    def media_set(self, uuid: bytes) -> MediaSet:
        """The set with its members that are known; an empty one where none is."""
        members: dict[int, Medium] = {}
        doubled = None
        for medium in self:
            place = medium.in_set
            if place is None or place.uuid != uuid:
                continue
            if place.seq_nr in members:
                doubled = place.seq_nr
            members.setdefault(place.seq_nr, medium)
        return MediaSet(uuid, members, doubled)

    def sets(self, pool: str | None = None) -> list[MediaSet]:
        """All sets, or those of a pool, the oldest first."""
        uuids = {
            medium.in_set.uuid for medium in self if medium.in_set is not None and pool in (None, medium.in_set.pool)
        }
        found = [self.media_set(uuid) for uuid in uuids]
        return sorted(found, key=lambda each: (each.start if each.start is not None else -1, each.uuid))

    def latest_set(self, pool: str) -> MediaSet | None:
        """The set that was written last; None where two were at the same time (spec tape.md 6.5)."""
        newest: dict[int, set[bytes]] = {}
        for medium in self:
            if medium.in_set is not None and medium.in_set.pool == pool:
                newest.setdefault(medium.in_set.time, set()).add(medium.in_set.uuid)
        if not newest:
            return None
        uuids = newest[max(newest)]
        return self.media_set(uuids.pop()) if len(uuids) == 1 else None

    # -- changes: to the value only; see InventoryFile.change ---------------------------------------------------------

    def put(self, medium: Medium) -> None:
        self.media[medium.uuid] = medium

    def store_labels(self, label: MediaLabel, set_label: MediaSetLabel | None, *, keep_status: bool) -> Medium:
        """What was read from a medium, or written on it."""
        old = self.media.get(label.uuid)
        if set_label is None and old is not None and old.set_label is not None and old.in_set is None:
            set_label = old.set_label
        if set_label is not None:
            set_label = replace(set_label, key=None)
        medium = Medium(label, set_label)
        if old is not None:
            medium = replace(medium, location=old.location, bytes_used=old.bytes_used)
            if keep_status:
                medium = replace(medium, status=old.status)
        self.put(medium)
        return medium

    def update_online(self, changer: str, labels: Iterable[str] | None, known: Iterable[str]) -> None:
        """``labels`` are what the library or virtual drive ``changer`` says that it has, None where it could not be
        asked; ``known``: the names of all that are configured (spec tape.md 6.3)."""
        present = None if labels is None else set(labels)
        names = set(known) | {changer}
        for medium in list(self):
            where = medium.location
            if present is not None and medium.name in present:
                self.put(replace(medium, location=Location("online", changer)))
            elif where.kind == "online" and (
                (where.name == changer and present is not None) or where.name not in names
            ):
                self.put(replace(medium, location=OFFLINE))


class InventoryFile:
    """The inventory of a place. Every change is: lock, read again, change, replace durably."""

    def __init__(self, place: TapePlace) -> None:
        self._place = place

    def load(self) -> Inventory:
        """Raises Damaged."""
        return decode_inventory(self._place, FILE)

    def change(self, work: Callable[[Inventory], T]) -> T:
        """What ``work`` returns, which is given the inventory as it is now; nothing is written when it raises."""
        with self._place.lock("inventory", "the inventory of tapes"):
            inventory = self.load()
            before = dict(inventory.media)
            result = work(inventory)
            if inventory.media != before:
                entries = [inventory.media[uuid].as_json() for uuid in sorted(inventory.media)]
                self._place.write_json(FILE, entries)
        return result

    def check_new_label(self, text: str) -> None:
        """Raises UsageError where a medium has it."""
        if any(medium.name == text for medium in self.load()):
            raise UsageError(f"there is a medium {text} already", hint="choose another label text")


def decode_inventory(place: TapePlace, name: str) -> Inventory:
    """The inventory in the file ``name``, one of a PBS too. Raises Damaged."""
    entries = place.read_json(name, _HINT)
    if entries is None:
        return Inventory()
    if not isinstance(entries, list):
        raise place.damaged(name, "it is no list of media", _HINT)
    inventory = Inventory()
    for entry in entries:
        try:
            medium = Medium.from_json(entry)
        except (FormatError, ArchiverError) as error:
            raise place.damaged(name, str(error)[:200], _HINT) from error
        if medium.uuid in inventory.media:
            raise place.damaged(name, f"it has the medium {encode_uuid(medium.uuid)} twice", _HINT)
        inventory.put(medium)
    return inventory
