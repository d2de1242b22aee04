"""What ``job run`` adds to its steps: ``python -m bench.jobs``.

A tree, a store and a copy of it; a profile with every step, which are all due. The command runs in a process of its
own.
Told is its time, less the sum of its steps, less what every command pays: the start of a process that loads what the
steps need and ends. Of both the least of some runs counts, as other work on the machine only adds to them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from archiver.store.store import Store

TARGET_SECONDS = 0.2

PROFILE = """
store = "{place}/store"
sources = ["{place}/source"]
[keep]
last = 3
[gc]
every = "1s"
[verify]
every = "1s"
[drill]
every = "1s"
files = 5
[[sync]]
target = "{place}/copy"
every = "1s"
[[hook]]
when = "before"
command = "true"
"""


def run(arguments: list[str], environment: dict[str, str]) -> tuple[float, bytes]:
    began = time.monotonic()
    done = subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, check=True)
    return time.monotonic() - began, done.stdout


def start(environment: dict[str, str]) -> float:
    return run(["-c", "import archiver.cli.main, archiver.jobs.steps, lmdb"], environment)[0]


def job(environment: dict[str, str]) -> tuple[float, float]:
    """The time of a run without that of its steps, and the sum of these, seconds."""
    whole, out = run(["-m", "archiver", "job", "run", "bench", "--any-power", "--json"], environment)
    steps = sum(step["duration_s"] for step in json.loads(out)["items"])
    return whole - steps, steps


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=7)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="archiver-bench-") as name:
        place = Path(name)
        (place / "source").mkdir()
        for number in range(chosen.files):
            (place / "source" / f"file-{number}").write_bytes(os.urandom(2000))
        for store in ("store", "copy"):
            Store.create(str(place / store))
        environment = os.environ | {f"XDG_{kind}_HOME": f"{place}/{kind}" for kind in ("CONFIG", "STATE", "CACHE")}
        (place / "CONFIG/archiver").mkdir(parents=True)
        (place / "CONFIG/archiver/bench.toml").write_text(PROFILE.format(place=place))
        job(environment)
        found = [(*job(environment), start(environment)) for _ in range(chosen.runs)]
    around, steps, begun = (min(values) for values in zip(*found, strict=True))
    more = around - begun
    print(f"steps: {steps:.3f} s; job run adds {more:.3f} s (at most {TARGET_SECONDS} s)")
    return 0 if more <= TARGET_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
