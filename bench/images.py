"""Images from standard input: this program, restic and borg on the same bytes, half of them random, half executables.

    python -m bench.images [--size MIB] [--rounds N] [--directory DIR]

Each round saves the image into a new repository, then the same once more. The programs take turns, and of each the
fastest round counts; restores are compared with the image.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from bench import measure
from bench.datasets import large
from bench.peers import Archiver, Command, Program, Restic, programs


def command(program: Program, place: Path, image: Path, name: str) -> Command:
    """Saves standard input, which is ``image``."""
    if isinstance(program, Archiver):
        words = [sys.executable, "-m", "archiver", "--store", str(program.repository(place)), "backup", "disk.img:-"]
        words += ["--id", "bench"]
    elif isinstance(program, Restic):
        words = ["restic", "backup", "--stdin", "--stdin-filename", "disk.img"]
    else:
        words = ["borg", "create", "--compression", "zstd,1", f"::{name}", "-"]
    return ["sh", "-c", f"exec {shlex.join(words)} < {shlex.quote(str(image))}"]


def restore(program: Program, place: Path) -> Command:
    """Writes the image to standard output."""
    if isinstance(program, Archiver):
        base = [sys.executable, "-m", "archiver", "--store", str(program.repository(place))]
        return [*base, "cat", "host/bench", "disk.img"]
    if isinstance(program, Restic):
        return ["restic", "dump", "latest", "disk.img"]
    return ["borg", "extract", "--stdout", "::first"]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.images", description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=2048, help="of the image in MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args(arguments)
    found = [program for program in programs() if program.version() is not None]
    times: defaultdict[tuple[str, str], list[measure.Usage]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="bench-images-", dir=options.directory) as temporary:
        base = Path(temporary)
        image = make_image(base, options.size << 20)
        print(f"an image of {image.stat().st_size >> 20} MiB, {options.rounds} rounds", flush=True)
        for _ in range(options.rounds):
            for program in found:
                place = base / program.name
                environment = program.environment(place)
                subprocess.run(program.init(place), check=True, capture_output=True, env=environment, cwd=Path.cwd())
                for name in ("first", "again"):
                    with image.open("rb") as file:
                        while file.read(1 << 24):
                            pass
                    subprocess.run(["sync"], check=True)
                    done = measure.run(
                        command(program, place, image, name),
                        environment=environment,
                        cwd=Path.cwd(),
                        output=base / "output",
                    )
                    if done.code:
                        raise SystemExit(f"{program.name} failed: {(base / 'output').read_text()}")
                    times[name, program.name].append(done.usage)
                compare(restore(program, place), environment, image)
                shutil.rmtree(place)
    report(times)
    return 0


def make_image(directory: Path, size: int) -> Path:
    data = large(directory, size // 2)
    image = directory / "image"
    with image.open("wb") as file:
        for name in ("random", "programs.tar"):
            with (data.root / name).open("rb") as part:
                shutil.copyfileobj(part, file, 1 << 20)
            (data.root / name).unlink()
    return image


def compare(command: Command, environment: dict[str, str], image: Path) -> None:
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as running:
        done = subprocess.run(["cmp", "-", str(image)], stdin=running.stdout, check=False)
    if done.returncode or running.returncode:
        raise SystemExit(f"{command[0]} gave back something else")


def report(times: dict[tuple[str, str], list[measure.Usage]]) -> None:
    for work in ("first", "again"):
        best = {name: min(runs, key=lambda run: run.wall) for (what, name), runs in times.items() if what == work}
        peers = [usage.wall for name, usage in best.items() if name in ("restic", "borg")]
        for name, usage in best.items():
            ratio = f", {min(peers) / usage.wall:.2f} times as fast as the faster of them" if peers else ""
            ratio = ratio if name.startswith("archiver") else ""
            took = f"{usage.wall:6.2f} s, {usage.cpu:6.2f} s of CPU, {usage.anon >> 20} MiB anonymous memory"
            print(f"{work:5} {name:12} {took}{ratio}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
