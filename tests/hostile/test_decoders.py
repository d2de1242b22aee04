"""Every hostile archive is refused with a FormatError or gives a value, in bounded time and memory."""

from __future__ import annotations

from typing import Any

import pytest

from formats.errors import FormatError
from formats.pxar.accessor import Accessor
from formats.pxar.decoder import LEAVE, Decoder
from tests.hostile.build import HostileArchive, corpus
from tests.hostile.limits import outcome
from tests.hostile.streams import sample

ARCHIVES = corpus()
MANY = 300_000  # entries; no archive of the corpus has as many


class _Input:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read(self, length: int) -> bytes:
        data = self._data[self._at : self._at + length]
        self._at += len(data)
        return data

    def skip(self, length: int) -> None:
        self._at += length


def read_sequentially(archive: HostileArchive, *, contents: bool = True, payload: bool = True) -> list[Any]:
    """(kind, name, contents) of each entry."""
    stream = _Input(archive.payload) if payload and archive.payload is not None else None
    decoder = Decoder(_Input(archive.archive), stream)
    found = []
    for event in decoder:
        if event is LEAVE:
            continue
        data = []
        if contents and event.kind == "file" and (archive.version == 1 or stream is not None):
            while piece := decoder.read_content(65536):
                data.append(piece)
            assert sum(map(len, data)) == event.size
        found.append((event.kind, event.name, b"".join(data)))
    return found


def read_randomly(archive: HostileArchive) -> list[Any]:
    """The same through the goodbye tables."""
    streams = {"archive": archive.archive, "payload": archive.payload}
    readers: list[Any] = []
    for data in (archive.archive, archive.payload):
        if data is not None:
            readers += [lambda offset, length, data=data: data[offset : offset + length], len(data)]
    accessor = Accessor(*readers)
    found: list[tuple[str, bytes, bytes]] = []
    stack = [accessor.root]
    while stack:
        node = stack.pop()
        assert len(found) < MANY, "going in circles"
        content = b""
        if node.kind == "dir":
            stack += reversed(list(accessor.entries(node)))
        elif node.kind == "hardlink":
            assert accessor.follow_hardlink(node).kind == "file"
        elif node.kind == "file":
            name, offset, size = accessor.content(node)
            stream = streams[name]
            assert stream is not None
            assert 0 <= offset <= offset + size <= len(stream), "contents outside the stream"
            content = stream[offset : offset + size]
        found.append((node.kind, node.name, content))
    return found


@pytest.mark.parametrize("name", ARCHIVES)
def test_hostile_archive(name: str) -> None:
    archive = ARCHIVES[name]
    sequential = outcome(lambda: read_sequentially(archive))
    accessed = outcome(lambda: read_randomly(archive))
    outcome(lambda: read_sequentially(archive, contents=False))
    if archive.version == 2:
        outcome(lambda: read_sequentially(archive, payload=False))
    for reader, got in (("decoder", sequential), ("accessor", accessed)):
        if archive.refused_by in ("both", reader):
            assert isinstance(got, FormatError), f"{reader} gave {str(got)[:500]}"
    if not isinstance(sequential, FormatError) and not isinstance(accessed, FormatError):
        for found in (sequential, accessed):
            for _, entry, _ in found[1:]:
                assert entry not in (b"", b".", b"..")
                assert b"/" not in entry and b"\0" not in entry


def test_valid_archives_are_read() -> None:
    """What the hostile archives are made from is valid, so each is refused for the one thing that is wrong."""
    for version in (1, 2):
        w = sample(version)
        archive = HostileArchive(version, bytes(w.archive), bytes(w.payload) if version == 2 else None, "valid", "")
        sequential, accessed = read_sequentially(archive), read_randomly(archive)
        assert sorted(sequential) == sorted(accessed)
        assert {kind for kind, _, _ in sequential} == {"dir", "file", "hardlink", "symlink", "fifo", "socket", "char"}
        assert ("file", b"file", b"contents of a file") in sequential
        assert ("file", b"old", b"old style") in accessed
    deep = ARCHIVES["v1 nesting of 10,000 directories"]
    assert len(read_sequentially(deep)) == len(read_randomly(deep)) == 10_002
