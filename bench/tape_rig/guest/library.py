"""The tape library: tgt as the target, the kernel's own iSCSI over loopback as its only client (spec tape.md 16)."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_HOME = Path("/tmp/library")
_TARGET = "iqn.2026-01.test:library"
_SLOTS = 6
_FIRST_SLOT = 1024
_WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Library:
    drive: str
    changer: str


def start(tapes: dict[str, int]) -> Library:
    """``tapes``: barcode -> size in MB, each in a slot from the first on. Returns when the kernel has the nodes."""
    _HOME.mkdir()
    Path("/var/run").mkdir(exist_ok=True)
    with open("/tmp/tgtd.log", "wb") as log:
        subprocess.Popen(["tgtd", "-f"], stdout=log, stderr=log)
    _wait("tgtd", lambda: subprocess.run(["tgtadm", "--op", "show", "--mode", "sys"], capture_output=True).returncode == 0)
    for barcode, size in tapes.items():
        words = f"tgtimg --op new --device-type tape --barcode {barcode} --size {size} --type data"
        run([*words.split(), "--file", str(_HOME / barcode)])
    (_HOME / "changer").write_bytes(bytes(1024))
    _admin("--mode target --op new --tid 1 -T", _TARGET)
    first = next(iter(tapes))
    _admin(f"--mode logicalunit --op new --tid 1 --lun 1 --device-type tape -b {_HOME}/{first}")
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
    run(["iscsistart", "-i", "iqn.2026-01.test:initiator", "-t", _TARGET, "-g", "1", "-a", "127.0.0.1", "-p", "3260"])
    _wait("the tape drive", lambda: os.path.exists("/dev/nst0"))
    _wait("the changer", lambda: _changer() is not None)
    return Library("/dev/nst0", _changer() or "")


def _changer() -> str | None:
    for name in sorted(os.listdir("/sys/class/scsi_generic")):
        kind = Path(f"/sys/class/scsi_generic/{name}/device/type")
        if kind.read_text().strip() == "8":
            return f"/dev/{name}"
    return None


def run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _admin(words: str, *more: str) -> None:
    run(["tgtadm", "--lld", "iscsi", *words.split(), *more])


def _wait(what, is_there) -> None:
    end = time.monotonic() + _WAIT_SECONDS
    while not is_there():
        if time.monotonic() > end:
            raise OSError(f"{what} did not come")
        time.sleep(0.2)
