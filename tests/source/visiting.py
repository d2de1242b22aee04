"""Goes through a walk as an archive writer does, and what an independent look at the same tree finds."""

from __future__ import annotations

import os
import stat as st
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from archiver.source.problem import Problem
from archiver.source.walk import SourceDirectory, SourceEntry, Walk, WalkOptions


class Seen(NamedTuple):
    """``entered`` is the directory that ``entry`` is, None for everything else."""

    path: bytes
    entry: SourceEntry
    entered: SourceDirectory | None


def entries_of(directory: SourceDirectory) -> Iterator[SourceEntry]:
    """The selected entries, sorted by bytes; each is looked at when it is reached."""
    for name in directory.names:
        (stat,) = directory.look_at([name], lambda name, stat: 0).stats
        if stat is not None:
            yield SourceEntry(name, stat)


def visit(walk: Walk) -> Iterator[Seen]:
    """Everything below the root, each directory before what it holds."""
    stack = [walk.open_root()]
    entries = [entries_of(stack[0])]
    while stack:
        entry = next(entries[-1], None)
        if entry is None:
            entries.pop()
            stack.pop()
            if stack:
                walk.leave()
            continue
        path = stack[-1].path_of(entry.name)
        if not st.S_ISDIR(entry.stat.st_mode):
            yield Seen(path, entry, None)
        elif (entered := walk.enter(entry)) is not None:
            stack.append(entered)
            entries.append(entries_of(entered))
            yield Seen(path, entry, entered)


def walked(root: Path, options: WalkOptions | None = None) -> tuple[list[bytes], list[Problem]]:
    """(paths in the order of the walk, problems)."""
    problems: list[Problem] = []
    with Walk(os.fsencode(root), options or WalkOptions(), problems.append) as walk:
        return [seen.path for seen in visit(walk)], problems


def paths_of(root: Path, options: WalkOptions | None = None) -> list[bytes]:
    """The paths of a walk that meets no problem."""
    paths, problems = walked(root, options)
    assert problems == []
    return paths


def found(root: Path) -> list[bytes]:
    """What find(1) finds, in the order that a walk has: each directory's names sorted by bytes."""
    done = subprocess.run(["find", root, "-mindepth", "1", "-printf", "/%P\\0"], stdout=subprocess.PIPE, check=True)
    return sorted(done.stdout.split(b"\0")[:-1], key=lambda path: path.split(b"/"))


def descriptors() -> set[str]:
    """Open descriptors and what they are, without the one that is needed to look."""
    open_now = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            open_now.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except OSError:
            pass
    return open_now


def descriptor_count() -> int:
    return len(os.listdir("/proc/self/fd")) - 1
