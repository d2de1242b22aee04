"""What is backed up: a directory of the user's, or one built below the work directory and kept for the next run.

| name   | is                                                                            |
|--------|-------------------------------------------------------------------------------|
| small  | /usr/share, many small files                                                  |
| large  | 1 GiB of random bytes, and a tar of 1 GiB of executables and libraries        |
| tiny-N | N files of 10 to 200 bytes, 100 to a directory, 100 directories to a directory |
| PATH   | any directory                                                                 |
"""

from __future__ import annotations

import os
import random
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import trees

SMALL = Path("/usr/share")
PROGRAM_DIRECTORIES = (Path("/usr/bin"), Path("/usr/lib"))
LARGE_HALF = 1 << 30
BLOCK = 1 << 20
FAN_OUT = 100
SEED = 20_240_229
CLOCK_STEP_SECONDS = 0.05  # more than the grain of a file system's clock
YEAR_NS = 365 * 86_400 * 10**9
ELF = b"\x7fELF"


@dataclass(frozen=True, slots=True)
class DataSet:
    """A directory to back up; ``entries`` and ``size`` (bytes of file content) are what it holds below its root."""

    name: str
    root: Path
    entries: int
    size: int


def take(name: str, root: Path) -> DataSet:
    """The directory ``root`` as it is; NotADirectoryError when it is none."""
    root = root.resolve()
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a directory")
    entries = size = 0
    for entry in trees.walk(root):
        entries += 1
        size += entry.status.st_size if entry.is_file else 0
    return DataSet(name, root, entries, size)


def choose(name: str, directory: Path) -> DataSet:
    """The data set of that name; ``directory`` is where built ones are kept."""
    if name == "small":
        return take(name, SMALL)
    if name == "large":
        return large(directory)
    return take(name, Path(name))


def large(
    directory: Path, half: int = LARGE_HALF, program_directories: Sequence[Path] = PROGRAM_DIRECTORIES
) -> DataSet:
    """Two files of about ``half`` bytes each, random and a tar of executables (as far as there are any); one empty."""

    def build(root: Path) -> None:
        generator = random.Random(SEED)
        with (root / "random").open("wb") as file:
            for start in range(0, half, BLOCK):
                file.write(generator.randbytes(min(BLOCK, half - start)))
        with tarfile.open(root / "programs.tar", "w") as archive:
            for path in programs(program_directories, half):
                archive.add(path, recursive=False)
        # borg reads the newest file again each time; that must not be one of only two, so there is a later third.
        time.sleep(CLOCK_STEP_SECONDS)
        (root / "newest").touch()

    return _built("large", directory, build)


def tiny(directory: Path, count: int) -> DataSet:
    """``count`` different files of 10 to 200 bytes, modified at different times of one year."""

    def build(root: Path) -> None:
        generator = random.Random(SEED)
        for number in range(count):
            group, rest = divmod(number, FAN_OUT * FAN_OUT)
            folder = root / f"{group:04d}" / f"{rest // FAN_OUT:02d}"
            if rest % FAN_OUT == 0:
                folder.mkdir(parents=True)
            path = folder / f"file-{number:07d}.txt"
            path.write_bytes(generator.randbytes(generator.randint(10, 200)))
            modified = generator.randrange(50 * YEAR_NS, 51 * YEAR_NS)
            os.utime(path, ns=(modified, modified))

    return _built(f"tiny-{count}", directory, build)


def _built(name: str, directory: Path, build: Callable[[Path], None]) -> DataSet:
    """``directory/name``, built when it is not there; a build cut short never gets the final name."""
    root = directory / name
    if not root.exists():
        partial = directory / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        build(partial)
        partial.rename(root)
    return take(name, root)


def programs(directories: Sequence[Path], size: int) -> Iterator[Path]:
    """Executables and libraries below ``directories``, each inode once, until they are ``size`` bytes together."""
    seen: set[int] = set()
    for directory in directories:
        for entry in trees.walk(directory):
            if size <= 0:
                return
            if entry.is_file and entry.status.st_ino not in seen and _is_elf(entry.path):
                seen.add(entry.status.st_ino)
                size -= entry.status.st_size
                yield Path(entry.path)


def _is_elf(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            return file.read(len(ELF)) == ELF
    except PermissionError:
        return False
