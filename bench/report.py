"""What the runs showed, as a table for people and as a document for scripts.

Times are medians over the rounds. A ratio says how many times as fast this program is as the other (its wall time over
ours); ``vs faster`` takes the faster of the others. The other way round ``vs plain`` is wall time over that without
encryption, ``vs limit`` over that of the bare necessary work.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from bench.datasets import DataSet
from bench.suite import LIMIT, Row

PLAIN = "archiver"
WITH_KEY = "archiver+key"
PEERS = ("restic", "borg")
RATIOS = (*PEERS, "faster", "plain", LIMIT)
TITLES = {
    "first": "first backup",
    "unchanged": "nothing changed",
    "changed": "1 % of the files changed",
    "restore": "restore",
    "verify": "verify everything",
    "list": "list snapshots",
    "help": "--help",
}
HEADER = (
    "data",
    "work",
    "program",
    "wall s",
    "(min-max)",
    "CPU s",
    "peak MiB",
    "anon MiB",
    "stored MiB",
    "entries/s",
    "read MiB",
    "db KiB",
    "db file",
    "check",
)
WORDS = 3  # columns of words, to the left of those of numbers
SHOWN_PROBLEMS = 5
NOTES = """\
wall, CPU: medians; peak: largest resident set, mapped files included; anon: largest RssAnon seen, sampled every 20 ms.
stored: allocated on disk after the first backup, our database included.
entries/s: entries of the tree, changed or not; read: file content that was read (only archiver tells).
db, db file: growth of the pages in use and of the file of archiver's database, KiB.
limit: the bare necessary work on two threads: read, SHA-256, zstd-1, write.
restic always encrypts, borg does not here, archiver+key is ours with encryption. Our default restore reads back what it
wrote; restic's and borg's do not, and their default restore is what both of our restore rows are compared with."""


def ratios(row: Row, rows: Iterable[Row]) -> dict[str, float]:
    """The ratios of ``row`` by name (see RATIOS), as far as both sides have runs; only ours are compared with peers."""
    if not row.runs:
        return {}
    same = {
        other.label: _wall(other)
        for other in rows
        if (other.data, other.workload) == (row.data, row.workload) and other.runs
    }
    found = {}
    if row.program in (PLAIN, WITH_KEY):
        found = {peer: same[peer] / _wall(row) for peer in PEERS if peer in same}
        if found:
            found["faster"] = min(found.values())
    plain = row.label.replace(WITH_KEY, PLAIN)
    if row.program == WITH_KEY and plain in same:
        found["plain"] = _wall(row) / same[plain]
    if LIMIT in same and row.program != LIMIT:
        found[LIMIT] = _wall(row) / same[LIMIT]
    return found


def document(
    data: Sequence[DataSet], versions: Mapping[str, str | None], rows: Sequence[Row], directory: Path
) -> dict[str, Any]:
    """Everything measured: seconds and bytes; a program that is not installed has the version null."""
    return {
        "schema": 1,
        "machine": machine(directory),
        "programs": dict(versions),
        "data": [{**asdict(one), "root": str(one.root)} for one in data],
        "items": [{**asdict(row), "ratios": ratios(row, rows)} for row in rows],
    }


def machine(directory: Path) -> dict[str, str | int]:
    """What the numbers depend on; ``file_system`` is the type of the one the repositories are on."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "file_system": _file_system(directory),
    }


def table(data: Sequence[DataSet], versions: Mapping[str, str | None], rows: Sequence[Row], directory: Path) -> str:
    """The plain text report, problems at its end."""
    facts = machine(directory)
    lines = [
        f"{facts['processor']}, {facts['cores']} cores, {int(facts['memory_bytes']) / 2**30:.0f} GiB, "
        f"{facts['system']}, Python {facts['python']}; repositories on {facts['file_system']}",
        "programs: " + ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items()),
        *(f"data {one.name}: {one.root}, {one.entries} entries, {one.size / 2**20:.1f} MiB" for one in data),
        "",
    ]
    cells = [(*HEADER, *(f"vs {name}" for name in RATIOS)), *(_cells(row, rows) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        words = [cell.ljust(width) for cell, width in zip(line[:WORDS], widths[:WORDS], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(line[WORDS:], widths[WORDS:], strict=True)]
        lines.append("  ".join(words + numbers))
    lines += ["", NOTES]
    problems = [
        f"{row.data}: {TITLES[row.workload]}: {row.label}: {problem}"
        for row in rows
        for problem in [*row.problems[:SHOWN_PROBLEMS], *_rest(row.problems)]
    ]
    if problems:
        lines += ["", "PROBLEMS", *problems]
    return "\n".join(lines)


def _cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    against = ratios(row, rows)
    walls = [run.wall for run in row.runs]
    state = "FAILED" if row.problems else "ok" if row.checked else "-"
    return (
        row.data,
        TITLES[row.workload],
        row.label,
        _seconds(median(walls)) if walls else "-",
        f"({_seconds(min(walls))}-{_seconds(max(walls))})" if walls else "-",
        _seconds(median(run.cpu for run in row.runs)) if walls else "-",
        _mebibytes(max((run.rss for run in row.runs), default=None)),
        _mebibytes(max((run.anon for run in row.runs), default=None)),
        _mebibytes(row.stored),
        f"{row.entries / median(walls):.0f}" if walls and row.entries else "-",
        f"{median(row.bytes_read) / 2**20:.1f}" if row.bytes_read else "-",
        *_growth(row),
        state,
        *(f"{against[name]:.2f}x" if name in against else "-" for name in RATIOS),
    )


def _growth(row: Row) -> tuple[str, str]:
    if not row.growth:
        return "-", "-"
    used = median(growth.used for growth in row.growth)
    length = median(growth.length for growth in row.growth)
    return f"{used / 1024:+.0f}", f"{length / 1024:+.0f}"


def _rest(problems: Sequence[str]) -> list[str]:
    more = len(problems) - SHOWN_PROBLEMS
    return [f"and {more} more"] if more > 0 else []


def _wall(row: Row) -> float:
    return median(run.wall for run in row.runs)


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def _mebibytes(value: int | None) -> str:
    return f"{value / 2**20:.1f}" if value else "-"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(directory: Path) -> str:
    """The type of the file system that ``directory`` is on: of its deepest mount point, what was mounted there last."""
    best, kind = -1, "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        mount_point, mounted = line.split()[1:3]
        if directory.resolve().is_relative_to(mount_point) and len(mount_point) >= best:
            best, kind = len(mount_point), mounted
    return kind
