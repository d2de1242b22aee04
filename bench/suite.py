"""Which runs are made, in which order, and what is checked.

Rounds are interleaved (A B C A B C), so that a slow minute of the machine hits everybody. Before each timed run its
input is read once (borg drops what it read from the page cache, and the next program must not pay for that), and all
dirty pages are written. Repositories are made, removed and checked outside of the timed runs.

For ``changed`` each program has a series of its own of a private copy of the data. Before each round one file in a
hundred changes (see ``changes``), and then nothing for some seconds: files changed that lately are trusted by nobody.
After the last round the newest backup is restored and compared.

Restored trees are emptied but not removed before all is done: ext4 without a journal avoids recently deleted inodes,
and for minutes after 50,000 of them were deleted, making files takes it several times as long.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import changes, database, measure, trees
from bench.database import DatabaseSize
from bench.datasets import DataSet
from bench.measure import Usage
from bench.peers import PROJECT, Command, Program

LIMIT = "limit"


class Failed(Exception):
    """A program could not prepare what a workload needs; says how it ended."""


@dataclass(slots=True)
class Row:
    """All runs of one command on one data set; ``stored`` is bytes on disk after it, ``problems`` what went wrong.

    Of backups ``entries`` is what the tree holds. Of backups that tell, ``bytes_read`` (file content) and ``growth``
    (of the database) have an item for each run.
    """

    data: str
    workload: str
    program: str
    label: str
    runs: list[Usage] = field(default_factory=list)
    stored: int | None = None
    entries: int | None = None
    bytes_read: list[int] = field(default_factory=list)
    growth: list[DatabaseSize] = field(default_factory=list)
    checked: bool = False
    problems: list[str] = field(default_factory=list)


class Suite:
    """Runs workloads of the given (installed) programs on one data set; the caller removes ``directory``."""

    def __init__(
        self,
        data: DataSet,
        programs: Sequence[Program],
        directory: Path,
        logs: Path,
        *,
        repeat: int,
        progress: Callable[[str], None],
    ) -> None:
        self._data = data
        self._programs = programs
        self._directory = directory
        self._logs = logs
        self._repeat = repeat
        self._progress = progress
        self._rows: dict[tuple[str, str], Row] = {}

    def run(self, workloads: Sequence[str]) -> list[Row]:
        """One row for each workload and command, in the order they first ran; a failure stops nothing else."""
        self._directory.mkdir(parents=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        trees.settle(self._data.root)
        for workload in workloads:
            for number in range(1, self._repeat + 1):
                if workload == "changed":
                    self._change(number)
                for program in self._programs:
                    self._attempt(workload, program, number, WORKLOADS[workload])
                if workload == "first":
                    self._limit(number)
            if workload == "changed":
                for program in self._programs:
                    self._attempt(workload, program, self._repeat, Suite._check_changed)
        return list(self._rows.values())

    def _attempt(self, workload: str, program: Program, number: int, work: Work) -> None:
        try:
            work(self, program, number)
        except Failed as failure:
            self._row(workload, program.name, program.name).problems.append(str(failure))

    # Workloads: one round of one program each

    def _first(self, program: Program, number: int) -> None:
        place = self._place(program)
        trees.remove(place)
        self._run_untimed(program, place, program.init(place))
        row = self._back_up("first", program, number, place, self._data.root, "first")
        if row:
            os.sync()
            row.stored = trees.allocated(program.repository(place))

    def _unchanged(self, program: Program, number: int) -> None:
        place = self._with_backup(program, self._place(program), self._data.root)
        self._back_up("unchanged", program, number, place, self._data.root, f"unchanged-{number}")

    def _changed(self, program: Program, number: int) -> None:
        place = self._series(program)
        if program.repository(place).exists():
            self._back_up("changed", program, number, place, self._tree, f"changed-{number}")

    def _change(self, number: int) -> None:
        """The next state of the private copy, which is made, with a first backup by all, before the first change."""
        if number == 1:
            self._progress(f"{self._data.name}: changed: copying")
            changes.copy(self._data.root, self._tree)
            trees.settle(self._tree)
            for program in self._programs:
                self._progress(f"{self._data.name}: changed: first backup by {program.name}")
                self._attempt("changed", program, number, Suite._start_series)
        changes.apply(self._tree, number)
        trees.settle(self._tree)

    def _start_series(self, program: Program, number: int) -> None:
        self._with_backup(program, self._series(program), self._tree)

    def _check_changed(self, program: Program, number: int) -> None:
        row = self._row("changed", program.name, program.name)
        if len(row.runs) < number:
            return  # it has been told why
        place = self._series(program)
        target = self._directory / "restored" / f"changed.{program.name}"
        target.mkdir(parents=True)
        self._run_untimed(program, place, program.restore(place, target, f"changed-{number}"), cwd=target)
        self._compare(row, self._tree, program, target)

    def _restore(self, program: Program, number: int) -> None:
        place = self._with_backup(program, self._place(program), self._data.root)
        restored = self._directory / "restored"
        for options in program.restore_options:
            if os.statvfs(self._directory).f_favail < 2 * self._data.entries:
                trees.remove(restored)
            label = " ".join((program.name, *options))
            target = restored / f"{label}.{number}"
            target.mkdir(parents=True)
            trees.read_all(program.repository(place))
            command = [*program.restore(place, target, "first"), *options]
            row = self._time("restore", program, number, place, command, label=label, cwd=target)
            if row is not None:
                self._compare(row, self._data.root, program, target)

    def _verify(self, program: Program, number: int) -> None:
        place = self._with_backup(program, self._place(program), self._data.root)
        trees.read_all(program.repository(place))
        self._time("verify", program, number, place, program.verify(place))

    def _list(self, program: Program, number: int) -> None:
        place = self._with_backup(program, self._place(program), self._data.root)
        self._time("list", program, number, place, program.snapshots(place))

    def _help(self, program: Program, number: int) -> None:
        self._time("help", program, number, self._place(program), program.help())

    def _limit(self, number: int) -> None:
        """The necessary work of a first backup; it times itself, without the interpreter's start."""
        target = self._directory / LIMIT
        target.mkdir()
        trees.read_all(self._data.root)
        os.sync()
        command = [sys.executable, "-m", "bench.limit", str(self._data.root), str(target)]
        log = self._log("first", LIMIT, number)
        finished = measure.run(command, environment={"PYTHONPATH": str(PROJECT)}, cwd=PROJECT, output=log)
        row = self._row("first", LIMIT, LIMIT)
        if finished.code:
            row.problems.append(_ending(finished.code, log))
        else:
            own = json.loads(log.read_text())
            row.runs.append(Usage(own["wall"], own["cpu"], finished.usage.rss, finished.usage.anon))
            row.stored = trees.allocated(target)
        trees.remove(target)

    # One command

    def _back_up(
        self, workload: str, program: Program, number: int, place: Path, source: Path, name: str
    ) -> Row | None:
        trees.read_all(source)
        trees.read_all(place)
        directory = program.database(place)
        before = database.size(directory) if directory else None
        row = self._time(workload, program, number, place, program.backup(place, source, name))
        if row is None:
            return None
        row.entries = self._data.entries
        read = program.bytes_read(self._log(workload, program.name, number).read_text(errors="replace"))
        if read is not None:
            row.bytes_read.append(read)
        if directory and before:
            row.growth.append(database.size(directory) - before)
        return row

    def _compare(self, row: Row, source: Path, program: Program, target: Path) -> None:
        """Checks what was restored to ``target``, and gives its space back."""
        found = trees.differences(source, program.restored(target, source))
        row.checked = True
        row.problems += [f"restore is not the source: {line}" for line in found]
        trees.empty(target)

    def _time(
        self,
        workload: str,
        program: Program,
        number: int,
        place: Path,
        command: Command,
        *,
        label: str | None = None,
        cwd: Path | None = None,
    ) -> Row | None:
        """Runs and measures; None when the program did not do its work, which the row then says."""
        label = label or program.name
        row = self._row(workload, program.name, label)
        environment = program.environment(place)
        log = self._log(workload, label, number)
        os.sync()
        finished = measure.run(command, environment=environment, cwd=cwd or place, output=log)
        if finished.code not in program.finished:
            row.problems.append(_ending(finished.code, log))
            self._progress(f"{self._data.name}: {workload} {number}/{self._repeat}: {label}: {row.problems[-1]}")
            return None
        row.runs.append(finished.usage)
        self._progress(f"{self._data.name}: {workload} {number}/{self._repeat}: {label}: {finished.usage.wall:.2f} s")
        return row

    def _run_untimed(self, program: Program, place: Path, command: Command, cwd: Path | None = None) -> None:
        environment = program.environment(place)
        log = self._log("prepare", program.name, 0)
        finished = measure.run(command, environment=environment, cwd=cwd or place, output=log)
        if finished.code not in program.finished:
            raise Failed(_ending(finished.code, log))

    def _with_backup(self, program: Program, place: Path, source: Path) -> Path:
        """The place, which holds a backup of ``source``."""
        if not program.repository(place).exists():
            try:
                self._run_untimed(program, place, program.init(place))
                self._run_untimed(program, place, program.backup(place, source, "first"))
            except Failed:
                trees.remove(place)
                raise
        return place

    @property
    def _tree(self) -> Path:
        """The private copy of the data that changes."""
        return self._directory / "tree"

    def _place(self, program: Program) -> Path:
        return self._directory / program.name

    def _series(self, program: Program) -> Path:
        """The program's place for backups of the private copy."""
        return self._directory / f"{program.name}.changed"

    def _log(self, workload: str, label: str, number: int) -> Path:
        return self._logs / f"{self._data.name.replace('/', '_')}.{workload}.{label}.{number}.log"

    def _row(self, workload: str, program: str, label: str) -> Row:
        return self._rows.setdefault((workload, label), Row(self._data.name, workload, program, label))


Work = Callable[[Suite, Program, int], None]
"""One round of one program."""

WORKLOADS: dict[str, Work] = {
    "first": Suite._first,
    "unchanged": Suite._unchanged,
    "changed": Suite._changed,
    "restore": Suite._restore,
    "verify": Suite._verify,
    "list": Suite._list,
    "help": Suite._help,
}
"""By name, in the order they run."""


def _ending(code: int, log: Path) -> str:
    """How a failed run ended, with the last line of what it printed."""
    lines = log.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return f"exit code {code}: {last[:200]}"
