"""The media of a set, and what their catalogs say: what a restore asks, whoever keeps the answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from archiver.tape.drive.interface import Drive
from archiver.tape.media_sets.media_sets import SnapshotPlace
from formats.tape.catalog import Digests, MediaCatalog

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Member:
    """A medium of a set: its place there, its uuid, its label text."""

    seq_nr: int
    uuid: bytes
    label: str


class SetCatalog(Protocol):
    """What is known of one media set."""

    @property
    def uuid(self) -> bytes: ...

    @property
    def members(self) -> list[Member]:
        """In the order of the set; one that is not known is left out."""
        ...

    @property
    def holes(self) -> list[int]:
        """Places in the set of which no medium is known."""
        ...

    def log(self, member: Member) -> MediaCatalog | None:
        """The catalog of a medium; None when there is none."""
        ...

    def snapshots(self) -> Iterable[SnapshotPlace]:
        """Every catalogued snapshot, in the order in which they were written."""
        ...

    def find_chunks(self, store: str, digests: Digests) -> tuple[Numbers, Numbers]:
        """Place of the medium and number of the file of each chunk, best sorted; -1 where none is known to hold it."""
        ...


class Loader(Protocol):
    """Brings media into a drive."""

    def load(self, member: Member) -> Drive:
        """The drive with that medium in it, its labels checked. Raises TargetAbsent when it cannot be had."""
        ...
