"""SCSI commands to a tape drive beside its kernel driver, through /dev/sg* (spec tape.md 4.2, 4.5, 4.6): the encryption
key, tape alerts, how much is on the medium.

    set data encryption page                     algorithm descriptor (24 bytes each, behind 20 bytes of page header)
    0   be16  0010h                              0   u8    index
    2   be16  16, or 48 with a key               2   be16  0014h, length
    4   u8    40h: for all initiators            4   u8    bits 0-1 encrypt, 2-3 decrypt: 2 = by hardware
    6   u8    encryption: 2 on, 0 off            10  be16  key size
    7   u8    decryption: 3 mixed, 0 off         20  be32  00010014h: AES-256-GCM
    8   u8    index of the algorithm
    18  be16  32 or 0                            log parameter
    20        key                                0   be16  code;  2  u8 control;  3  u8 length;  4  value

Mixed: labels, which are never encrypted, stay readable. What a drive does not know is None or an empty answer.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Self

from archiver.errors import ArchiverError
from archiver.tape.drive.mtio import Kernel, ScsiAnswer

ALERTS = {
    1: "read warning",
    2: "write warning",
    3: "hard error",
    4: "media",
    5: "read failure",
    6: "write failure",
    7: "media life",
    8: "not data grade",
    9: "write protect",
    10: "no removal",
    11: "cleaning media",
    12: "unsupported format",
    13: "recoverable mechanical cartridge failure",
    14: "unrecoverable mechanical cartridge failure",
    15: "memory chip in cartridge failure",
    16: "forced eject",
    17: "read only format",
    18: "tape directory corrupted on load",
    19: "nearing media life",
    20: "clean now",
    21: "clean periodic",
    22: "expired cleaning media",
    23: "invalid cleaning tape",
    30: "hardware A",
    31: "hardware B",
    32: "interface",
    33: "eject media",
    34: "download failed",
    38: "predictive failure",
    41: "stray tape",
    45: "tape magazine",
    52: "system area write failure",
    53: "system area read failure",
    54: "no start of data",
    55: "loading failure",
    56: "unrecoverable unload failure",
    57: "automation interface failure",
}
CRITICAL = frozenset({4, 5, 6, 9, 14, 16, 22, 23, 30, 31, 33, 38, 41, 45, 52, 53, 54, 55, 56, 57})
WRITE_PROTECT = 9  # is critical to a PBS, and no damage

_SHORT_WAIT, _LONG_WAIT = 30.0, 60.0
_ANSWER_SIZE = 8192
_UNIT_ATTENTION = 6
_PAGE = struct.Struct(">HH")
_PARAMETER = struct.Struct(">HBB")
_SET_KEY = struct.Struct(">HHBBBBBB8xH")
_SECURITY_IN, _SECURITY_OUT, _LOG_SENSE, _INQUIRY = 0xA2, 0xB5, 0x4D, 0x12
_TAPE_ENCRYPTION = 0x20  # security protocol
_CAPABILITIES, _SET, _STATUS = 0x10, 0x10, 0x20
_ALERT_PAGE, _VOLUME_PAGE = 0x12, 0x17
_NATIVE_CAPACITY, _USED_CAPACITY = 0x16, 0x17  # parameters of the volume page, in units of 10^6 bytes
_ENCRYPT, _DECRYPT_MIXED, _OFF = 2, 3, 0
_AES_256_GCM = 0x00010014
_KEY_SIZE = 32
_FIRST_DESCRIPTOR, _DESCRIPTOR_SIZE = 20, 24


@dataclass(frozen=True, slots=True)
class VolumeStatistics:
    """Bytes, of what the drive stores after its own compression; None where it does not tell."""

    used: int | None
    capacity: int | None


class Generic:
    """An open SCSI generic node."""

    def __init__(self, path: str, kernel: Kernel) -> None:
        """Raises OSError."""
        self._path = path
        self._kernel = kernel
        self._fd = kernel.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.saw_change = False
        """Whether the drive said, since this was set to False, that its medium was changed or that it was reset."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._kernel.close(fd)

    def device_type(self) -> int | None:
        """1: a tape drive, 8: a changer."""
        data = self._ask(bytes((_INQUIRY, 0, 0, 0, 36, 0)), 36, _SHORT_WAIT)
        return data[0] & 0x1F if data else None

    def algorithm(self) -> int | None:
        """The index of AES-256-GCM by hardware; None where the drive does not encrypt."""
        page = self._page(self._security_in(_CAPABILITIES))
        for start in range(_FIRST_DESCRIPTOR, len(page) - _DESCRIPTOR_SIZE + 1, _DESCRIPTOR_SIZE):
            found = page[start : start + _DESCRIPTOR_SIZE]
            length, size = int.from_bytes(found[2:4], "big"), int.from_bytes(found[10:12], "big")
            by_hardware = found[4] & 3 == 2 and found[4] >> 2 & 3 == 2
            code = int.from_bytes(found[20:24], "big")
            if length == 0x14 and by_hardware and size == _KEY_SIZE and code == _AES_256_GCM:
                return found[0]
        return None

    def set_key(self, key: bytes | None) -> None:
        """Raises ArchiverError when the drive does not do what it is told."""
        index = self.algorithm()
        if index is None:
            raise ArchiverError(f"the drive at {self._path} does not encrypt", hint="use a pool without a key")
        length = _SET_KEY.size - 4 + (0 if key is None else _KEY_SIZE)
        modes = (_OFF, _OFF) if key is None else (_ENCRYPT, _DECRYPT_MIXED)
        page = _SET_KEY.pack(_SET, length, 0x40, 0, *modes, index, 0, 0 if key is None else _KEY_SIZE) + (key or b"")
        command = struct.pack(">BBHxxIxx", _SECURITY_OUT, _TAPE_ENCRYPTION, _SET, len(page))
        answer = self._command(command, send=page, receive=0, seconds=_LONG_WAIT)
        if answer is None or not answer.ok or self._modes() != modes:
            what = "forget its key" if key is None else "take the key"
            raise ArchiverError(f"the drive at {self._path} does not {what}", hint="its library may manage the keys")

    def alerts(self) -> list[int] | None:
        """Numbers of the flags that are raised, from 1; reading this page does not clear them."""
        value = self._log(_ALERT_PAGE).get(0)
        if value is None or len(value) < 8:
            return None
        # the first flag is the highest bit of the first byte
        return [number for number in range(1, 65) if value[(number - 1) // 8] >> (7 - (number - 1) % 8) & 1]

    def volume_statistics(self) -> VolumeStatistics:
        found = self._log(_VOLUME_PAGE)
        return VolumeStatistics(_megabytes(found.get(_USED_CAPACITY)), _megabytes(found.get(_NATIVE_CAPACITY)))

    def _modes(self) -> tuple[int, int] | None:
        page = self._page(self._security_in(_STATUS))
        return (page[5], page[6]) if len(page) > 6 else None

    def _security_in(self, page: int) -> bytes:
        command = struct.pack(">BBHxxIxx", _SECURITY_IN, _TAPE_ENCRYPTION, page, _ANSWER_SIZE)
        return self._ask(command, _ANSWER_SIZE, _LONG_WAIT)

    def _log(self, page: int) -> dict[int, bytes]:
        """The parameters of a log page."""
        command = struct.pack(">BBBxxxxHx", _LOG_SENSE, 0, 0x40 | page, _ANSWER_SIZE)
        data = self._page(self._ask(command, _ANSWER_SIZE, _LONG_WAIT))
        if not data or data[0] & 0x3F != page:
            return {}
        found, at = {}, _PAGE.size
        while at + _PARAMETER.size <= len(data):
            code, _, length = _PARAMETER.unpack_from(data, at)
            at += _PARAMETER.size
            found[code] = data[at : at + length]
            at += length
        return found

    def _page(self, data: bytes) -> bytes:
        """Cut at the length that the page itself gives: some drives send as much as they were asked for."""
        return data[: _PAGE.size + _PAGE.unpack_from(data)[1]] if len(data) >= _PAGE.size else b""

    def _ask(self, command: bytes, receive: int, seconds: float) -> bytes:
        answer = self._command(command, send=b"", receive=receive, seconds=seconds)
        return answer.data if answer is not None and answer.ok else b""

    def _command(self, command: bytes, *, send: bytes, receive: int, seconds: float) -> ScsiAnswer | None:
        """None when the transport failed. A drive whose medium was changed says so once, and does nothing else."""
        for _ in range(2):
            try:
                answer = self._kernel.scsi(self._fd, command, send=send, receive=receive, seconds=seconds)
            except OSError:
                return None
            if answer.ok or sense_key(answer.sense) != _UNIT_ATTENTION:
                break
            self.saw_change = True
        return answer


def sense_key(sense: bytes) -> int | None:
    """From both forms of sense data, fixed (70h, 71h) and descriptors (72h, 73h)."""
    if len(sense) > 2 and sense[0] & 0x7F in (0x70, 0x71):
        return sense[2] & 0xF
    if len(sense) > 1 and sense[0] & 0x7F in (0x72, 0x73):
        return sense[1] & 0xF
    return None


def _megabytes(value: bytes | None) -> int | None:
    """All ones: the drive does not know."""
    if not value or value.count(0xFF) == len(value):
        return None
    return int.from_bytes(value, "big") * 1_000_000
