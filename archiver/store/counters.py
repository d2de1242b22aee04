"""The numbers of one archive of a run, counted in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Counters:
    """Chunks and bytes of one archive (or a sum of several).

    ``size`` is the logical stream, ``new_bytes`` the plain size of chunks that were not in the store, ``stored_bytes``
    what these take on disk, ``reused_*`` chunks put into the index without reading their files, ``padding_bytes`` the
    part of the stream that no file refers to.
    """

    size: int = 0
    chunks: int = 0
    new_chunks: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0
    reused_chunks: int = 0
    reused_bytes: int = 0
    padding_bytes: int = 0

    def add(self, other: Counters) -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def as_dict(self) -> dict[str, int]:
        return asdict(self)
