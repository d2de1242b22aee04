"""Reproducible random trees of small files, and reproducible random changes to them.

The same seed gives the same tree: names, contents, modes and all times, so two trees built alike compare equal.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND  # nanoseconds since 1970
_YEAR = 365 * 86400 * SECOND
_MODES = (0o600, 0o640, 0o644, 0o664, 0o755)


def noise(seed: int, length: int) -> bytes:
    """Incompressible bytes, the same for the same seed."""
    return random.Random(seed).randbytes(length)


def build_plain(
    root: Path, seed: int, files: int = 100, *, directories: int | None = None, max_size: int = 20_000
) -> None:
    """Fill ``root`` (made if absent) with ``files`` regular files of 0..max_size bytes, most of them small, in a random
    hierarchy of ``directories`` (default: one for eight files)."""
    rng = random.Random(seed)
    root.mkdir(exist_ok=True)
    places = [root]
    for number in range(max(1, files // 8) if directories is None else directories):
        place = rng.choice(places) / f"dir-{number}"
        place.mkdir()
        place.chmod(0o755)
        places.append(place)
    for number in range(files):
        path = rng.choice(places) / f"file-{number}{rng.choice(('', '.txt', '.c', '.bin'))}"
        _create(path, rng, int(max_size * rng.random() ** 3))
    for place in reversed(places):
        _stamp(place, rng)


def _stamp(path: Path, rng: random.Random, after: int = START) -> None:
    moment = after + 1 + rng.randrange(_YEAR)
    os.utime(path, ns=(moment, moment))


def _create(path: Path, rng: random.Random, size: int) -> None:
    if rng.random() < 0.5:
        data = rng.randbytes(size)
    else:  # compressible
        data = b"".join(rng.choices((b"alpha ", b"beta ", b"gamma\n", b"delta, "), k=size // 6 + 1))[:size]
    path.write_bytes(data)
    path.chmod(rng.choice(_MODES))
    _stamp(path, rng)


def mutate(root: Path, seed: int, changes: int = 20) -> list[str]:
    """Apply random changes to a tree of ``build_plain``; returns what was done, one ``kind path`` each.

    Every changed file gets a later mtime, every directory that gained or lost a name too. The same tree and seed give
    the same result; the kinds take turns in random order, so 11 changes hold each kind once if there are files enough.
    """
    rng = random.Random(seed)
    kinds: list[str] = []
    done: list[str] = []
    for _ in range(changes):
        if not kinds:
            kinds = sorted(_CHANGES)
            rng.shuffle(kinds)
        kind = kinds.pop()
        entries = sorted(root.rglob("*"))
        candidates = [path for path in entries if path.is_file() and not path.is_symlink()]
        places = [root, *(path for path in entries if path.is_dir())]
        if kind == "create":
            path = rng.choice(places) / f"new-{rng.randrange(10**9)}"
        elif candidates:
            path = rng.choice(candidates)
        else:
            continue
        before = {place: place.stat().st_mtime_ns for place in {path.parent, *places}}
        _CHANGES[kind](path, places, rng)
        for place in sorted(before):
            if place.is_dir() and place.stat().st_mtime_ns != before[place]:
                _stamp(place, rng, before[place])
        done.append(f"{kind} {path.relative_to(root)}")
    return done


def _delete(path: Path, places: list[Path], rng: random.Random) -> None:
    path.unlink()


def _rename(path: Path, places: list[Path], rng: random.Random) -> None:
    path.rename(rng.choice(places) / f"moved-{rng.randrange(10**9)}")


def _rewrite(path: Path, places: list[Path], rng: random.Random) -> None:
    """Other bytes, same size."""
    before = path.stat()
    path.write_bytes(rng.randbytes(before.st_size))
    _stamp(path, rng, before.st_mtime_ns)


def _append(path: Path, places: list[Path], rng: random.Random) -> None:
    before = path.stat()
    with path.open("ab") as file:
        file.write(rng.randbytes(1 + rng.randrange(5000)))
    _stamp(path, rng, before.st_mtime_ns)


def _truncate(path: Path, places: list[Path], rng: random.Random) -> None:
    before = path.stat()
    os.truncate(path, rng.randrange(before.st_size) if before.st_size else 0)
    _stamp(path, rng, before.st_mtime_ns)


def _touch(path: Path, places: list[Path], rng: random.Random) -> None:
    _stamp(path, rng, path.stat().st_mtime_ns)


def _chmod(path: Path, places: list[Path], rng: random.Random) -> None:
    path.chmod(rng.choice([mode for mode in _MODES if mode != path.stat().st_mode & 0o7777]))


def _to_directory(path: Path, places: list[Path], rng: random.Random) -> None:
    path.unlink()
    path.mkdir()
    path.chmod(0o750)
    _create(path / "inside", rng, rng.randrange(2000))
    _stamp(path, rng)


def _to_symlink(path: Path, places: list[Path], rng: random.Random) -> None:
    path.unlink()
    path.symlink_to("file-0")
    os.utime(path, ns=(START, START), follow_symlinks=False)


def _rename_directory(path: Path, places: list[Path], rng: random.Random) -> None:
    """Rename the directory that holds the file; in the root the file itself."""
    moved = path if path.parent == places[0] else path.parent
    moved.rename(moved.with_name(f"renamed-{rng.randrange(10**9)}"))


_CHANGES: dict[str, Callable[[Path, list[Path], random.Random], None]] = {
    "append": _append,
    "chmod": _chmod,
    "create": lambda path, places, rng: _create(path, rng, rng.randrange(5000)),
    "delete": _delete,
    "rename": _rename,
    "rename-directory": _rename_directory,
    "rewrite": _rewrite,
    "to-directory": _to_directory,
    "to-symlink": _to_symlink,
    "touch": _touch,
    "truncate": _truncate,
}
