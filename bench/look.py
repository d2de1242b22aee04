"""Looking inside: ``python -m bench.look``. The same questions to this program, restic and borg, as whole processes.

Each backs up the same tree of tiny files night by night, one file in a hundred changing between them (see ``changes``).
Then it is asked, and what it names is compared with what the others name. Rounds are interleaved. Printed are medians
of wall and CPU time, and how much faster than the faster of the others this program is, by CPU time too: on a machine
that does other things the wall tells little.

| question     | is                                                                      |
|--------------|-------------------------------------------------------------------------|
| snapshots    | the list of all backups                                                 |
| ls           | all names in the newest backup                                          |
| ls long      | with mode, owner, size and time (of restic without the time zone)       |
| ls directory | one directory of the newest one; borg can only filter its whole listing |
| find newest  | a part of a name in the newest backup                                   |
| find all     | the same in all backups; borg is asked for each of them                 |
| diff         | the two newest backups                                                  |
| cat          | the contents of one small file of the newest one                        |
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import datasets, nights, peers
from bench.measure import Usage
from bench.peers import BACKUP_ID, Command, Program

QUESTIONS = ("snapshots", "ls", "ls long", "ls directory", "find newest", "find all", "diff", "cat")
TARGET = 5.0
_NAME = re.compile(rb"(?:file|new|renamed)-[0-9-]+(?:\.txt)?")
_SAME_NAMES = QUESTIONS[1:-1]
_DIFFERENT = frozenset({4})  # exit code of a diff that has found something


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program works, and what it is asked about: a directory and a file of the tree, part of a name."""

    program: Program
    path: Path
    source: Path
    directory: str
    file: str
    part: str
    newest: tuple[str, str]
    """The two newest backups, the newest last."""


@dataclass(slots=True)
class Answers:
    """Of one program to one question."""

    runs: list[Usage] = field(default_factory=list)
    names: set[bytes] = field(default_factory=set)

    @property
    def wall(self) -> float:
        return median(run.wall for run in self.runs)

    @property
    def cpu(self) -> float:
        return median(run.cpu for run in self.runs)


def of_archiver(place: Place, question: str) -> Command:
    command = [sys.executable, "-m", "archiver", "--store", str(place.program.repository(place.path))]
    asked = {
        "snapshots": ["snapshots"],
        "ls": ["ls", "-R", "latest"],
        "ls long": ["ls", "-lR", "latest"],
        "ls directory": ["ls", "latest", place.directory],
        "find newest": ["find", f"*{place.part}*", "--snapshot", "latest"],
        "find all": ["find", f"*{place.part}*"],
        "diff": ["diff", *place.newest],
        "cat": ["cat", "latest", place.file],
    }
    return command + asked[question]


def of_restic(place: Place, question: str) -> Command:
    root = str(place.source)
    asked = {
        "snapshots": ["snapshots"],
        "ls": ["ls", "latest"],
        "ls long": ["ls", "-l", "latest"],
        "ls directory": ["ls", "latest", f"{root}/{place.directory}"],
        "find newest": ["find", f"*{place.part}*", "--snapshot", place.newest[1]],
        "find all": ["find", f"*{place.part}*"],
        "diff": ["diff", *place.newest],
        "cat": ["dump", "latest", f"{root}/{place.file}"],
    }
    return ["restic", *asked[question]]


def of_borg(place: Place, question: str) -> Command:
    root = str(place.source).lstrip("/")
    newest, pattern = f"::{place.newest[1]}", f"sh:**/*{place.part}*"
    each = f'for archive in $(borg list --short); do borg list --short "::$archive" "{pattern}"; done'
    asked = {
        "snapshots": ["borg", "list"],
        "ls": ["borg", "list", "--short", newest],
        "ls long": ["borg", "list", newest],
        "ls directory": ["borg", "list", "--short", newest, f"{root}/{place.directory}"],
        "find newest": ["borg", "list", "--short", newest, pattern],
        "find all": ["sh", "-c", each],
        "diff": ["borg", "diff", f"::{place.newest[0]}", place.newest[1]],
        "cat": ["borg", "extract", "--stdout", newest, f"{root}/{place.file}"],
    }
    return asked[question]


COMMANDS: Mapping[str, Callable[[Place, str], Command]] = {
    "archiver": of_archiver,
    "archiver+key": of_archiver,
    "restic": of_restic,
    "borg": of_borg,
}


def newest_two(program: Program, place: Path, count: int) -> tuple[str, str]:
    """How the program names its two newest backups."""
    if program.name == "borg":
        names = [nights.name_of(night) for night in range(count)]
    else:
        listing = {"restic": ["restic", "snapshots", "--json"]}
        command = listing.get(program.name, [*program.snapshots(place), "--json"])
        done = subprocess.run(command, env=program.environment(place), capture_output=True, check=True)
        document = json.loads(done.stdout)
        if program.name == "restic":
            names = [item["id"] for item in document]
        else:
            names = [item["snapshot"] for item in document["items"] if item["id"] == BACKUP_ID]
    return names[-2], names[-1]


def ask(places: list[Place], rounds: int, work: Path) -> dict[tuple[str, str], Answers]:
    """By question and program."""
    found: dict[tuple[str, str], Answers] = {}
    output = work / "answer"
    for question in QUESTIONS:
        for _ in range(rounds):
            for place in places:
                command = COMMANDS[place.program.name](place, question)
                answers = found.setdefault((question, place.program.name), Answers())
                answers.runs.append(nights.run(place.program, place.path, command, output, also=_DIFFERENT))
                data = output.read_bytes()
                answers.names = set(_NAME.findall(data))
                if question == "cat" and data != (place.source / place.file).read_bytes():
                    raise SystemExit(f"{place.program.name} gave other contents")
    return found


def report(found: dict[tuple[str, str], Answers], programs: list[Program]) -> bool:
    """Print the table; whether all have said the same."""
    agreed = True
    own, others = [p.name for p in programs if "archiver" in p.name], [p.name for p in programs if "arch" not in p.name]
    print(
        f"{'seconds, wall (CPU)':14} "
        + " ".join(f"{program.name:>17}" for program in programs)
        + "   times faster (CPU)"
    )
    for question in QUESTIONS:
        answers = {program.name: found[question, program.name] for program in programs}
        cells = " ".join(f"{one.wall:9.3f} ({one.cpu:5.3f})" for one in answers.values())
        wall = min((answers[name].wall for name in others), default=math.nan) / answers[own[0]].wall
        cpu = min((answers[name].cpu for name in others), default=math.nan) / answers[own[0]].cpu
        verdict = "" if math.isnan(wall) else "met" if wall >= TARGET else "below 5"
        print(f"{question:19} {cells}   {wall:5.1f} ({cpu:5.1f})  {verdict}")
        different = {name for name, one in answers.items() if one.names != answers[own[0]].names}
        if question in _SAME_NAMES and different:
            agreed = False
            counts = ", ".join(f"{name} {len(one.names)}" for name, one in answers.items())
            print(f"  not the same names: {counts}")
    return agreed


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.look", description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--snapshots", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--programs", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--work", type=Path, help="a directory that is kept, and used again; default: a temporary one")
    options = parser.parse_args(arguments)
    if options.snapshots < 2:
        parser.error("a difference needs two snapshots")
    programs = [one for one in peers.programs() if one.name in options.programs and one.version() is not None]
    with nights.work_directory(options.work) as work:
        data = datasets.tiny(work / "data", options.files).root
        source = nights.build(programs, data, work, options.snapshots)
        directory = next(path for path in sorted(source.glob("*/*")) if any(path.iterdir()))
        file = next(path for path in sorted(directory.iterdir()) if path.stat().st_size)
        relative = str(directory.relative_to(source)), str(file.relative_to(source))
        places = [
            Place(program, path, source, *relative, "e-00004", newest_two(program, path, options.snapshots))
            for program, path in ((program, nights.place_of(program, work)) for program in programs)
        ]
        print(f"{options.files} files, {options.snapshots} snapshots, {options.rounds} rounds")
        agreed = report(ask(places, options.rounds, work), programs)
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
