"""Tape drives and changers of this machine, as the kernel lists them in sysfs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

SYSFS = "/sys"
_NAMES = "/dev/tape/by-id"
_CHANGER_TYPE = b"8"
_LONGEST = 256


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """``path`` is the one that stays the same when the machine starts anew, where there is such a one. ``generic``: the
    node for SCSI commands beside the kernel's driver."""

    kind: str  # "drive" or "changer"
    path: str
    generic: str | None
    vendor: str
    model: str
    serial: str

    def as_json(self) -> dict[str, str | None]:
        return {
            "kind": self.kind,
            "path": self.path,
            "generic": self.generic,
            "vendor": self.vendor,
            "model": self.model,
            "serial": self.serial,
        }


def find_drives(sysfs: str = SYSFS, names: str = _NAMES) -> list[FoundDevice]:
    """Those with a kernel tape node; sorted."""
    stable = _stable_names(names)
    found = []
    for name in _entries(f"{sysfs}/class/scsi_tape"):
        if name.startswith("nst") and name[3:].isdigit():
            node = f"/dev/{name}"
            found.append(_described("drive", stable.get(node, node), f"{sysfs}/class/scsi_tape/{name}/device"))
    return found


def find_changers(sysfs: str = SYSFS, names: str = _NAMES) -> list[FoundDevice]:
    """Those with a SCSI generic node, which ``mtx`` needs; sorted."""
    stable = _stable_names(names)
    found = []
    for name in _entries(f"{sysfs}/class/scsi_generic"):
        device = f"{sysfs}/class/scsi_generic/{name}/device"
        if _content(f"{device}/type").strip() == _CHANGER_TYPE:
            node = f"/dev/{name}"
            found.append(_described("changer", stable.get(node, node), device, node))
    return found


def generic_node(path: str, sysfs: str = SYSFS) -> str | None:
    """The /dev/sg* of the drive whose tape node is ``path``; None when the kernel's driver ``sg`` is not loaded."""
    return _generic_of(f"{sysfs}/class/scsi_tape/{os.path.basename(os.path.realpath(path))}/device")


def model_of(path: str, sysfs: str = SYSFS) -> str:
    """Vendor and model of the drive at a tape node, empty where they are not known."""
    device = f"{sysfs}/class/scsi_tape/{os.path.basename(os.path.realpath(path))}/device"
    return f"{_text(device, 'vendor')} {_text(device, 'model')}".strip()


def _described(kind: str, path: str, device: str, generic: str | None = None) -> FoundDevice:
    serial = _content(f"{device}/vpd_pg80")[4:]
    return FoundDevice(
        kind, path, generic or _generic_of(device), _text(device, "vendor"), _text(device, "model"), _printable(serial)
    )


def _generic_of(device: str) -> str | None:
    nodes = _entries(f"{device}/scsi_generic")
    return f"/dev/{nodes[0]}" if nodes else None


def _stable_names(names: str) -> dict[str, str]:
    """Node -> the link of udev to it."""
    return {os.path.realpath(f"{names}/{name}"): f"{names}/{name}" for name in reversed(_entries(names))}


def _entries(directory: str) -> list[str]:
    with suppress(OSError):
        return sorted(os.listdir(directory), key=_by_number)
    return []


def _by_number(name: str) -> tuple[str, int]:
    letters = name.rstrip("0123456789")
    digits = name[len(letters) :]
    return letters, int(digits) if digits else -1


def _text(device: str, name: str) -> str:
    return _printable(_content(f"{device}/{name}"))


def _content(path: str) -> bytes:
    with suppress(OSError), open(path, "rb") as file:
        return file.read(_LONGEST)
    return b""


def _printable(data: bytes) -> str:
    return "".join(_characters(data)).strip()


def _characters(data: bytes) -> Iterator[str]:
    return (chr(code) for code in data if 32 <= code < 127)
