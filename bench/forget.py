"""Forgets one snapshot of many and frees its space: ``python -m bench.forget``, beside restic and borg.

Each program backs up a private copy of the data night after night, one file in a hundred changed (see ``changes``).
Then, round after round, the oldest backup is removed by the program's own keep rule and its space freed. Of restic a
row of its own frees everything: its default leaves a twentieth of the repository unused.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import datasets, nights, trees
from bench.peers import Archiver, Borg, Command, Program, Restic

TARGET = 5.0


class ResticAll(Restic):
    """The same, leaving nothing unused."""

    name = "restic --max-unused 0"


def steps(program: Program, place: Path, keep: int) -> list[Command]:
    """Keeps the newest ``keep`` backups, and frees the space of the others."""
    last = ["--keep-last", str(keep)]
    match program:
        case Archiver():
            archiver = [sys.executable, "-m", "archiver", "--store", str(program.repository(place))]
            return [[*archiver, "prune", "--gc", *last]]
        case ResticAll():
            return [["restic", "forget", "--prune", "--max-unused", "0", *last]]
        case Restic():
            return [["restic", "forget", "--prune", *last]]
        case Borg():
            return [["borg", "prune", *last], ["borg", "compact"]]
    raise ValueError(program.name)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.forget", description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="small", metavar="NAME", help="small (/usr/share) or a directory")
    parser.add_argument("--snapshots", type=int, default=100, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="R", help="snapshots forgotten, one after the other")
    parser.add_argument("--files", type=int, metavar="N", help="take a generated tree of N tiny files")
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="where the backups are built, or stand already; default: a temporary one",
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.rounds < options.snapshots:
        parser.error("--rounds is at least 1 and less than --snapshots")
    programs: list[Program] = [one for one in (Archiver(), Restic(), Borg()) if one.version() is not None]
    with nights.work_directory(options.work) as work:
        try:
            if options.files:
                data = datasets.tiny(work / "data", options.files)
            else:
                data = datasets.choose(options.data, work / "data")
        except OSError as error:
            parser.error(str(error))
        nights.build(programs, data.root, work, options.snapshots)
        if any(isinstance(program, Restic) for program in programs):
            programs.append(ResticAll())
            trees.remove(nights.place_of(ResticAll(), work))
            shutil.copytree(nights.place_of(Restic(), work), nights.place_of(ResticAll(), work))
        (work / nights.MARKER).unlink()  # what is there is not the same afterwards
        times = forget(programs, work, options.snapshots, options.rounds)
    return report(times)


def forget(programs: Sequence[Program], work: Path, snapshots: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by program."""
    times: dict[str, list[float]] = {program.name: [] for program in programs}
    for number in range(1, rounds + 1):
        for program in programs:
            place = nights.place_of(program, work)
            before = trees.allocated(program.repository(place))
            trees.read_all(place)
            took = sum(
                nights.run(program, place, command, place / "log").wall
                for command in steps(program, place, snapshots - number)
            )
            freed = before - trees.allocated(program.repository(place))
            times[program.name].append(took)
            print(f"{program.name:22} round {number}: {took:6.2f} s, {freed / (1 << 20):8.1f} MiB freed", flush=True)
    return times


def report(times: dict[str, list[float]]) -> int:
    medians = {name: statistics.median(values) for name, values in times.items()}
    ours = medians.pop(Archiver.name)
    print(f"\n{Archiver.name}: {ours:.2f} s")
    for name, median in medians.items():
        print(f"{name}: {median:.2f} s = {median / ours:.2f}x")
    return int(bool(medians) and min(medians.values()) / ours < TARGET)


if __name__ == "__main__":
    sys.exit(main())
