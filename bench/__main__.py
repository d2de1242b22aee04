"""Runs this program, restic and borg on the same data in one run, checks each restore, and prints a table.

Exit code 1 when a run failed or a restore differs from its source, however fast it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import datasets, peers, report, trees
from bench.datasets import DataSet
from bench.suite import WORKLOADS, Row, Suite


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        work = options.work
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="archiver-", dir="/var/tmp")))
        # A name of our own below it: what is in there may be removed, whatever else the user keeps in that directory.
        work = work.resolve() / "archiver-bench"
        work.mkdir(parents=True, exist_ok=True)
        try:
            chosen = _data(options, work)
        except OSError as error:
            parser.error(str(error))
        for data in chosen:
            if work.is_relative_to(data.root):
                parser.error(f"--work {work} is inside the data {data.root}: name another directory")
        return _compare(options, chosen, work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="NAME",
        help="small (/usr/share), large (1 GiB random, 1 GiB programs) or a directory; default: small large",
    )
    parser.add_argument("--generate", type=_count, metavar="N", help="also take a generated tree of N tiny files")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="workloads; default: all")
    parser.add_argument("--repeat", type=_count, default=3, metavar="R", help="rounds; default: 3")
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="for repositories, restores, logs and built data (the last two are kept); default: a temporary one",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements there too")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _data(options: argparse.Namespace, work: Path) -> list[DataSet]:
    names = options.data or ([] if options.generate else ["small", "large"])
    chosen = [datasets.choose(name, work / "data") for name in names]
    if options.generate:
        chosen.append(datasets.tiny(work / "data", options.generate))
    return chosen


def _compare(options: argparse.Namespace, chosen: Sequence[DataSet], work: Path) -> int:
    candidates = peers.programs()
    versions = {program.name: program.version() for program in candidates}
    installed = [program for program in candidates if versions[program.name] is not None]
    rows: list[Row] = []
    runs = work / "runs"
    trees.remove(runs)
    try:
        for number, data in enumerate(chosen):
            suite = Suite(data, installed, runs / str(number), work / "logs", repeat=options.repeat, progress=_progress)
            rows += suite.run([name for name in WORKLOADS if name in options.only])
    finally:
        trees.remove(runs)
    print(report.table(chosen, versions, rows, work))
    if options.json:
        options.json.write_text(json.dumps(report.document(chosen, versions, rows, work), indent=2) + "\n")
    return 1 if any(row.problems for row in rows) else 0


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
