"""Runs the emulated machine, in software, and reads what it reports."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.tape_rig.packages import RigError

_POLL = 0.5
_MEMORY = "1536"
# On a busy host a timer may come so late that the kernel takes it for broken.
_KERNEL_ARGUMENTS = "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off"


def run(kernel: Path, image: Path, work: Path, *, seconds: float) -> Iterator[dict[str, Any]]:
    """The reports, as they come. The console is kept in ``work``/console. Raises RigError."""
    reports, console = work / "reports", work / "console"
    for path in (reports, console):
        path.unlink(missing_ok=True)
    command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", _MEMORY, "-nographic", "-no-reboot"]
    command += ["-nodefaults", "-kernel", str(kernel), "-initrd", str(image)]
    command += ["-serial", f"file:{console}", "-serial", f"file:{reports}"]
    command += ["-append", _KERNEL_ARGUMENTS]
    end = time.monotonic() + seconds
    try:
        machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    except OSError as error:
        raise RigError(f"cannot run {command[0]}: {error.strerror}; it is in Debian's qemu-system-x86") from error
    try:
        at = 0
        while True:
            is_over = machine.poll() is not None
            if reports.exists():
                with open(reports, "rb") as file:
                    file.seek(at)
                    for line in file:
                        if not line.endswith(b"\n"):
                            break
                        at += len(line)
                        if line.startswith(b"{"):  # what else comes was printed by some program
                            yield json.loads(line)
            if is_over:
                return
            if time.monotonic() > end:
                raise RigError(f"the machine did not end in {seconds:.0f} s: see {console}")
            time.sleep(_POLL)
    finally:
        machine.kill()
        machine.wait()
