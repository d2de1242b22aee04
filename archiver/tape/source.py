"""Single chunks from media, for whoever has lost them: only the files that hold them are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from archiver.core.events import Listener, Notice
from archiver.errors import Damaged, TargetAbsent
from archiver.store.digests import distinct_digests
from archiver.tape.drive.interface import EndOfData
from archiver.tape.members import Loader, SetCatalog
from archiver.tape.reading import only, opened
from formats.tape.chunk_archive import StoredChunk


class _Place(NamedTuple):
    position: int
    file: int


class ChunksOnMedia:
    """Of one media set."""

    def __init__(self, catalog: SetCatalog, media: Loader, listener: Listener) -> None:
        self._catalog, self._media, self._listener = catalog, media, listener

    def find(self, digests: Sequence[bytes]) -> Iterator[StoredChunk]:
        """Those that are to be had, of whichever source store; nothing of them was checked."""
        if not digests:
            return
        unique = distinct_digests(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32))
        wanted: dict[_Place, set[bytes]] = {}
        for store in sorted({place.store for place in self._catalog.snapshots()}):
            positions, files = self._catalog.find_chunks(store, unique)
            for row, position, file in zip(unique, positions.tolist(), files.tolist(), strict=True):
                if position >= 0:
                    wanted.setdefault(_Place(position, file), set()).add(row.tobytes())
        members = {member.seq_nr: member for member in self._catalog.members}
        absent: set[int] = set()
        for place in sorted(wanted):
            if place.position in absent:
                continue
            try:
                drive = self._media.load(members[place.position])
                with opened(drive, members[place.position].label, place.file) as file:
                    if file.is_empty or file.content.kind != "chunk archive":
                        continue
                    yield from only(file, wanted[place])
            except EndOfData:
                continue
            except TargetAbsent as error:
                absent.add(place.position)
                self._listener(Notice(str(error), "warning"))
            except Damaged as error:
                self._listener(Notice(str(error), "warning"))
