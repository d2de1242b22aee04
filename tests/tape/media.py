"""Virtual media for tests: the golden ones laid out in a directory, and streams written and read."""

from __future__ import annotations

import json
from pathlib import Path

from archiver.tape.drive.interface import Drive
from formats.tape.blocks import BLOCK_SIZE, BlockReader, BlockWriter
from tests.formats.tape.media import members


def golden_media(name: str, place: Path) -> Path:
    """The directory of a golden set, as its drive left it."""
    place.mkdir(parents=True)
    start = f"tape-{name}/media/"
    for path, data in members(name).items():
        if path.startswith(start):
            (place / path.removeprefix(start)).write_bytes(data)
    return place


def golden_logs(name: str, place: Path) -> Path:
    """The catalogs that the host of a golden set had."""
    place.mkdir(parents=True, exist_ok=True)
    start = f"tape-{name}/catalogs/"
    for path, data in members(name).items():
        if path.startswith(start):
            (place / path.removeprefix(start)).write_bytes(data)
    return place


def contents(place: Path) -> dict[str, bytes]:
    """Every file of a directory of media but the lock, and where its drive stands."""
    return {
        file.name: file.read_bytes() for file in place.iterdir() if file.name not in (".drive.lck", "drive-status.json")
    }


def standing(place: Path) -> object:
    """What the drive's own file says."""
    return json.loads((place / "drive-status.json").read_bytes())["current_tape"]


def put_stream(drive: Drive, data: bytes, *, finish: bool = True) -> bool:
    """Write a file at the position; whether the end of the medium is near."""
    with drive.create_file() as file:
        writer = BlockWriter(file.write)
        writer.write(data)
        if finish:
            writer.finish()
            file.finish()
    return writer.near_end


def put_blocks(drive: Drive, data: bytes) -> None:
    with drive.create_file() as file:
        for start in range(0, len(data), BLOCK_SIZE):
            file.write(data[start : start + BLOCK_SIZE])
        file.finish()


def take_stream(drive: Drive) -> bytes:
    """Read the file at the position."""
    with drive.open_file() as file:
        reader = BlockReader(file.read_block)
        data = reader.read(1 << 30)
        assert reader.has_end_marker
        return data
