"""A virtual drive is its own changer: all media of its directory are at hand (spec tape.md 3)."""

from __future__ import annotations

from archiver.tape.drive.interface import NoMedium
from archiver.tape.drive.virtual import VirtualDrive


class VirtualChanger:
    """A changer of the interface. There are no import-export slots: what is exported is just taken out."""

    def __init__(self, drive: VirtualDrive) -> None:
        self._drive = drive

    @property
    def name(self) -> str:
        return self._drive.name

    def online(self) -> list[str] | None:
        return self._drive.labels()

    def load(self, label: str) -> None:
        if self._drive.label != label:
            self._drive.load(label)

    def unload(self) -> None:
        try:
            self._drive.eject()
        except NoMedium:
            pass

    def export(self, label: str) -> None:
        if self._drive.label == label:
            self.unload()
