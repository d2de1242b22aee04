"""Backup to a virtual tape beside ``cp`` of the same bytes: ``python -m bench.tape``. Both end with data on the disk.

The store has random data, in chunks of the usual size; its chunk files are what ``cp`` copies. Rounds alternate, so
both meet the same disk. A restore into an empty store, and one of a single snapshot, are measured too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from archiver.store.store import Store
from bench.measure import Usage, run
from bench.peers import PROJECT

TARGET_SHARE = 0.8  # of what cp does
TARGET_ANON = 256 << 20  # bytes
_PIECE = 16 << 20


def build(place: Path, size: int, environment: Mapping[str, str]) -> Path:
    """A store with one snapshot of ``size`` random bytes, and a drive."""
    store, tree = place / "store", place / "tree"
    tree.mkdir()
    Store.create(store)
    for number in range(-(-size // (64 << 20))):
        with open(tree / str(number), "wb") as file:
            left = min(64 << 20, size - number * (64 << 20))
            while left:
                left -= file.write(os.urandom(min(left, _PIECE)))
    _do(environment, "--store", store, "backup", f"data.pxar:{tree}", "--id", "bench")
    _do(environment, "tape", "drive", "add", "bench", "--path", place / "media")
    _do(environment, "tape", "pool", "create", "bench", "--allocation", "always")
    shutil.rmtree(tree)
    return store


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "archiver", *map(str, arguments)]


def _do(environment: Mapping[str, str], *arguments: str | Path) -> None:
    subprocess.run(_command(*arguments), env=environment, check=True, capture_output=True)


def measured(place: Path, environment: Mapping[str, str], command: Sequence[str]) -> Usage:
    """Raises SystemExit for a command that failed."""
    log = place / "log"
    done = run(command, environment=environment, cwd=place, output=log)
    if done.code:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()}")
    return done.usage


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tape", description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=1024, metavar="MIB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"), metavar="DIR")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="archiver-tape-", dir=options.work) as temporary:
        place = Path(temporary)
        names = ("STATE", "CACHE", "CONFIG", "DATA")
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        environment |= {f"XDG_{name}_HOME": str(place / ".xdg" / name.lower()) for name in names}
        size = options.size << 20
        store = build(place, size, environment)
        cp: list[Usage] = []
        tape: list[Usage] = []
        for number in range(options.rounds):
            cp.append(measured(place, environment, ["sh", "-c", f"cp -r {store}/.chunks copy && sync -f copy"]))
            shutil.rmtree(place / "copy")
            for old in (place / "media").glob("*BENCH*"):
                old.unlink()
            _do(environment, "tape", "label", "--label-text", f"BENCH{number}", "--pool", "bench")
            tape.append(measured(place, environment, _command("--store", store, "tape", "backup", "bench")))
            time.sleep(1)  # sets are known by the second in which they begin
        restores = []
        for kind in ("bench", "one"):
            target = place / f"target-{kind}"
            Store.create(target)
            snapshot = [] if kind == "bench" else [str(ref) for ref in _snapshots(store)]
            restores.append(
                measured(place, environment, _command("--store", target, "tape", "restore", "bench", *snapshot))
            )
            shutil.rmtree(target)
        return _tell(size, cp, tape, restores)


def _snapshots(path: Path) -> list[object]:
    with Store.open(path) as store:
        return list(store.snapshots())


def _tell(size: int, cp: list[Usage], tape: list[Usage], restores: list[Usage]) -> int:
    plain, ours = median(usage.wall for usage in cp), median(usage.wall for usage in tape)
    share = plain / ours
    anon = max(usage.anon for usage in [*tape, *restores])
    rate = size / (1 << 20)
    print(f"cp and sync        {plain:7.2f} s  {rate / plain:7.0f} MiB/s  CPU {median(u.cpu for u in cp):.2f} s")
    print(f"tape backup        {ours:7.2f} s  {rate / ours:7.0f} MiB/s  CPU {median(u.cpu for u in tape):.2f} s")
    for name, usage in zip(("whole set", "one snapshot"), restores, strict=True):
        print(f"restore {name:12}{usage.wall:6.2f} s  {rate / usage.wall:7.0f} MiB/s  CPU {usage.cpu:.2f} s")
    print(f"share of cp: {share:.2f}, target {TARGET_SHARE}  {'met' if share >= TARGET_SHARE else 'MISSED'}")
    print(
        f"anonymous memory: {anon >> 20} MiB, target {TARGET_ANON >> 20}  {'met' if anon < TARGET_ANON else 'MISSED'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
