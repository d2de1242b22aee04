"""A drive that a user has set up, opened, with what loads media into it."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from archiver.errors import ArchiverError, TargetAbsent
from archiver.tape.changer.mtx import Library, MtxChanger, labels_at_hand
from archiver.tape.changer.person import PersonChanger
from archiver.tape.changer.virtual import VirtualChanger
from archiver.tape.drive.interface import Changer, Drive
from archiver.tape.drive.st import StDrive
from archiver.tape.drive.virtual import VirtualDrive
from archiver.tape.drive.virtual_place import check_there, labels_in
from archiver.tape.state.drives import Configuration, DriveConfig, Drives
from archiver.tape.state.inventory import InventoryFile
from archiver.tape.state.place import TapePlace


@dataclass(slots=True)
class Access:
    """``library``: the name that media in its changer are online in; None where a person changes them."""

    place: TapePlace
    drive: Drive
    changer: Changer
    library: str | None
    _opened: ExitStack

    @property
    def name(self) -> str:
        return self.drive.name

    def update_online(self) -> list[str] | None:
        """Enter in the inventory which media are at hand; their labels, None where a person changes media."""
        labels = self.changer.online()
        if self.library is not None:
            update_online(self.place, self.library, labels)
        return labels

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def update_online(place: TapePlace, library: str, labels: list[str] | None) -> None:
    known = Drives(place).load().libraries
    InventoryFile(place).change(lambda inventory: inventory.update_online(library, labels, known))


def update_all_online(place: TapePlace) -> None:
    """The same for every library that can be asked without disturbing a drive. A virtual drive that is not plugged in
    has nothing; of a robot that does not answer nothing is known, and all stays as it was."""
    configuration = Drives(place).load()
    for config in configuration.drives.values():
        if config.kind == "virtual":
            try:
                check_there(config.path, config.mount)
                labels = labels_in(config.path)
            except TargetAbsent:
                labels = []
            update_online(place, config.name, labels)
    for robot in configuration.changers.values():
        with suppress(ArchiverError):
            update_online(place, robot.name, labels_at_hand(Library(robot.path, robot.export_slots).status()))


def open_access(place: TapePlace, name: str | None, *, wait_seconds: float = 10.0, new: bool = False) -> Access:
    """The drive ``name``, or the only one there is. ``new``: its directory is made on a disk that is there. Raises
    NotFound, UsageError, TargetAbsent, Locked."""
    configuration = Drives(place).load()
    config = configuration.chosen(name)
    opened = ExitStack()
    try:
        opened.enter_context(place.lock_drive(config.name, wait_seconds=wait_seconds))
        if config.kind == "virtual":
            virtual = VirtualDrive(
                config.name,
                config.path,
                max_size=config.max_size,
                mount=config.mount,
                new=new and config.mount is not None,
                wait_seconds=wait_seconds,
            )
            opened.callback(virtual.close)
            return Access(place, virtual, VirtualChanger(virtual), config.name, opened)
        return _open_real(place, configuration, config, opened)
    except BaseException:
        opened.close()
        raise


def _open_real(place: TapePlace, configuration: Configuration, config: DriveConfig, opened: ExitStack) -> Access:
    drive = StDrive(config.name, config.path, generic=config.generic)
    opened.callback(drive.close)
    if config.changer is None:
        return Access(place, drive, PersonChanger(drive), None, opened)
    robot = configuration.changer(config.changer)
    changer = MtxChanger(robot.name, robot.path, config.changer_drive, drive, robot.export_slots)
    return Access(place, drive, changer, robot.name, opened)
