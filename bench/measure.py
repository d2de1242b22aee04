"""One command, measured from outside.

Wall time runs from before the start to the exit; CPU time and peak resident memory are the kernel's account of the
command and of the children it waited for (wait4). Peak anonymous memory (RssAnon) is no part of that account, so it is
sampled from /proc: a peak shorter than the interval of 20 ms can be missed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = Path(__file__).resolve().with_name("launch.py")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run took: seconds of wall and CPU time, bytes of peak resident and anonymous memory (0: not seen)."""

    wall: float
    cpu: float
    rss: int
    anon: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that came to its end; ``code`` is its exit code, negative the signal that ended it."""

    usage: Usage
    code: int


def run(command: Sequence[str], *, environment: Mapping[str, str], cwd: Path, output: Path) -> Finished:
    """Runs ``command`` to its end; stdout and stderr go to the file ``output``. OSError when it cannot be started."""
    # -E -S: the command's environment is not the launcher's, and site-packages are memory for nothing.
    launch = [sys.executable, "-E", "-S", str(LAUNCHER), str(output), *command]
    launched = subprocess.run(launch, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    if launched.returncode:
        raise OSError(f"cannot run {command[0]}: {(launched.stderr.strip() or 'killed').splitlines()[-1]}")
    took = json.loads(launched.stdout)
    return Finished(Usage(took["wall"], took["cpu"], took["rss"], took["anon"]), took["code"])
