"""A loader for restores and backups: media are requested, and what comes is the medium of that set or nothing."""

from __future__ import annotations

import time

from archiver.core.clock import Clock
from archiver.core.events import Listener
from archiver.tape.access import Access
from archiver.tape.drive.interface import Drive
from archiver.tape.keys import TapeKeys, use_key
from archiver.tape.labels import Labels
from archiver.tape.members import Member
from archiver.tape.request import Pause, WrongMedium, request_medium
from archiver.tape.state.inventory import InventoryFile
from formats.tape.labels import NO_SET, MediaSetLabel


def set_of(labels: Labels | None) -> MediaSetLabel | None:
    """The set that a medium is in; None for one that is empty, also where it is kept for a pool."""
    found = None if labels is None else labels.set_label
    return None if found is None or found.uuid == NO_SET else found


class RequestedMedia:
    """A loader of a drive. For reading: ``media_set`` is the set that the media have to be of, and ``keys`` has what
    the drive decrypts with; a writer looks after both itself."""

    def __init__(
        self,
        access: Access,
        listener: Listener,
        *,
        media_set: bytes | None = None,
        keys: TapeKeys | None = None,
        wait_seconds: float = 0.0,
        pause: Pause = time.sleep,
        clock: Clock | None = None,
    ) -> None:
        self._access, self._listener = access, listener
        self._media_set, self._keys = media_set, keys
        self._wait_seconds, self._pause, self._clock = wait_seconds, pause, clock

    def load(self, member: Member) -> Drive:
        medium = InventoryFile(self._access.place).load().get(member.uuid)
        labels = request_medium(
            self._access,
            medium,
            self._listener,
            wait_seconds=self._wait_seconds,
            pause=self._pause,
            clock=self._clock,
        )
        place = set_of(labels)
        if self._media_set is not None and (
            place is None or (place.uuid, place.seq_nr) != (self._media_set, member.seq_nr)
        ):
            raise WrongMedium(
                f"the medium {member.label} was written over: it is not number {member.seq_nr} of this set any more",
                hint="read its labels again: archiver tape inventory --read-all-labels",
            )
        if self._keys is not None:
            use_key(self._access.drive, place, self._keys)
        return self._access.drive
