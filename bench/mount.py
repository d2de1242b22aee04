"""Mounts of large archives: ``python -m bench.mount``. How long it takes until something is there, and how fast it is.

A tree of many small files and one large one is made and saved, or a store that has one is given. Each step is told with
its wall time and with the CPU time of the program that serves the mount, which other work on the machine does not
change; and its anonymous memory (RssAnon) in the end. The target: mounted in half a second, whatever the size.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

EACH = 20  # files in a directory
FAN = 50  # directories in one
BLOCK = 1 << 20
_PATIENCE = 60  # seconds


def make_tree(root: Path, files: int, large: int) -> None:
    """``files`` small files, three directories deep, and ``large`` MiB that cannot be compressed."""
    for first in range(0, files, EACH):
        number = first // EACH
        place = (
            root / f"top-{number // FAN // FAN:03d}" / f"middle-{number // FAN % FAN:02d}" / f"leaf-{number % FAN:02d}"
        )
        place.mkdir(parents=True)
        for each in range(first, min(first + EACH, files)):
            (place / f"report-{each:08d}.txt").write_bytes(b"%d" % each)
    with open(root / "large", "wb") as file:
        for _ in range(large):
            file.write(os.urandom(BLOCK))


class Served:
    """A mount and the program behind it."""

    def __init__(self, store: Path, place: Path) -> None:
        self.place = place
        command = [sys.executable, "-m", "archiver", "--store", str(store), "mount", "latest", str(place)]
        began = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not os.path.ismount(place):
            if self.process.poll() is not None or time.monotonic() - began > _PATIENCE:
                raise SystemExit("it could not be mounted")
            time.sleep(0.002)
        self._tell("mounted", time.monotonic() - began, self.cpu(), "")

    def cpu(self) -> float:
        """Seconds so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Anonymous, in bytes."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))

    def step(self, what: str, work: Callable[[], str]) -> None:
        """``work`` returns what it has found."""
        began, cpu = time.monotonic(), self.cpu()
        found = work()
        self._tell(what, time.monotonic() - began, self.cpu() - cpu, found)

    def _tell(self, what: str, wall: float, cpu: float, found: str) -> None:
        print(f"{what}: {wall:.3f} s, {cpu:.2f} s CPU{found and ', '}{found}", flush=True)


def measure(store: Path, place: Path) -> None:
    served = Served(store, place)
    try:
        (root,) = place.iterdir()
        served.step("list the root", lambda: f"{len(os.listdir(root))} entries")
        first = next(path for path in sorted(root.iterdir()) if path.name.startswith("top"))
        leaf = next(next(first.iterdir()).iterdir())
        served.step("list a directory", lambda: f"{len(os.listdir(leaf))} entries")
        file, other = sorted(leaf.iterdir())[:2]
        served.step("the first file's attributes and contents", lambda: f"{len(file.read_bytes())} bytes")
        served.step("another file's", lambda: f"{len(other.read_bytes())} bytes")
        served.step("read the large file", lambda: _read(root / "large"))
        served.step("all names and attributes", lambda: _walk(root))
        print(f"memory: {served.memory() >> 20} MiB", flush=True)
    finally:
        served.process.terminate()
        served.process.wait()


def _read(path: Path) -> str:
    size = 0
    with open(path, "rb", buffering=0) as file:
        while data := file.read(BLOCK):
            size += len(data)
    return f"{size >> 20} MiB"


def _walk(root: Path) -> str:
    count, todo = 0, [str(root)]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                else:
                    entry.stat(follow_symlinks=False)
    return f"{count} entries"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.mount", description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=1_000_000, help="small files (%(default)s)")
    parser.add_argument("--large", type=int, default=1024, help="MiB of the large file (%(default)s)")
    parser.add_argument("--store", type=Path, help="use the newest snapshot of this store; nothing is made then")
    parser.add_argument("--directory", type=Path, help="where to work (the system's temporary directory)")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="archiver-mount-", dir=chosen.directory) as directory:
        base, store = Path(directory), chosen.store
        if store is None:
            store, tree = base / "store", base / "tree"
            make_tree(tree, chosen.files, chosen.large)
            for command in (["init", str(store)], ["--store", str(store), "backup", f"tree.pxar:{tree}", "-q"]):
                subprocess.run([sys.executable, "-m", "archiver", *command], check=True, stdout=subprocess.DEVNULL)
        (base / "mounted").mkdir()
        measure(store, base / "mounted")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
