"""A tape library whose robot the program ``mtx`` moves (spec tape.md 5.1, 5.2).

What ``mtx status`` prints, of which every other line is passed over:

    Storage Changer /dev/sg2:1 Drives, 7 Slots ( 1 Import/Export )
    Data Transfer Element 0:Full (Storage Element 1 Loaded):VolumeTag = T00001L8
          Storage Element 1:Empty
          Storage Element 2:Full :VolumeTag=T00002L8
          Storage Element 7 IMPORT/EXPORT:Empty

Slots are numbered from 1, drives from 0. A medium without a readable barcode has no label, and is never moved.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from archiver.core.clock import Clock
from archiver.errors import ArchiverError, Locked, NotFound, TargetAbsent, UsageError
from archiver.tape.drive.interface import Drive, NoMedium
from formats.errors import FormatError
from formats.naming import check_media_name

NO_BARCODE = "--FULL--"
CLEANING = "CLN"  # what labels of cleaning media begin with

_STATUS_SECONDS = 300.0
_MOVE_SECONDS = 45 * 60.0
_LOAD_SECONDS = 600.0  # until a medium that was put in can be read
_RETRY_SECONDS = 5.0
_LARGEST_OUTPUT = 4 << 20
_MOST_ELEMENTS = 1 << 16
_DRIVE = re.compile(
    r"\s*Data Transfer Element (\d{1,5}):(Empty|Full)(?: \((?:Storage Element (\d{1,5})|[^()]{0,60}) Loaded\))?(.*)"
)
_SLOT = re.compile(r"\s*Storage Element (\d{1,5})( IMPORT/EXPORT)?:(Empty|Full)(.*)")
_TAG = re.compile(r"\s*:?\s*VolumeTag\s*=\s*([^\s:]+)\s*(?::.*)?")

Run = Callable[[Sequence[str], float], subprocess.CompletedProcess[bytes]]


@dataclass(frozen=True, slots=True)
class Element:
    """A drive, a slot or an import-export slot. ``source``: the slot that a drive's medium came from."""

    kind: Literal["drive", "slot", "import-export"]
    number: int
    is_full: bool
    label: str | None
    source: int | None = None

    def as_json(self) -> dict[str, str | int | None]:
        return {
            "entry-kind": self.kind,
            "entry-id": self.number,
            "label-text": self.label if self.label or not self.is_full else NO_BARCODE,
            "loaded-slot": self.source,
        }


def parse_status(text: str, export_slots: Sequence[int] = ()) -> list[Element]:
    """Drives first, then slots, in the order of their numbers. An element that is named twice is as it was first said
    to be."""
    found: dict[tuple[bool, int], Element] = {}
    for element in _elements(text, frozenset(export_slots)):
        found.setdefault((element.kind != "drive", element.number), element)
        if len(found) > _MOST_ELEMENTS:
            break
    return [element for _, element in sorted(found.items(), key=lambda item: item[0])]


def labels_at_hand(elements: Sequence[Element]) -> list[str]:
    """Of media that the robot can load, sorted."""
    return sorted({e.label for e in elements if e.label and e.kind != "import-export" and not _cleans(e.label)})


class MtxChanger:
    """A changer of the interface, for one drive of the library."""

    def __init__(
        self,
        name: str,
        path: str,
        drive_number: int,
        drive: Drive,
        export_slots: Sequence[int] = (),
        *,
        run: Run | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``path``: the /dev/sg* of the robot. ``export_slots``: ordinary slots that are used as import-export ones."""
        self._name = name
        self._drive = drive
        self._number = drive_number
        self._library = Library(path, export_slots, run=run, clock=clock, sleep=sleep)

    @property
    def name(self) -> str:
        return self._name

    def status(self) -> list[Element]:
        return self._library.status()

    def online(self) -> list[str] | None:
        return labels_at_hand(self._library.status())

    def load(self, label: str) -> None:
        """Returns when it can be read."""
        if _cleans(label):
            raise UsageError(f"{label} is a cleaning medium", hint="labels of media do not begin with CLN")
        elements = self._library.status()
        own, found = self._own(elements), self._found(elements, label)
        if found == own:
            return
        if found is None or found.kind == "import-export":
            where = "in an import-export slot" if found else "not there"
            raise NotFound(f"the medium {label} is {where} in {self._name}", hint="put it into a slot of the library")
        if found.kind == "drive":
            raise Locked(f"the medium {label} is in drive {found.number} of {self._name}")
        if own.is_full:
            self._unload(elements, own)
        self._library.move("load", found.number, self._number)
        if not self._drive.wait_until_ready(_LOAD_SECONDS):
            raise TargetAbsent(f"the medium {label} was loaded, and drive {self._drive.name} does not become ready")

    def unload(self) -> None:
        elements = self._library.status()
        own = self._own(elements)
        if own.is_full:
            self._unload(elements, own)

    def export(self, label: str) -> None:
        """A medium that is not in the library is exported already."""
        elements = self._library.status()
        found = self._found(elements, label)
        if found is None or found.kind == "import-export":
            return
        if found.kind == "drive" and found != self._own(elements):
            raise Locked(f"the medium {label} is in drive {found.number} of {self._name}")
        free = next((e for e in elements if e.kind == "import-export" and not e.is_full), None)
        if free is None:
            raise ArchiverError(
                f"{self._name} has no free import-export slot for {label}", hint="take the media out of those"
            )
        if found.kind == "slot":
            self._library.move("transfer", found.number, free.number)
        else:
            self._eject()
            self._library.move("unload", free.number, self._number)

    def _own(self, elements: list[Element]) -> Element:
        for element in elements:
            if element.kind == "drive" and element.number == self._number:
                return element
        raise TargetAbsent(f"{self._name} has no drive {self._number}", hint="see: archiver tape changer status")

    def _found(self, elements: list[Element], label: str) -> Element | None:
        found = [element for element in elements if element.label == label]
        if len(found) > 1:
            places = " and ".join(f"{element.kind} {element.number}" for element in found[:3])
            raise ArchiverError(f"{self._name} has {len(found)} media with the barcode {label}: in {places}")
        return found[0] if found else None

    def _unload(self, elements: list[Element], own: Element) -> None:
        """To where it came from if that is empty."""
        free = [element.number for element in elements if element.kind == "slot" and not element.is_full]
        if not free:
            raise ArchiverError(f"{self._name} has no free slot for the medium in its drive {self._number}")
        self._eject()
        self._library.move("unload", own.source if own.source in free else free[0], self._number)

    def _eject(self) -> None:
        """Some libraries only take what the drive lets go."""
        with suppress(NoMedium):
            self._drive.eject()


class Library:
    """The robot: what is where, and moving it."""

    def __init__(
        self,
        path: str,
        export_slots: Sequence[int] = (),
        *,
        run: Run | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = path
        self._export_slots = tuple(export_slots)
        self._run = run or _run
        self._clock = clock or Clock()
        self._sleep = sleep

    def status(self) -> list[Element]:
        """Waits for a library that is becoming ready. Raises TargetAbsent, ArchiverError."""
        end = self._clock.steady() + _STATUS_SECONDS
        while True:
            done = self._call(["status"], _STATUS_SECONDS)
            if done.returncode == 0:
                break
            if "Not Ready" not in _text(done.stderr) or self._clock.steady() >= end:
                raise self._failed(done, "tell what it holds")
            self._sleep(_RETRY_SECONDS)
        elements = parse_status(_text(done.stdout[:_LARGEST_OUTPUT]), self._export_slots)
        if not elements:
            raise ArchiverError(f"mtx says nothing of drives and slots of the library at {self.path}")
        return elements

    def move(self, command: Literal["load", "unload", "transfer"], slot: int, other: int) -> None:
        """``load`` and ``unload``: ``other`` is a drive. ``transfer``: it is the slot to move to."""
        done = self._call([command, str(slot), str(other)], _MOVE_SECONDS)
        if done.returncode:
            raise self._failed(done, f"{command} {slot} {other}")

    def _call(self, words: list[str], seconds: float) -> subprocess.CompletedProcess[bytes]:
        try:
            return self._run(["mtx", "-f", self.path, *words], seconds)
        except FileNotFoundError as error:
            raise ArchiverError("the program mtx is not installed", hint="apt install mtx") from error
        except subprocess.TimeoutExpired as error:
            raise ArchiverError(f"the library at {self.path} did not answer in {seconds:.0f} s") from error
        except OSError as error:
            raise ArchiverError(f"cannot run mtx: {error.strerror}") from error

    def _failed(self, done: subprocess.CompletedProcess[bytes], what: str) -> ArchiverError:
        said = _reason(_text(done.stderr)) or _reason(_text(done.stdout)) or f"exit code {done.returncode}"
        if "cannot open" in said:
            absent = "Permission denied" not in said
            hint = "is it switched on?" if absent else "the group of the node may use it, mostly tape"
            kind = TargetAbsent if absent else ArchiverError
            return kind(f"there is no library to be had at {self.path}: {said}", hint=hint)
        return ArchiverError(f"the library at {self.path} does not {what}: {said}")


def _elements(text: str, export_slots: frozenset[int]) -> Iterator[Element]:
    for line in text.splitlines():
        match = _DRIVE.fullmatch(line)
        if match is not None:
            source = int(match[3]) if match[3] else None
            is_full = match[2] == "Full"
            yield Element("drive", int(match[1]), is_full, _label(match[4]) if is_full else None, source)
            continue
        match = _SLOT.fullmatch(line)
        if match is not None:
            number, is_full = int(match[1]), match[3] == "Full"
            kind: Literal["slot", "import-export"] = "import-export" if match[2] or number in export_slots else "slot"
            yield Element(kind, number, is_full, _label(match[4]) if is_full else None)


def _label(rest: str) -> str | None:
    match = _TAG.fullmatch(rest)
    if match is None:
        return None
    try:
        check_media_name("label text", match[1])
    except FormatError:
        return None
    return match[1]


def _cleans(label: str) -> bool:
    return label.startswith(CLEANING)


def _text(data: bytes) -> str:
    return data.decode("ascii", "replace")


def _reason(said: str) -> str:
    """One short line of what a program said."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    chosen = next((line for line in lines if "Sense Key" in line or "cannot open" in line), lines[-1] if lines else "")
    return "".join(letter for letter in chosen if letter.isprintable())[:200]


def _run(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, env=environment, check=False
    )
