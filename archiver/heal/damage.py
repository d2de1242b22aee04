"""What a store has lost, where that is, and what could bring it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from archiver.browse.damage import DamagedFile
from archiver.store.layout import MANIFEST, SnapshotRef
from archiver.store.store import Store
from formats.manifest import FileInfo

Kind = Literal["identity", "manifest", "index", "blob", "chunk"]
Key = tuple[bytes, int, bool]  # of a chunk: digest, plain size, whether it is to be encrypted


class LostChunk(NamedTuple):
    """``with_key``: it is encrypted with the key at hand."""

    digest: bytes
    size: int
    encrypted: bool
    with_key: bool
    reason: str

    @property
    def key(self) -> Key:
        return self.digest, self.size, self.encrypted


@dataclass(frozen=True, slots=True)
class LostFile:
    """A file of a snapshot; its manifest when ``info`` is None. ``is_missing``: the snapshot looks unfinished."""

    ref: SnapshotRef
    info: FileInfo | None
    reason: str
    is_missing: bool = False

    @property
    def name(self) -> str:
        return MANIFEST if self.info is None else self.info.filename

    @property
    def kind(self) -> Kind:
        if self.info is None:
            return "manifest"
        return "blob" if self.name.endswith(".blob") else "index"


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes ``start`` to ``end`` of the stream behind a file of a snapshot, and the files whose contents they hold."""

    snapshot: str
    archive: str
    start: int
    end: int
    files: Sequence[DamagedFile] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "snapshot": self.snapshot,
            "archive": self.archive,
            "start": self.start,
            "end": self.end,
            "files": [file._asdict() for file in self.files],
        }


@dataclass(slots=True)
class Damage:
    """One thing that is lost. ``remedy``: from where it can be had again, None: from nowhere. ``size``: bytes of its
    contents, 0 where that is not known. ``places``: the first ones of very many."""

    kind: Kind
    name: str
    size: int
    reason: str
    remedy: str | None = None
    healed: bool = False
    place_count: int = 0
    places: list[Place] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "size": self.size,
            "reason": self.reason,
            "remedy": self.remedy,
            "healed": self.healed,
            "place_count": self.place_count,
            "places": [place.as_json() for place in self.places],
        }


@dataclass(slots=True)
class HealResult:
    """What became of a plan. ``states``: verify states that were written, by snapshot. ``removed_bad``: files of
    damaged chunks that had been set aside. ``unproven``: chunks put back of which only the CRC could be checked.
    ``failed``: why something could not be written."""

    removed_bad: int = 0
    unproven: set[Key] = field(default_factory=set)
    states: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0


def stored_path(store: Store, ref: SnapshotRef, name: str) -> str:
    return f"{store.layout.snapshot(ref)}/{name}"
