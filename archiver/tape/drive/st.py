"""A real tape drive through the kernel's driver ``st``: /dev/nst* (spec tape.md 4.7).

The bytes on a medium are the same as those of a virtual drive; here a file mark is a file mark. What the driver does
that one would not expect, each of it seen on one:

* what it says of position and write protection is of the time the node was opened, or of what it counted since: a
  medium that was changed is seen only by opening the node again, and every opening is followed by a rewind;
* the block that meets the early warning comes back as written or as ENOSPC, and is on the medium either way; the next
  one is refused once, and written when it is tried again. Where the drive is tells which is the case;
* the end of the recorded data is a read of 0 bytes as a file mark is, or a buffer full of rubbish: flags tell;
* a blank medium gives EIO, or zeros;
* a node that is closed behind a write gets a file mark.

Beside it the drive is spoken to by SCSI commands (``sg``) where the machine has the node for them: encryption, alerts,
how full the medium is.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from archiver.core.clock import Clock
from archiver.errors import ArchiverError, Locked, TargetAbsent, UsageError
from archiver.tape.drive import mtio
from archiver.tape.drive.interface import DriveStatus, FileReader, FileWriter, MediumError, NoMedium
from archiver.tape.drive.mtio import Kernel, TapeNode, TapeState
from archiver.tape.drive.scan import SYSFS, generic_node, model_of
from archiver.tape.drive.sg import ALERTS, CRITICAL, WRITE_PROTECT, Generic, VolumeStatistics
from archiver.tape.drive.st_files import StReader, StWriter
from archiver.tape.drive.st_medium import StMedium

DENSITIES = {
    0x40: "LTO-1",
    0x42: "LTO-2",
    0x44: "LTO-3",
    0x46: "LTO-4",
    0x58: "LTO-5",
    0x5A: "LTO-6",
    0x5C: "LTO-7",
    0x5D: "LTO-7 M8",
    0x5E: "LTO-8",
    0x60: "LTO-9",
}
_POLL_SECONDS = 1.0
_ABSENT = {errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOTDIR}
_FORBIDDEN = {errno.EACCES, errno.EPERM}
_TAPE_MAJOR = 9
_NO_REWIND = 0x80  # bit of the minor number: the node does not rewind when it is closed


class StDrive:
    """A drive of the interface. A medium that was put in, by whomever, is taken note of by ``wait_until_ready``."""

    def __init__(
        self,
        name: str,
        path: str,
        *,
        generic: str | None = None,
        kernel: Kernel | None = None,
        sysfs: str = SYSFS,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``generic``: the /dev/sg* of the same drive; without it sysfs is asked. Raises TargetAbsent, Locked,
        UsageError where ``path`` is no such node."""
        self._name = name
        self.path = path
        self._kernel = kernel or Kernel()
        self._clock = clock or Clock()
        self._sleep = sleep
        self._model = model_of(path, sysfs)
        self._generic_path = generic or generic_node(path, sysfs)
        self._generic: Generic | None = None
        self._encrypts: bool | None = None
        self._has_key = False
        self._was_changed = False
        if kernel is None:
            _check_node(path)
        self._medium = self._opened()
        with suppress(NoMedium, MediumError):  # the next call tells
            self._medium.begin()

    @property
    def name(self) -> str:
        return self._name

    @property
    def largest_file(self) -> int | None:
        return None

    def close(self) -> None:
        if self._has_key:
            with suppress(ArchiverError):
                self.set_key(None)
        if self._generic is not None:
            self._generic.close()
            self._generic = None
        self._medium.node.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the medium --------------------------------------------------------------------------------------------------

    def status(self) -> DriveStatus:
        if not self._medium.is_ready():
            self._open_again()
            with suppress(NoMedium, MediumError):
                self._medium.begin()
        state = self._medium.state()
        loaded = state.has(mtio.ONLINE)
        statistics = self._statistics() if loaded else VolumeStatistics(None, None)
        return DriveStatus(
            loaded=loaded,
            write_protected=loaded and self._medium.is_protected(),
            file=state.file if loaded else None,
            bytes_used=statistics.used,
            capacity=statistics.capacity,
            description=self._description(state, loaded),
        )

    def wait_until_ready(self, seconds: float) -> bool:
        """The medium is rewound then."""
        end = self._clock.steady() + seconds
        while True:
            self._open_again()
            with suppress(NoMedium, MediumError):
                self._medium.begin()
                return True
            left = end - self._clock.steady()
            if left <= 0:
                return False
            self._sleep(min(left, _POLL_SECONDS))

    def eject(self) -> None:
        self._ready().unload()

    def format(self, *, fast: bool) -> None:
        """Where a drive cannot erase, what is left is a file mark at the start: one empty file."""
        medium = self._ready()
        medium.check_writable()
        medium.erase(fast=fast)

    def alerts(self) -> list[int]:
        """Numbers of the tape alerts (``sg.ALERTS``) that are raised; empty when the drive has none to tell."""
        generic = self._beside()
        raised = generic.alerts() if generic is not None else None
        self._note_change()
        return raised or []

    def complaint(self) -> str | None:
        """Its critical alerts (spec tape.md 4.6). A write-protected medium is found out otherwise."""
        raised = [number for number in self.alerts() if number in CRITICAL and number != WRITE_PROTECT]
        return ", ".join(ALERTS[number] for number in raised) or None

    # -- positions and files -----------------------------------------------------------------------------------------

    def rewind(self) -> None:
        self._ready().rewind()

    def locate(self, file: int) -> None:
        self._ready().locate(file)

    def locate_end(self) -> int:
        return self._ready().locate_end()

    def open_file(self) -> FileReader:
        return StReader(self._ready())

    def create_file(self) -> FileWriter:
        medium = self._ready()
        medium.check_writable()
        return StWriter(medium)

    def flush(self) -> None:
        self._ready().flush()

    # -- encryption --------------------------------------------------------------------------------------------------

    @property
    def can_encrypt(self) -> bool:
        if self._encrypts is None:
            generic = self._beside()
            self._encrypts = generic is not None and generic.algorithm() is not None
            self._note_change()
        return self._encrypts

    def set_key(self, key: bytes | None) -> None:
        """To take the key away from a drive that has none is no failure."""
        if key is None and not self._has_key and not self.can_encrypt:
            return
        generic = self._beside()
        if generic is None:
            raise ArchiverError(
                f"drive {self._name} does not encrypt: it has no node for SCSI commands",
                hint="load the kernel's module sg, and let yourself read and write the node",
            )
        generic.set_key(key)
        self._has_key = key is not None
        self._note_change()

    # -- the node ----------------------------------------------------------------------------------------------------

    def _opened(self) -> StMedium:
        try:
            return StMedium(self._name, TapeNode(self.path, self._kernel))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Locked(f"drive {self._name} is in use by another process") from error
            if error.errno in _ABSENT:
                raise TargetAbsent(
                    f"there is no drive at {self.path}", hint="is it switched on? see: archiver tape drive scan"
                ) from error
            hint = "the group of the node may use it, mostly tape" if error.errno in _FORBIDDEN else None
            raise ArchiverError(f"cannot open the drive at {self.path}: {error.strerror}", hint=hint) from error

    def _open_again(self) -> None:
        self._medium.node.close()
        self._medium = self._opened()
        self._was_changed = False

    def _ready(self) -> StMedium:
        if self._was_changed:
            raise NoMedium(f"the medium in drive {self._name} was changed by somebody")
        if not self._medium.is_ready():
            self._open_again()
            self._medium.begin()
        return self._medium

    # -- beside the driver -------------------------------------------------------------------------------------------

    def _beside(self) -> Generic | None:
        if self._generic is None and self._generic_path is not None:
            try:
                self._generic = Generic(self._generic_path, self._kernel)
            except OSError:
                self._generic_path = None
        return self._generic

    def _note_change(self) -> None:
        """The drive tells of a changed medium only once. If it told us, the kernel's driver will never know."""
        if self._generic is not None and self._generic.saw_change:
            self._generic.saw_change = False
            self._was_changed = True

    def _statistics(self) -> VolumeStatistics:
        generic = self._beside()
        found = generic.volume_statistics() if generic is not None else VolumeStatistics(None, None)
        self._note_change()
        return found

    def _description(self, state: TapeState, loaded: bool) -> str:
        parts = [self._model or "tape drive"]
        if loaded and state.density in DENSITIES:
            parts.append(DENSITIES[state.density])
        if state.has(mtio.WANTS_CLEANING):
            parts.append("wants to be cleaned")
        raised = self.alerts() if loaded else []
        if raised:
            parts.append("alerts: " + ", ".join(ALERTS.get(number, str(number)) for number in raised))
        return "; ".join(parts)


def _check_node(path: str) -> None:
    """A node that rewinds when it is closed would have us write over the label."""
    try:
        status = os.stat(path)
    except OSError:
        return  # opening it tells why
    is_tape = stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) == _TAPE_MAJOR
    if not is_tape or not os.minor(status.st_rdev) & _NO_REWIND:
        raise UsageError(
            f"{path} is no node of a tape drive that does not rewind",
            hint="such as /dev/nst0: archiver tape drive scan",
        )
