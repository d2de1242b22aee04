"""Builds the emulated machine, runs the program in it over a tape library, and prints what was found.

Exit code 1 when a check failed or the machine did not come to its end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.tape_rig import image, machine, packages
from bench.tape_rig.packages import RigError

_SECONDS = 1800.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tape_rig", description=__doc__)
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="packages (kept there), the machine and its console; default: temporary",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all reports there too")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        work = options.work
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="archiver-tape-rig-", dir="/var/tmp")))
        work = work.resolve()
        work.mkdir(parents=True, exist_ok=True)
        reports: list[dict[str, Any]] = []
        try:
            _progress("fetching packages")
            debs = packages.fetch(work)
            _progress("building the machine")
            root, kernel = packages.unpack(debs, work)
            image.add_project(root)
            image.write(root, work / "image")
            _progress("starting it")
            for report in machine.run(kernel, work / "image", work, seconds=_SECONDS):
                reports.append(report)
                _show(report)
        except RigError as error:
            print(f"the rig: {error}", file=sys.stderr)
            return 1
        finally:
            if options.json:
                options.json.write_text(json.dumps({"schema": 1, "items": reports}, indent=2) + "\n")
        checks = [report for report in reports if "check" in report]
        failed = [report for report in checks if report["problem"] is not None]
        print(f"{len(checks)} checks, {len(failed)} failed")
        if not checks:
            print((work / "console").read_text(errors="replace")[-2000:], file=sys.stderr)
        return 1 if failed or not checks else 0


def _show(report: dict[str, Any]) -> None:
    if "fact" in report:
        print(f"      {report['fact']}: {report['value']}", flush=True)
        return
    verdict = "ok  " if report["problem"] is None else "FAIL"
    print(f"{verdict}  {report['check']} ({report['seconds']} s)", flush=True)
    for line in (report["problem"] or "").splitlines():
        print(f"        {line}", flush=True)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
