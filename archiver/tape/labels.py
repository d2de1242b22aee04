"""Labels on a medium: file 0 says which medium it is, file 1 to which set it belongs (spec tape.md 2.5)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from archiver.core.clock import Random, system_random
from archiver.errors import Damaged
from archiver.tape.drive.interface import Drive, EndOfData, MediumError
from archiver.tape.state.session import new_uuid
from formats.errors import FormatError
from formats.tape.blocks import BlockReader, BlockWriter
from formats.tape.content import Content, read_content
from formats.tape.labels import MEDIA_LABEL_FILE, MEDIA_SET_LABEL_FILE, MediaLabel, MediaSetLabel

T = TypeVar("T")

_FOREIGN = "a medium with other data is never overwritten; if it may be: archiver tape format"


class NotALabel(Damaged):
    """What is at the start of the medium is no label: it holds something else, or is damaged."""

    code = "no-label"


@dataclass(frozen=True, slots=True)
class Labels:
    """``set_label`` with its key, as it stands on the medium; None where the medium is in no set."""

    label: MediaLabel
    set_label: MediaSetLabel | None


def read_labels(drive: Drive) -> Labels | None:
    """None for an empty medium. Behind the last label that is there afterwards: at file 2 where the medium is in a set.
    Raises NoMedium, NotALabel, MediumError."""
    drive.locate(MEDIA_LABEL_FILE)
    try:
        label = _read(drive, "the first file", MediaLabel.decode)
    except EndOfData:
        return None
    if label is None:
        _check_nothing_behind(drive)
        return None
    try:
        set_label = _read(drive, "the second file", MediaSetLabel.decode)
    except EndOfData:
        return Labels(label, None)
    return Labels(label, set_label)


def _check_nothing_behind(drive: Drive) -> None:
    """A file mark at the start is all that some drives leave when they erase. Others wrote it before their data."""
    drive.locate(MEDIA_SET_LABEL_FILE)
    with suppress(EndOfData), drive.open_file():
        raise NotALabel(
            f"the first file of the medium in the drive {drive.name} is empty, and others are behind it",
            hint=_FOREIGN,
        )


def _read(drive: Drive, what: str, decode: Callable[[Content], T]) -> T | None:
    """A label; None where there is nothing but a file mark."""
    with drive.open_file() as file:
        stream = BlockReader(file.read_block)
        try:
            if stream.at_end() and not stream.blocks:
                return None
            label = decode(read_content(stream.read))
            if not stream.at_end():
                raise FormatError("something behind the JSON of a label")
            if not stream.has_end_marker:
                raise FormatError("the label is cut")
        except FormatError as error:
            raise NotALabel(
                f"{what} of the medium in the drive {drive.name} is no label: {error}",
                hint=_FOREIGN,
            ) from error
        return label


def write_label(drive: Drive, label: MediaLabel, now: int, random: Random = system_random) -> None:
    """File 0; whatever was on the medium is gone. Durable, and read back. Raises MediumError."""
    drive.locate(MEDIA_LABEL_FILE)
    _write(drive, label.content(new_uuid(random), now))
    found = read_labels(drive)
    if found is None or found.label != label:
        raise MediumError(f"the label of {label.label_text} is not read as it was written", hint="try another medium")


def write_set_label(drive: Drive, label: MediaSetLabel, now: int, random: Random = system_random) -> None:
    """File 1; whatever was behind it is gone. Durable; at file 2 afterwards."""
    drive.locate(MEDIA_SET_LABEL_FILE)
    _write(drive, label.content(new_uuid(random), now))


def _write(drive: Drive, content: Content) -> None:
    with drive.create_file() as file:
        blocks = BlockWriter(file.write)
        blocks.write(content.encode())
        blocks.finish()
        file.finish()
    drive.flush()
