"""A tree that is backed up night by night by several programs, one file in a hundred changed between (see ``changes``).

Building takes long; a directory that is named keeps what was built, for measuring again when the machine is quiet.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import changes, measure, trees
from bench.measure import Usage
from bench.peers import Command, Program

MARKER = "nights.json"  # what was built, in the work directory


def run(program: Program, place: Path, command: Command, output: Path, *, also: frozenset[int] = frozenset()) -> Usage:
    """To its end; SystemExit when it ends with a code that says it failed, and is not in ``also``."""
    finished = measure.run(command, environment=program.environment(place), cwd=place, output=output)
    if finished.code not in program.finished | also:
        raise SystemExit(
            f"{' '.join(command)} ended with {finished.code}:\n{output.read_text(errors='replace')[-2000:]}"
        )
    return finished.usage


@contextmanager
def work_directory(kept: Path | None) -> Iterator[Path]:
    """``kept``, made where it is not there, or a temporary directory."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="archiver-", dir="/var/tmp") as temporary:
        yield Path(temporary).resolve()
        trees.remove(Path(temporary))


def place_of(program: Program, work: Path) -> Path:
    return work / program.name.replace(" ", "-")


def name_of(night: int) -> str:
    """Of the backup, where a program lets one choose it."""
    return f"night-{night}" if night else "first"


def build(programs: Sequence[Program], source: Path, work: Path, count: int) -> Path:
    """The tree as it is after the last of ``count`` backups of it, in ``work/tree``; the places of the programs are
    beside it. Nothing is done when just this stands there already."""
    marker, tree = work / MARKER, work / "tree"
    wanted = {"source": source.name, "nights": count, "programs": [program.name for program in programs]}
    if marker.exists() and json.loads(marker.read_text()) == wanted:
        return tree
    marker.unlink(missing_ok=True)
    for left in (tree, *(place_of(program, work) for program in programs)):
        trees.remove(left)
    changes.copy(source, tree)
    for program in programs:
        place = place_of(program, work)
        place.mkdir()
        run(program, place, program.init(place), place / "log")
    for night in range(count):
        if night:
            changes.apply(tree, night)
        trees.settle(tree)
        for program in programs:
            place = place_of(program, work)
            run(program, place, program.backup(place, tree, name_of(night)), place / "log")
        print(f"night {night + 1} of {count}", file=sys.stderr, flush=True)
    marker.write_text(json.dumps(wanted))
    return tree
