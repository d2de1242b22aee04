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
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import changes, datasets, measure, trees
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
            return [[*archiver, "prune", *last], [*archiver, "gc"]]
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
    options = parser.parse_args(arguments)
    if not 1 <= options.rounds < options.snapshots:
        parser.error("--rounds is at least 1 and less than --snapshots")
    programs = [program for program in (Archiver(), Restic(), Borg()) if program.version() is not None]
    with tempfile.TemporaryDirectory(prefix="archiver-", dir="/var/tmp") as temporary:
        series = Series(programs, Path(temporary))
        try:
            data = datasets.choose(options.data, series.work / "data")
        except OSError as error:
            parser.error(str(error))
        series.build(data.root, options.snapshots)
        series.copy(Restic(), ResticAll())
        times = series.forget(options.snapshots, options.rounds)
        trees.remove(series.work)
    return report(times)


class Series:
    """The same nights, saved by all programs."""

    def __init__(self, programs: Sequence[Program], work: Path) -> None:
        self.work = work
        self._programs = list(programs)
        self._tree = work / "tree"

    def build(self, source: Path, nights: int) -> None:
        changes.copy(source, self._tree)
        for program in self._programs:
            self._run(program, program.init(self._place(program)))
        for night in range(nights):
            if night:
                changes.apply(self._tree, night)
            trees.settle(self._tree)
            for program in self._programs:
                name = f"night-{night}" if night else "first"
                self._run(program, program.backup(self._place(program), self._tree, name))
            print(f"night {night + 1} of {nights}", file=sys.stderr, end="\r", flush=True)
        print(file=sys.stderr)

    def copy(self, program: Program, other: Program) -> None:
        """``other`` gets what ``program`` has saved."""
        if any(each.name == program.name for each in self._programs):
            shutil.copytree(self._place(program), self._place(other), dirs_exist_ok=True)
            self._programs.append(other)

    def forget(self, nights: int, rounds: int) -> dict[str, list[float]]:
        """Seconds of each round."""
        times: dict[str, list[float]] = {program.name: [] for program in self._programs}
        for number in range(1, rounds + 1):
            for program in self._programs:
                place = self._place(program)
                before = trees.allocated(program.repository(place))
                trees.read_all(place)
                took = sum(self._run(program, command) for command in steps(program, place, nights - number))
                freed = before - trees.allocated(program.repository(place))
                times[program.name].append(took)
                print(
                    f"{program.name:22} round {number}: {took:6.2f} s, {freed / (1 << 20):8.1f} MiB freed", flush=True
                )
        return times

    def _place(self, program: Program) -> Path:
        place = self.work / program.name.replace(" ", "-")
        place.mkdir(exist_ok=True)
        return place

    def _run(self, program: Program, command: Command) -> float:
        place = self._place(program)
        log = place / "log"
        finished = measure.run(command, environment=program.environment(place), cwd=place, output=log)
        if finished.code not in program.finished:
            raise SystemExit(
                f"{' '.join(command)}: exit code {finished.code}\n{log.read_text(errors='replace')[-2000:]}"
            )
        return finished.usage.wall


def report(times: dict[str, list[float]]) -> int:
    medians = {name: statistics.median(values) for name, values in times.items()}
    ours = medians.pop(Archiver.name)
    print(f"\n{Archiver.name}: {ours:.2f} s")
    for name, median in medians.items():
        print(f"{name}: {median:.2f} s = {median / ours:.2f}x")
    return int(bool(medians) and min(medians.values()) / ours < TARGET)


if __name__ == "__main__":
    sys.exit(main())
