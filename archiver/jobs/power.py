"""Whether this is a good moment: what feeds the machine, what its network costs. And no sleep while a job runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from archiver.core.events import Listener, Notice
from archiver.jobs.profile import Power

SUPPLIES = "/sys/class/power_supply"

_SECONDS = 10
_MAINS = ("Mains", "USB")


@dataclass(frozen=True, slots=True)
class Supply:
    """``charge``: percent of the batteries that feed the machine, None where there is none that tells."""

    on_battery: bool
    charge: int | None


def supply(root: str = SUPPLIES) -> Supply:
    """As the kernel has it in ``root``. A mouse's battery feeds no machine; where nothing is told there is mains."""
    mains, discharging, charges = False, False, []
    try:
        names = sorted(os.listdir(root))
    except OSError:
        names = []
    for name in names:
        kind, scope = (_word(root, name, each) for each in ("type", "scope"))
        if scope == "Device":
            continue
        if kind in _MAINS:
            mains = mains or _word(root, name, "online") == "1"
        elif kind == "Battery":
            discharging = discharging or _word(root, name, "status") == "Discharging"
            with suppress(ValueError):
                charges.append(int(_word(root, name, "capacity")))
    return Supply(discharging and not mains, sum(charges) // len(charges) if charges else None)


def _word(root: str, name: str, file: str) -> str:
    try:
        with open(os.path.join(root, name, file), encoding="ascii", errors="replace") as opened:
            return opened.read(64).strip()
    except OSError:
        return ""


def is_metered() -> bool:
    """What NetworkManager says, where it is."""
    program = shutil.which("nmcli")
    if program is None:
        return False
    command = [program, "--get-values", "GENERAL.METERED", "device", "show"]
    try:
        found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return any(line.startswith(b"yes") for line in found.stdout.splitlines())


def refusal(power: Power, root: str = SUPPLIES, metered: Callable[[], bool] = is_metered) -> str | None:
    """Why the job is not to run now."""
    found = supply(root)
    if found.on_battery and power.on_battery == "skip":
        return "the machine runs on battery"
    if found.on_battery and found.charge is not None and found.charge < power.min_charge:
        return f"the battery has {found.charge} %, less than {power.min_charge} %"
    if power.metered == "skip" and metered():
        return "the network is metered"
    return None


@contextmanager
def awake(job: str, listener: Listener) -> Iterator[None]:
    """While inside, the machine does not go to sleep by itself. What keeps it awake ends with this process, however
    that ends: it waits for the end of a pipe."""
    program = shutil.which("systemd-inhibit")
    if program is None:
        yield
        return
    who = ["--who=archiver", f"--why=the job {job} is running", "--what=sleep:idle", "--mode=block"]
    try:
        process = subprocess.Popen(
            [program, *who, "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us
        )
    except OSError as error:
        listener(Notice(f"sleep cannot be inhibited: {error.strerror}"))
        yield
        return
    try:
        yield
    finally:
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode > 0:
            listener(Notice("nothing kept the machine awake: systemd-inhibit was refused"))
