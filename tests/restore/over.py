"""Restores over existing trees, and a model of what they must do: trees as dictionaries, rules as a few lines."""

from __future__ import annotations

import os
import random
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from archiver.browse.snapshot import Snapshot
from archiver.core.events import ignore
from archiver.restore.existing import Overwrite
from archiver.restore.plan import Action
from archiver.restore.run import RestoreOptions, RestoreResult, plan, restore
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store

SECOND = 10**9
MODES: tuple[Overwrite, ...] = ("never", "if-changed", "if-newer", "always")
_TIMES = [1_600_000_000, 1_650_000_000, 1_700_000_000]
_CONTENTS = [b"", b"aaaa", b"bbbb", b"cccc" * 20_000, b"dddd" * 20_000, b"long" * 50_001]


class Node(NamedTuple):
    """``what``: of a file its contents, of a symlink its target. ``time`` is None where it may be any."""

    kind: str
    what: bytes = b""
    mode: int = 0
    time: int | None = None


Model = dict[str, Node]  # by path, "" is the root; a directory comes before what is in it


def random_tree(rng: random.Random) -> Model:
    tree: Model = {"": Node("dir", b"", 0o755, rng.choice(_TIMES))}

    def fill(path: str, depth: int) -> None:
        for name in rng.sample("abcde", rng.randrange(1, 5)):
            inner = f"{path}/{name}" if path else name
            kind = rng.choice(["dir", "file", "file", "link"] if depth < 3 else ["file", "link"])
            time = rng.choice(_TIMES)
            if kind == "dir":
                tree[inner] = Node("dir", b"", rng.choice([0o755, 0o700]), time)
                if rng.random() < 0.8:
                    fill(inner, depth + 1)
            elif kind == "file":
                tree[inner] = Node("file", rng.choice(_CONTENTS), rng.choice([0o644, 0o600]), time)
            else:
                tree[inner] = Node("link", rng.choice([b"a", b"/etc/passwd", b".."]), 0, time)

    fill("", 0)
    return tree


def build(root: Path, tree: Model) -> Path:
    for path, node in tree.items():
        place = root / path
        if node.kind == "dir":
            place.mkdir()
        elif node.kind == "file":
            place.write_bytes(node.what)
        else:
            place.symlink_to(os.fsdecode(node.what))
        if node.kind != "link":
            place.chmod(node.mode)
    for path, node in reversed(tree.items()):
        assert node.time is not None
        os.utime(root / path, ns=(0, node.time * SECOND), follow_symlinks=False)
    return root


def read(root: Path) -> Model:
    found: Model = {}
    for place in [root, *sorted(root.rglob("*"))]:
        path = str(place.relative_to(root)) if place != root else ""
        status = place.lstat()
        time, mode = status.st_mtime_ns // SECOND, stat.S_IMODE(status.st_mode)
        if place.is_symlink():
            found[path] = Node("link", os.fsencode(os.readlink(place)), 0, time)
        elif place.is_dir():
            found[path] = Node("dir", b"", mode, time)
        else:
            found[path] = Node("file", place.read_bytes(), mode, time)
    return found


@dataclass
class Expected:
    tree: Model
    blocked: set[str] = field(default_factory=set)  # entries that cannot be restored, the topmost of each
    aside: Model = field(default_factory=dict)  # what is in the quarantine, without the directories that lead there


def expected(saved: Model, there: Model, mode: Overwrite, delete: bool) -> Expected:
    """What becomes of ``there`` when ``saved`` is restored over it."""
    done = Expected(dict(there))

    def below(path: str) -> list[str]:
        return [other for other in done.tree if other.startswith(f"{path}/") or (not path and other)]

    def take_away(path: str, *, aside: bool) -> None:
        for other in [path, *below(path)]:
            if other in done.tree:
                node = done.tree.pop(other)
                if aside:
                    done.aside[other] = node

    def changed(path: str) -> None:
        above = path.rpartition("/")[0]
        if above in done.tree:
            done.tree[above] = done.tree[above]._replace(time=None)

    for path, node in saved.items():
        if any(path.startswith(f"{blocked}/") for blocked in done.blocked):
            continue
        old = there.get(path) if path in done.tree else None
        keep = old is not None and (mode == "never" or (mode == "if-newer" and (old.time or 0) >= (node.time or 0)))
        if node.kind == "dir":
            if old is not None and keep:
                if old.kind != "dir":
                    done.blocked.add(path)
                continue
            if old is None or old.kind != "dir":
                changed(path)
            done.tree[path] = node._replace(time=node.time)
        elif not keep:
            if old is not None and old.kind == "dir" and below(path):
                if not delete:
                    done.blocked.add(path)
                    continue
                take_away(path, aside=True)
            if (
                mode == "if-changed"
                and old is not None
                and node.kind == old.kind == "file"
                and (len(old.what), old.time) == (len(node.what), node.time)
            ):
                node = node._replace(what=old.what)
            if old is None or (old.kind, old.what) != (node.kind, node.what):
                changed(path)
            done.tree[path] = node
    for path in [path for path in done.tree if path not in saved]:
        if delete and path in done.tree and _is_reached(path, saved, done):
            take_away(path, aside=True)
            changed(path)
    for path, node in saved.items():  # the time of a directory is set last
        if node.kind == "dir" and path in done.tree and done.tree[path].kind == "dir":
            old = there.get(path)
            kept = old is not None and old.kind == "dir"
            kept = (
                kept
                and old is not None
                and (mode == "never" or (mode == "if-newer" and (old.time or 0) >= (node.time or 0)))
            )
            if not kept:
                done.tree[path] = node
    return done


def _is_reached(path: str, saved: Model, done: Expected) -> bool:
    """Whether the directory around ``path`` is one that was restored."""
    above = path.rpartition("/")[0]
    return above in saved and saved[above].kind == "dir" and above not in done.blocked


def same(found: Model, wanted: Model) -> list[str]:
    lines = [f"{path}: there is {found.get(path)}, not {wanted.get(path)}" for path in found.keys() ^ wanted.keys()]
    for path in found.keys() & wanted.keys():
        one, other = found[path], wanted[path]
        if other.time is None:
            one = one._replace(time=None)
        if one != other:
            lines.append(f"{path or '/'}: {str(one)[:150]} instead of {str(other)[:150]}")
    return lines


def over(
    store: Path,
    ref: SnapshotRef,
    target: Path,
    mode: Overwrite | None = "always",
    *,
    verify: bool = True,
    delete: bool = False,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    path: bytes | None = None,
) -> RestoreResult:
    options = RestoreOptions(mode, delete, include, exclude, path)
    with Store.open(store, read_only=True) as opened:
        snapshot = Snapshot(opened, ref)
        chosen = [snapshot.archive(None)]
        return restore(snapshot, chosen, str(target), verify=verify, listener=ignore, options=options)


def planned(store: Path, ref: SnapshotRef, target: Path, mode: Overwrite, *, delete: bool = False) -> list[Action]:
    with Store.open(store, read_only=True) as opened:
        snapshot = Snapshot(opened, ref)
        options = RestoreOptions(mode, delete)
        ((_, made),) = plan(snapshot, [snapshot.archive(None)], str(target), options, ignore)
        try:
            found = list(made)
            for deed in ("create", "replace", "update", "remove", "blocked"):
                assert getattr(made.totals, deed) == sum(action.deed == deed for action in found)
            assert made.totals.bytes == sum(action.bytes for action in found)
            return found
        finally:
            made.close()


def aside(result: RestoreResult) -> Model:
    """What is in the quarantine, without the directories that lead there."""
    if not result.quarantine:
        return {}
    (place,) = result.quarantine
    return {path: node for path, node in read(Path(place)).items() if path}
