"""The tape library: tgt as the target, the kernel's own iSCSI over loopback as its only client (spec tape.md 16)."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_HOME = Path("/tmp/library")
_TARGET = "iqn.2026-01.test:library"
_INITIATOR = "iqn.2026-01.test:initiator"
_SLOTS = 6
_FIRST_SLOT = 1024
_CHANGER_TYPE = "8"
_WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Library:
    """Nodes of the only drive, and of the robot."""

    drive: str
    changer: str

    def protect(self, protected: bool) -> None:
        """The switch on the cartridge in the drive."""
        _admin("--mode logicalunit --op update --tid 1 --lun 1 --params", f"readonly={int(protected)}")


def start(tapes: dict[str, int]) -> Library:
    """``tapes``: barcode -> size in MB, each in a slot, from the first on. Returns when the kernel has the nodes."""
    _HOME.mkdir()
    with open("/tmp/tgtd.log", "wb") as log:
        subprocess.Popen(["tgtd", "-f"], stdout=log, stderr=log)
    _wait("tgtd", _answers)
    for barcode, size in tapes.items():
        words = f"tgtimg --op new --device-type tape --barcode {barcode} --size {size} --type data"
        run([*words.split(), "--file", str(_HOME / barcode)])
    (_HOME / "changer").write_bytes(bytes(1024))
    _admin("--mode target --op new --tid 1 -T", _TARGET)
    _admin(f"--mode logicalunit --op new --tid 1 --lun 1 --device-type tape -b {_HOME}/{next(iter(tapes))}")
    _admin(f"--mode logicalunit --op new --tid 1 --lun 2 --device-type changer -b {_HOME}/changer")
    for parameters in (
        f"media_home={_HOME}",
        "element_type=4,start_address=1,quantity=1",
        "element_type=4,address=1,tid=1,lun=1",
        f"element_type=2,start_address={_FIRST_SLOT},quantity={_SLOTS}",
        *(f"element_type=2,address={_FIRST_SLOT + at},barcode={name},sides=1" for at, name in enumerate(tapes)),
        "element_type=3,start_address=2048,quantity=1",
        "element_type=1,start_address=16,quantity=1",
    ):
        _admin("--mode logicalunit --op update --tid 1 --lun 2 --params", parameters)
    _admin("--mode target --op bind --tid 1 -I ALL")
    run(["iscsistart", "-i", _INITIATOR, "-t", _TARGET, "-g", "1", "-a", "127.0.0.1", "-p", "3260"])
    _wait("the tape drive", lambda: os.path.exists("/dev/nst0"))
    _wait("the changer", lambda: bool(_changers()))
    library = Library("/dev/nst0", _changers()[0])
    # tgt begins with a medium in the drive of which its robot knows nothing
    run(["mtx", "-f", library.changer, "load", "1", "0"])
    run(["mtx", "-f", library.changer, "unload", "1", "0"])
    return library


def run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _changers() -> list[str]:
    nodes = Path("/sys/class/scsi_generic")
    return [
        f"/dev/{node.name}" for node in nodes.iterdir() if (node / "device/type").read_text().strip() == _CHANGER_TYPE
    ]


def _answers() -> bool:
    shown = subprocess.run(["tgtadm", "--op", "show", "--mode", "sys"], capture_output=True, check=False)
    return shown.returncode == 0


def _admin(words: str, *more: str) -> None:
    run(["tgtadm", "--lld", "iscsi", *words.split(), *more])


def _wait(what: str, is_there: Callable[[], bool]) -> None:
    end = time.monotonic() + _WAIT_SECONDS
    while not is_there():
        if time.monotonic() > end:
            raise OSError(f"{what} did not come")
        time.sleep(0.2)
