"""Drives and changers that a user has set up: ``drives.json`` (spec tape.md 3, 4, 5).

    {"schema": 1,
     "drives": [{"name", "kind": "virtual" | "st", "path", "max_size", "mount", "changer", "changer_drive", "generic"}],
     "changers": [{"name", "path", "export_slots"}]}

``mount``: the mount point that a virtual drive's directory lay on when it was set up, which must be one for the drive
to be there; so nothing is ever written into the bare directory of a disk that is not plugged in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from archiver.errors import NotFound, UsageError
from archiver.tape.state.place import SCHEMA, TapePlace
from formats.errors import FormatError
from formats.naming import check_media_name
from formats.tape.blocks import BLOCK_SIZE

_FILE = "drives.json"
_HINT = "mend it by hand, or remove it and set the drives up again: archiver tape drive add"
_LEAST_SIZE = 4 * BLOCK_SIZE
_LARGEST_NUMBER = 65535

Kind = Literal["virtual", "st"]
T = TypeVar("T", bound="DriveConfig | ChangerConfig")


@dataclass(frozen=True, slots=True)
class DriveConfig:
    """``path``: the directory, or the node (/dev/nst0). ``max_size``: bytes that a virtual medium holds, None for what
    its file system holds. ``changer``: what loads it, None for a person; a virtual drive has its own. ``generic``: the
    drive's /dev/sg node, None to find it."""

    name: str
    kind: Kind
    path: str
    max_size: int | None = None
    mount: str | None = None
    changer: str | None = None
    changer_drive: int = 0
    generic: str | None = None

    def check(self) -> None:
        """Raises UsageError."""
        _check_name("drive", self.name)
        _check_path(self.path)
        for node in (self.mount, self.generic):
            if node is not None:
                _check_path(node)
        if self.kind not in ("virtual", "st"):
            raise UsageError(f"{self.kind!r} is no kind of drive", hint="virtual or st")
        if self.kind == "virtual" and (self.changer is not None or self.generic is not None):
            raise UsageError("a virtual drive is its own changer", hint="leave out --changer and --generic")
        if self.kind == "st" and self.max_size is not None:
            raise UsageError("only virtual media have a size of their own", hint="leave out --max-size")
        if self.max_size is not None and self.max_size < _LEAST_SIZE:
            raise UsageError(f"a medium holds at least {_LEAST_SIZE >> 20} MiB")
        if not 0 <= self.changer_drive <= _LARGEST_NUMBER:
            raise UsageError("the number of a drive in its changer is 0 or more")

    def as_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class ChangerConfig:
    """``path``: its /dev/sg node. ``export_slots``: ordinary slots that are used as import-export slots."""

    name: str
    path: str
    export_slots: tuple[int, ...] = ()

    def check(self) -> None:
        """Raises UsageError."""
        _check_name("changer", self.name)
        _check_path(self.path)
        if any(not 1 <= slot <= _LARGEST_NUMBER for slot in self.export_slots):
            raise UsageError("slots are numbered from 1")

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "path": self.path, "export_slots": list(self.export_slots)}


def _check_name(what: str, name: str) -> None:
    try:
        check_media_name(f"name of a {what}", name)
    except FormatError as error:
        raise UsageError(str(error)) from error


def _check_path(path: str) -> None:
    try:
        is_path = os.fsencode(path).startswith(b"/") and "\0" not in path
    except UnicodeEncodeError:
        is_path = False
    if not is_path:
        raise UsageError(f"{path[:80]!r} is no absolute path")


@dataclass(frozen=True, slots=True)
class Configuration:
    drives: Mapping[str, DriveConfig]
    changers: Mapping[str, ChangerConfig]

    def drive(self, name: str) -> DriveConfig:
        """Raises NotFound."""
        found = self.drives.get(name)
        if found is None:
            raise NotFound(f"there is no drive {name}", hint="see: archiver tape drive list")
        return found

    def changer(self, name: str) -> ChangerConfig:
        """Raises NotFound."""
        found = self.changers.get(name)
        if found is None:
            raise NotFound(f"there is no changer {name}", hint="see: archiver tape changer list")
        return found

    def chosen(self, name: str | None) -> DriveConfig:
        """The drive of that name, or the only one. Raises NotFound, UsageError."""
        if name is not None:
            return self.drive(name)
        if not self.drives:
            raise NotFound(
                "there is no tape drive",
                hint="set one up: archiver tape drive add NAME --path DIR (a directory on an attached disk)",
            )
        if len(self.drives) > 1:
            raise UsageError(
                f"there are {len(self.drives)} drives: {', '.join(self.drives)}",
                hint="choose one with --drive, or ARCHIVER_TAPE_DRIVE",
            )
        return next(iter(self.drives.values()))

    @property
    def libraries(self) -> list[str]:
        """Names that a medium can be online in: of changers, and of virtual drives."""
        return sorted([*self.changers, *(name for name, drive in self.drives.items() if drive.kind == "virtual")])


class Drives:
    """The drives and changers of a place."""

    def __init__(self, place: TapePlace) -> None:
        self._place = place

    def load(self) -> Configuration:
        """Raises Damaged."""
        document = self._place.read_document(_FILE, _HINT)
        return Configuration(
            self._section(document, "drives", DriveConfig), self._section(document, "changers", ChangerConfig)
        )

    def _section(self, document: dict[str, Any], section: str, kind: type[T]) -> dict[str, T]:
        found: dict[str, T] = {}
        entries = document.get(section, [])
        if not isinstance(entries, list):
            raise self._place.damaged(_FILE, f"{section} is no list", _HINT)
        for members in entries:
            try:
                entry = kind(
                    **{field.name: _value(members, field.name) for field in fields(kind) if field.name in members}
                )
                entry.check()
            except (UsageError, TypeError, AttributeError, ValueError) as error:
                raise self._place.damaged(
                    _FILE, f"an entry in {section} is wrong: {str(error)[:200]}", _HINT
                ) from error
            found[entry.name] = entry
        return dict(sorted(found.items()))

    def check_new(self, drive: DriveConfig) -> None:
        """Raises UsageError where it is wrong or its name is taken, NotFound where its changer is not there."""
        drive.check()
        now = self.load()
        _check_new(drive, now.drives, now.changers)

    def add_drive(self, drive: DriveConfig) -> None:
        """Raises as ``check_new``."""
        drive.check()

        def add(drives: dict[str, DriveConfig], changers: dict[str, ChangerConfig]) -> None:
            _check_new(drive, drives, changers)
            drives[drive.name] = drive

        self._change(add)

    def remove_drive(self, name: str) -> None:
        def drop(drives: dict[str, DriveConfig], changers: dict[str, ChangerConfig]) -> None:
            if drives.pop(name, None) is None:
                raise NotFound(f"there is no drive {name}", hint="see: archiver tape drive list")

        self._change(drop)

    def add_changer(self, changer: ChangerConfig) -> None:
        changer.check()

        def add(drives: dict[str, DriveConfig], changers: dict[str, ChangerConfig]) -> None:
            if changer.name in drives or changer.name in changers:
                raise UsageError(f"there is a drive or changer {changer.name} already", hint="choose another name")
            changers[changer.name] = changer

        self._change(add)

    def remove_changer(self, name: str) -> None:
        def drop(drives: dict[str, DriveConfig], changers: dict[str, ChangerConfig]) -> None:
            used = [drive.name for drive in drives.values() if drive.changer == name]
            if used:
                raise UsageError(f"the changer {name} loads the drive {used[0]}", hint="remove the drive first")
            if changers.pop(name, None) is None:
                raise NotFound(f"there is no changer {name}", hint="see: archiver tape changer list")

        self._change(drop)

    def _change(self, work: Callable[[dict[str, DriveConfig], dict[str, ChangerConfig]], None]) -> None:
        with self._place.lock("config", "the tape configuration"):
            now = self.load()
            drives, changers = dict(now.drives), dict(now.changers)
            work(drives, changers)
            document = {
                "schema": SCHEMA,
                "drives": [drives[name].as_json() for name in sorted(drives)],
                "changers": [changers[name].as_json() for name in sorted(changers)],
            }
            self._place.write_json(_FILE, document)


def _check_new(drive: DriveConfig, drives: Mapping[str, DriveConfig], changers: Mapping[str, ChangerConfig]) -> None:
    if drive.name in drives or drive.name in changers:
        raise UsageError(f"there is a drive or changer {drive.name} already", hint="choose another name")
    if drive.changer is not None and drive.changer not in changers:
        raise NotFound(f"there is no changer {drive.changer}", hint="see: archiver tape changer list")


_NUMBERS = ("max_size", "changer_drive")


def _value(members: dict[str, Any], name: str) -> Any:
    value = members[name]
    if name == "export_slots":
        if not isinstance(value, list) or not all(type(slot) is int for slot in value):
            raise ValueError("export_slots is no list of numbers")
        return tuple(value)
    kind = int if name in _NUMBERS else str
    if value is not None and type(value) is not kind:
        raise ValueError(f"{name} has another type")
    if value is None and name in ("name", "kind", "path", "changer_drive"):
        raise ValueError(f"{name} is missing")
    return value


def mount_of(path: str) -> str | None:
    """The mount point that ``path`` is or would be on; None for the root file system, which is always there."""
    place = os.path.realpath(path)
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    return None if place == "/" else place
