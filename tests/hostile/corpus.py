"""How hostile archives are collected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.hostile.writer import Writer

BOTH, DECODER, ACCESSOR, EITHER = "both", "decoder", "accessor", ""


class HostileArchive(NamedTuple):
    """``refused_by`` names the readers that must raise FormatError when everything, contents included, is read:
    ``both``, ``decoder`` (sequential), ``accessor`` (random); ``""`` when a value is as good (the harm, if any, is for
    a restore to prevent)."""

    version: int
    archive: bytes
    payload: bytes | None
    note: str
    refused_by: str


class Corpus(dict[str, HostileArchive]):
    """Archives by name, ``v1 ...`` and ``v2 ...``."""

    def add(self, version: int, note: str, refused_by: str, archive: bytes, payload: bytes) -> None:
        name = f"v{version} {note}"
        assert name not in self, name
        self[name] = HostileArchive(version, archive, payload if version == 2 else None, note, refused_by)

    def writers(self, note: str, refused_by: str, versions: tuple[int, ...] = (1, 2)) -> Iterator[Writer]:
        """For each version a writer inside the root directory; what the loop body leaves open is closed after it."""
        for version in versions:
            writer = Writer(version)
            writer.root()
            yield writer
            writer.finish()
            self.add(version, note, refused_by, bytes(writer.archive), bytes(writer.payload))
