"""No changer: a person puts media in and takes them out (spec tape.md 5.3)."""

from __future__ import annotations

from archiver.tape.drive.interface import Drive, NoMedium


class PersonChanger:
    """A changer of the interface. Nothing is loaded here: ``request`` asks for a medium and looks whether it came."""

    def __init__(self, drive: Drive) -> None:
        self._drive = drive

    @property
    def name(self) -> str:
        return self._drive.name

    def online(self) -> list[str] | None:
        return None

    def load(self, label: str) -> None:
        """The person is asked elsewhere."""

    def unload(self) -> None:
        try:
            self._drive.eject()
        except NoMedium:
            pass

    def export(self, label: str) -> None:
        self.unload()
