"""What may be on the disk after a run has ended somewhere: a kill -9 leaves exactly what was done, a power cut takes
any of it that was not made durable.

A power cut at a moment leaves of the operations before it:

*names*, in one of two ways. *Ordered*, as file systems with a journal do it (ext4, xfs, btrfs within a log): all
operations on directories up to some point, which is not before the last one that a sync covers. *Unordered*, which no
file system is worse than: any subset of those that are not durable; durable is what changed directories that were all
synced later, or what a ``syncfs`` followed. Operations on the same name or the same inode keep their order: none is
there without the earlier ones, and no directory is gone in which there is still a name. A rename is there or not, and
that it is, is sure when the directory of its new name was synced.

*contents*. Writes to a file are durable after an fsync of it or a ``syncfs``. Those that are not: all there, none (the
file is empty), zeros in their place (the size is there, the data is not), cut off anywhere, the last of them torn (its
end is zeros or noise), or any subset of them.

*the database*: what was committed last, or at any time before, absent, empty, cut short, noise all over or in one page,
and torn within a commit: pages of the next state in the file, but not the page that makes them count.

Any combination of the three is a state. ``states`` gives distinct ones: what differs is the tree with all contents, or
the database.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from tests.crash.recording import ROOT, History, Op

Mode = Literal["kill", "ordered", "unordered"]
Directories = dict[int, dict[str, int]]

PAGE = 4096
_GARBAGE = 2  # kinds of each committed state


@dataclass(frozen=True)
class Contents:
    """Of one file in a state. ``inode``: which file it was, when it has all its data, and can be linked."""

    data: bytes
    inode: int = 0

    @cached_property
    def sum(self) -> bytes:
        return hashlib.blake2b(self.data, digest_size=16).digest()


@dataclass
class State:
    """``files``: path below the root -> contents; ``directories``: paths, parents first. ``cut``: how many operations
    were done; ``database``: bytes of its file, None when there is none, and in words ``about``."""

    mode: Mode
    cut: int
    is_done: bool
    directories: list[str]
    files: dict[str, Contents]
    database: bytes | None
    about: str

    @cached_property
    def signature(self) -> bytes:
        total = hashlib.blake2b(digest_size=16)
        for path in self.directories:
            total.update(f"{path}/\0".encode())
        for path in sorted(self.files):
            total.update(f"{path}\0".encode() + self.files[path].sum)
        total.update(b"none" if self.database is None else hashlib.blake2b(self.database).digest())
        return total.digest()

    def __str__(self) -> str:
        return f"{self.mode} after {self.cut} operations, database {self.about}"


class States:
    """Of one history."""

    def __init__(self, history: History, rng: random.Random) -> None:
        self.history = history
        self._rng = rng
        self._ops = history.ops
        self._names = [number for number, op in enumerate(self._ops) if op.entries]
        self._syncs = [number for number, op in enumerate(self._ops) if op.kind == "syncfs"]
        self._fsyncs: dict[int, list[int]] = {}
        self._writes: dict[int, list[int]] = {}
        for number, op in enumerate(self._ops):
            if op.kind == "fsync":
                self._fsyncs.setdefault(op.inode, []).append(number)
            elif op.kind in ("write", "truncate", "allocate"):
                self._writes.setdefault(op.inode, []).append(number)
        self._needs = self._dependencies()
        self._databases = [(-1, history.database)]
        self._databases += [(number, op.data) for number, op in enumerate(self._ops) if op.kind == "commit"]
        self._made = [(number, op.entries[-1].inode) for number, op in enumerate(self._ops) if op.kind == "mkdir"]
        self._built: dict[object, Contents] = {}
        self._durable_at: dict[int, frozenset[int]] = {}

    def _dependencies(self) -> dict[int, list[int]]:
        """For each operation on names the last ones before it that had to do with the same names or inodes."""
        needs: dict[int, list[int]] = {}
        last: dict[object, int] = {}
        inside: dict[int, set[object]] = {}  # directory -> names in it that were changed
        for number in self._names:
            op = self._ops[number]
            concerned: set[object] = set(inside.get(op.inode, ())) if op.kind == "rmdir" else set()
            for entry in op.entries:
                inside.setdefault(entry.directory, set()).add((entry.directory, entry.name))
                concerned |= {(entry.directory, entry.name)} | ({entry.inode} if entry.inode else set())
            needs[number] = sorted({last[each] for each in concerned if each in last})
            last |= dict.fromkeys(concerned, number)
        return needs

    # -- which are durable -------------------------------------------------------------------------------------------

    def _synced(self, number: int, cut: int, inodes: set[int]) -> bool:
        """Whether everything that operation ``number`` did to ``inodes`` was made durable before ``cut``."""

        def follows(places: list[int]) -> bool:
            place = bisect_right(places, number)
            return place < len(places) and places[place] < cut

        return follows(self._syncs) or all(follows(self._fsyncs.get(inode, [])) for inode in inodes)

    def _durable(self, cut: int) -> frozenset[int]:
        """Operations on names that no power cut takes any more, and those that they need."""
        known = self._durable_at.get(cut)
        if known is not None:
            return known
        found: set[int] = set()
        for number in reversed(self._names):
            op = self._ops[number]
            changed = op.entries[-1:] if op.kind == "rename" else op.entries
            if number < cut and (number in found or self._synced(number, cut, {entry.directory for entry in changed})):
                found |= {number, *self._needs[number]}
        self._durable_at[cut] = frozenset(found)
        return self._durable_at[cut]

    def _kept(self, cut: int, mode: Mode) -> list[int]:
        done = [number for number in self._names if number < cut]
        if mode == "kill":
            return done
        durable = self._durable(cut)
        if mode == "ordered":
            first = max(durable, default=-1)
            later = [-1, *(number for number in done if number > first)]
            last = max(first, self._rng.choice((later[-1], self._rng.choice(later))))
            return [number for number in done if number <= last]
        doubtful = [number for number in done if number not in durable]
        lost = self._some(doubtful)
        kept: set[int] = set()
        for number in done:
            if number not in lost and all(each in kept for each in self._needs[number]):
                kept.add(number)
        return [number for number in done if number in kept]

    def _some(self, doubtful: list[int]) -> set[int]:
        """A subset: few, many, one, all but one, or a run of them."""
        rng = self._rng
        if not doubtful:
            return set()
        how = rng.randrange(5)
        if how == 0:
            return {rng.choice(doubtful)}
        if how == 1:
            return set(doubtful) - {rng.choice(doubtful)}
        if how == 2:
            start = rng.randrange(len(doubtful))
            return set(doubtful[start : start + 1 + rng.randrange(8)])
        share = rng.choice((0.1, 0.5, 0.9))
        return {number for number in doubtful if rng.random() < share}

    # -- contents ----------------------------------------------------------------------------------------------------

    def _contents(self, inode: int, cut: int, mode: Mode) -> Contents:
        writes = self._writes.get(inode, [])
        done = writes[: bisect_right(writes, cut - 1)]
        durable = 0
        if mode != "kill":
            while durable < len(done) and self._synced(done[durable], cut, {inode}):
                durable += 1
        else:
            durable = len(done)
        loose = done[durable:]
        how = self._rng.choice(("all", "all", "none", "zeros", "cut", "torn", "noise", "some")) if loose else "all"
        if how == "some":
            kept = tuple(number for number in loose if self._rng.random() < 0.5)
            return self._build(inode, len(writes), (*done[:durable], *kept), "all", 0)
        if how == "none":
            return self._build(inode, len(writes), tuple(done[:durable]), "all", 0)
        where = self._rng.randrange(16) if how in ("cut", "torn", "noise") else 0
        return self._build(inode, len(writes), tuple(done), how, where, durable)

    def _build(
        self, inode: int, total: int, applied: tuple[int, ...], how: str, where: int, durable: int = 0
    ) -> Contents:
        key = (inode, applied, how, where, durable if how != "all" else 0)
        found = self._built.get(key)
        if found is None:
            if how == "all":
                data = self._written(inode, applied)
                is_whole = len(applied) == total
            else:
                data, is_whole = self._harmed(inode, applied, how, where, durable), False
            found = self._built[key] = Contents(data, inode if is_whole else 0)
        return found

    def _written(self, inode: int, applied: tuple[int, ...]) -> bytes:
        data = bytearray(self.history.contents.get(inode, b""))
        for op in (self._ops[number] for number in applied):
            _apply(data, op)
        return bytes(data)

    def _harmed(self, inode: int, applied: tuple[int, ...], how: str, where: int, durable: int) -> bytes:
        before = self._written(inode, applied[:durable])
        after = self._written(inode, applied)
        start = min(len(before), len(after))
        if before == after[: len(before)]:
            fresh = len(after) - start
        else:  # written over
            start, fresh = 0, len(after)
        place = start + fresh * where // 16
        if how == "zeros":
            return after[:start] + bytes(len(after) - start)
        if how == "cut":
            return after[:place]
        if how == "torn":
            return after[:place] + bytes(len(after) - place)
        return after[:place] + random.Random(where).randbytes(len(after) - place)

    # -- the database ------------------------------------------------------------------------------------------------

    def _database(self, cut: int) -> tuple[bytes | None, str]:
        rng = self._rng
        committed = [data for number, data in self._databases if number < cut]
        how = rng.choices(("last", "earlier", "absent", "empty", "short", "noise", "page", "torn"), _WEIGHTS)[0]
        which = len(committed) - 1 if how == "last" else rng.randrange(len(committed))
        data = committed[which]
        if data is None or how == "absent":
            return None, "absent"
        if how in ("last", "earlier"):
            return data, f"as of commit {which}"
        rng = random.Random(f"{how} {which} {rng.randrange(_GARBAGE)}")  # few of each, as each is read by a child
        pages = len(data) // PAGE
        if how == "empty":
            return b"", "empty"
        if how == "short":
            return data[: rng.randrange(1, len(data))], f"commit {which} cut short"
        if how == "noise":
            return rng.randbytes(len(data)), "noise"
        place = rng.randrange(2, pages) * PAGE
        if how == "page":
            return data[:place] + rng.randbytes(PAGE) + data[place + PAGE :], f"commit {which} with a page of noise"
        following = self._databases[which + 1][1] if which + 1 < len(self._databases) else data
        assert following is not None
        return _torn(data, following, rng), f"commit {which} with pages of the next one"

    # -- states ------------------------------------------------------------------------------------------------------

    def at(self, cut: int, mode: Mode) -> State:
        directories: Directories = {number: dict(names) for number, names in self.history.directories.items()}
        for number in self._kept(cut, mode):
            for directory, name, inode in self._ops[number].entries:
                names = directories.setdefault(directory, {})
                if inode:
                    names[name] = inode
                else:
                    names.pop(name, None)
        for number, inode in self._made:
            if number < cut:
                directories.setdefault(inode, {})
        paths: list[str] = []
        files: dict[str, Contents] = {}
        contents: dict[int, Contents] = {}

        def walk(inode: int, path: str) -> None:
            for name, child in sorted(directories[inode].items()):
                below = f"{path}/{name}" if path else name
                if child in directories:
                    paths.append(below)
                    walk(child, below)
                else:
                    if child not in contents:
                        contents[child] = self._contents(child, cut, mode)
                    files[below] = contents[child]

        walk(ROOT, "")
        data, about = self._database(cut)
        is_done = cut == len(self._ops) and self.history.is_acknowledged
        return State(mode, cut, is_done, paths, files, data, about)

    def kills(self) -> Iterator[State]:
        """What every kill -9 leaves: one state for each operation."""
        for cut in range(len(self._ops) + 1):
            yield self.at(cut, "kill")

    def any(self) -> Iterator[State]:
        """Any states, for ever. The end comes up more often: what a run has told to be done must be there."""
        while True:
            cut = len(self._ops) if self._rng.random() < 0.05 else self._rng.randrange(len(self._ops) + 1)
            yield self.at(cut, self._rng.choices(("kill", "ordered", "unordered"), (1, 3, 6))[0])


_WEIGHTS = (50, 20, 8, 2, 3, 3, 7, 7)


def _apply(data: bytearray, op: Op) -> None:
    if op.kind == "truncate":
        del data[op.offset :]
        data.extend(bytes(max(op.offset - len(data), 0)))
        return
    data.extend(bytes(max(op.offset - len(data), 0)))
    if op.data:
        data[op.offset : op.offset + len(op.data)] = op.data


def _torn(data: bytes, following: bytes, rng: random.Random) -> bytes:
    """The first pages say what counts; they are written last, when all others are durable."""
    torn = bytearray(data)
    for place in range(2 * PAGE, len(following), PAGE):
        page = following[place : place + PAGE]
        if page != data[place : place + PAGE] and rng.random() < 0.7:
            _apply(torn, Op("write", offset=place, data=page))
    return bytes(torn)
