"""Which entries of an archive something was said about: one bit each, however many there are."""

from __future__ import annotations

import threading


class Marks:
    """A set of entry numbers. Usable from several threads."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._lock = threading.Lock()

    def add(self, number: int) -> None:
        place, bit = divmod(number, 8)
        with self._lock:
            if place >= len(self._bits):
                self._bits.extend(bytes(place + 1 - len(self._bits)))
            self._bits[place] |= 1 << bit

    def __contains__(self, number: int) -> bool:
        place, bit = divmod(number, 8)
        return place < len(self._bits) and bool(self._bits[place] >> bit & 1)
