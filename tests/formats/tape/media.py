"""Golden media: the directories of virtual tape drives, and what is in them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from formats.tape.blocks import BLOCK_SIZE, BlockReader
from tests.golden_data import GOLDEN

SETS = ("single", "multi")


class TapeFile(NamedTuple):
    """A file of a medium: its raw blocks, and what the golden data says of it."""

    label: str
    number: int
    data: bytes
    said: dict[str, Any]

    def stream(self) -> BlockReader:
        return reader(self.data)


def reader(data: bytes) -> BlockReader:
    """A stream over the blocks in ``data``; a file mark behind them."""
    blocks = iter([data[start : start + BLOCK_SIZE] for start in range(0, len(data), BLOCK_SIZE)])
    return BlockReader(lambda: next(blocks, None))


@cache
def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"tape/{name}.json").read_bytes())
    return found


@cache
def members(name: str) -> dict[str, bytes]:
    with tarfile.open(GOLDEN / f"tape/{name}.tar.gz") as tar:
        found = {}
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                found[member.name] = file.read()
        return found


def files(name: str) -> list[TapeFile]:
    """All files of the set, medium by medium."""
    return list(_files(name))


def _files(name: str) -> Iterator[TapeFile]:
    for said in document(name)["dump"]:
        path = f"tape-{name}/media/tapefile-{said['file']}-{said['label']}.json"
        yield TapeFile(said["label"], said["file"], members(name)[path], said)


def logs(name: str) -> dict[str, bytes]:
    """The catalogs that the host keeps, by the names of their files."""
    start = f"tape-{name}/catalogs/"
    return {path.removeprefix(start): data for path, data in members(name).items() if path.startswith(start)}


def all_files() -> list[TapeFile]:
    return [file for name in SETS for file in files(name)]
