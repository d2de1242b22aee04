"""What happens to a tree between two backups: one file in a hundred changes, the same ones on every machine.

| share | of the files chosen                                                                          |
|-------|----------------------------------------------------------------------------------------------|
| 50 %  | rewritten in place: a random range of at most 64 KiB gets other bytes, the size stays        |
| 20 %  | grown: up to a tenth of its size, at most 1 MiB, is put behind its end                       |
| 10 %  | get a new neighbour of their size, at most 64 KiB                                            |
| 10 %  | deleted                                                                                      |
| 10 %  | renamed, half of them within their directory, half into that of another file                 |

Empty files are never chosen: nothing in them can be rewritten.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from pathlib import Path

from bench import trees

RATE = 0.01
REWRITTEN, GROWN, NEW, DELETED = 0.5, 0.7, 0.8, 0.9  # of the chosen files, these and all before them
SEED = 20_240_229
RANGE = 64 << 10
GROWTH = 1 << 20


def copy(source: Path, target: Path) -> None:
    """``target``, which is not there yet, becomes a tree like ``source``, without what this user may not read.

    Raises OSError when not even the directory could be made.
    """
    command = ["cp", "-a", "--one-file-system", "--", str(source), str(target)]
    copied = subprocess.run(command, capture_output=True, text=True, check=False)
    if not target.is_dir():
        raise OSError(f"cannot copy {source}: {copied.stderr.strip() or 'cp was killed'}")


def apply(root: Path, number: int) -> int:
    """Makes change ``number`` (which seeds it) to the tree, and returns how many files were chosen: one at least, if
    there is one that is not empty."""
    generator = random.Random(f"{SEED} {number}")
    files = [Path(entry.path) for entry in trees.walk(root) if entry.is_file and entry.status.st_size]
    chosen = generator.sample(files, min(max(round(len(files) * RATE), 1), len(files)))
    for place, path in enumerate(chosen):
        name = f"{number}-{place}"
        match place / len(chosen):
            case share if share < REWRITTEN:
                _rewrite(path, generator)
            case share if share < GROWN:
                _grow(path, generator)
            case share if share < NEW:
                size = min(path.lstat().st_size, RANGE)
                path.with_name(f"new-{name}").write_bytes(generator.randbytes(size))
            case share if share < DELETED:
                path.unlink()
            case _:
                there = generator.choice((path, generator.choice(files)))
                shutil.move(path, there.with_name(f"renamed-{name}"))
    return len(chosen)


def _rewrite(path: Path, generator: random.Random) -> None:
    size = path.lstat().st_size
    length = generator.randint(1, min(size, RANGE))
    _put(path, generator.randrange(size - length + 1), generator.randbytes(length))


def _grow(path: Path, generator: random.Random) -> None:
    size = path.lstat().st_size
    _put(path, size, generator.randbytes(generator.randint(1, min(max(size // 10, 1), GROWTH))))


def _put(path: Path, offset: int, data: bytes) -> None:
    mode = stat.S_IMODE(path.lstat().st_mode)
    os.chmod(path, mode | stat.S_IWUSR)
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        file.write(data)
    os.chmod(path, mode)
