"""A directory tree that lives: every way in which people and programs change files between two backups.

A change is a kind and a seed; the same changes in the same order give the same tree, but for change times and inodes.
Each content gets a modification time that no other content has, earlier or later than those before: with the same size
and time in the same place, a file counts as unchanged by the rule of PBS. In a *forged* tree all contents have the same
time, so that nothing but inode and change time tells them apart.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.attributes import (
    GROUP_OBJ,
    MASK,
    NO_ID,
    NOATIME,
    OTHER,
    USER,
    USER_OBJ,
    acl_value,
    change_flags,
    write_sparse,
)
from tests.compare import Description
from tests.random_trees import START, noise

EXCLUDE_FILE = ".pxarexclude"
_LINES = ("*.skip", "*.tmp", "*.skip\n*.tmp", "!*.skip", "# nothing", "")
_NAMES = [f"{letter}{suffix}" for letter in "abcdefgh" for suffix in ("", "", ".skip", ".tmp")]
_PLACES = [f"d{number}{suffix}" for number in range(6) for suffix in ("", "", "", ".skip")]
_SIZES = (0, 1, 500, 4096, 20_000, 70_000, 300_000)
_MODES = (0o600, 0o640, 0o644, 0o755)
_ATTRIBUTES = ("user.a", "user.b", "user.long-name")
_ACLS = [
    acl_value(
        (USER_OBJ, 7, NO_ID), (USER, rights, 1000), (GROUP_OBJ, 5, NO_ID), (MASK, rights, NO_ID), (OTHER, 0, NO_ID)
    )
    for rights in (4, 5, 7)
]
_SPARSE = 3 << 20


class LivingTree:
    def __init__(self, root: Path, *, forged: bool = False) -> None:
        self.root = root
        self.forged = forged
        self._count = 0
        root.mkdir()

    def change(self, kind: str, seed: int) -> None:
        """Does nothing where the tree has nothing to do it with."""
        CHANGES[kind](self, random.Random(f"{kind} {seed}"))

    # -- what there is -----------------------------------------------------------------------------------------------

    def _entries(self) -> tuple[list[Path], list[Path]]:
        """(directories, regular files but exclude files), sorted; the root is no entry."""
        directories, files = [], []
        for place, below, names in os.walk(self.root):
            directories += [Path(place, name) for name in below if not Path(place, name).is_symlink()]
            files += [Path(place, name) for name in names if name != EXCLUDE_FILE]
        regular = [path for path in files if path.is_file() and not path.is_symlink()]
        return sorted(directories), sorted(regular)

    def _file(self, rng: random.Random) -> Path | None:
        files = self._entries()[1]
        return rng.choice(files) if files else None

    def _directory(self, rng: random.Random) -> Path | None:
        directories = self._entries()[0]
        return rng.choice(directories) if directories else None

    def _either(self, rng: random.Random) -> Path:
        directories, files = self._entries()
        return rng.choice([self.root, *directories, *files])

    def _free(self, rng: random.Random, names: list[str], within: Path | None = None) -> Path | None:
        """A name that is not taken, in any directory or in ``within``."""
        place = within or rng.choice([self.root, *self._entries()[0]])
        path = place / rng.choice(names)
        return None if os.path.lexists(path) else path

    # -- contents ----------------------------------------------------------------------------------------------------

    def _stamp(self, path: Path) -> None:
        self._count += 1
        moment = START if self.forged else START + self._count * (1_000_003 if self._count % 3 else -1_000_003)
        os.utime(path, ns=(moment, moment))

    def _noise(self, size: int) -> bytes:
        self._count += 1
        return noise(self._count, size)

    def _put(self, path: Path, size: int) -> None:
        path.write_bytes(self._noise(size))
        self._stamp(path)

    def create(self, rng: random.Random) -> None:
        if path := self._free(rng, _NAMES):
            self._put(path, rng.choice(_SIZES))

    def rewrite(self, rng: random.Random) -> None:
        """Other bytes in place, the same size."""
        if path := self._file(rng):
            with path.open("r+b") as file:
                file.write(self._noise(min(path.stat().st_size, 1 << 20)))
            self._stamp(path)

    def replace(self, rng: random.Random) -> None:
        """A new file by the old name, as editors do it, now and then of the same size."""
        if path := self._file(rng):
            fresh = self.root / "fresh"
            self._put(fresh, rng.choice((min(path.stat().st_size, 1 << 20), 3000)))
            fresh.rename(path)

    def append(self, rng: random.Random) -> None:
        if path := self._file(rng):
            with path.open("ab") as file:
                file.write(self._noise(rng.choice((1, 5000, 100_000))))
            self._stamp(path)

    def truncate(self, rng: random.Random) -> None:
        """Shorter, or longer by a hole."""
        if path := self._file(rng):
            os.truncate(path, int(path.stat().st_size * rng.choice((0, 0.3, 0.9, 1.5))))
            self._stamp(path)

    def touch(self, rng: random.Random) -> None:
        self._stamp(self._either(rng))

    def sparse(self, rng: random.Random) -> None:
        if path := self._free(rng, _NAMES):
            write_sparse(path, _SPARSE, {rng.randrange(_SPARSE - 5000): self._noise(5000)})
            self._stamp(path)

    def many_empty(self, rng: random.Random) -> None:
        if path := self._free(rng, _PLACES):
            path.mkdir()
            for number in range(150):
                (path / f"empty-{number}").touch()

    def huge_directory(self, rng: random.Random) -> None:
        """3,000 names; one more when they are there already."""
        path = self.root / "huge"
        if path.is_dir():
            self._put(path / f"entry-{rng.randrange(10**6)}-inserted", 100)
        elif not os.path.lexists(path):
            path.mkdir()
            for number in range(3000):
                self._put(path / f"entry-{number * 331}", number % 7 * 10)

    # -- names -------------------------------------------------------------------------------------------------------

    def delete(self, rng: random.Random) -> None:
        if path := self._file(rng):
            path.unlink()

    def make_directory(self, rng: random.Random) -> None:
        if path := self._free(rng, _PLACES):
            path.mkdir()
            self._put(path / rng.choice(_NAMES), rng.choice(_SIZES))

    def delete_directory(self, rng: random.Random) -> None:
        if path := self._directory(rng):
            shutil.rmtree(path)

    def rename(self, rng: random.Random) -> None:
        if (path := self._file(rng)) and (target := self._free(rng, _NAMES, path.parent)):
            path.rename(target)

    def move(self, rng: random.Random) -> None:
        """To another directory, in the place of a file that may be there."""
        if path := self._file(rng):
            target = rng.choice([self.root, *self._entries()[0]]) / path.name
            if not target.is_dir():
                path.rename(target)

    def rename_directory(self, rng: random.Random) -> None:
        if (path := self._directory(rng)) and (target := self._free(rng, _PLACES, path.parent)):
            path.rename(target)

    def move_directory(self, rng: random.Random) -> None:
        path, target = self._directory(rng), self._free(rng, _PLACES)
        if path and target and path not in target.parents:
            path.rename(target)

    def copy_directory(self, rng: random.Random) -> None:
        """With all times, as ``cp -a`` does."""
        path, target = self._directory(rng), self._free(rng, _PLACES)
        if path and target and path not in target.parents and path.name != "huge":
            shutil.copytree(path, target, symlinks=True, ignore=lambda place, names: _fifos(Path(place), names))

    def swap(self, rng: random.Random) -> None:
        files = self._entries()[1]
        if len(files) > 1:
            self._exchange(*rng.sample(files, 2))

    def swap_directories(self, rng: random.Random) -> None:
        directories = self._entries()[0]
        if len(directories) > 1:
            one, two = rng.sample(directories, 2)
            if one not in two.parents and two not in one.parents:
                self._exchange(one, two)

    def _exchange(self, one: Path, two: Path) -> None:
        spare = self.root / "spare"
        one.rename(spare)
        two.rename(one)
        spare.rename(two)

    def insert_unseen(self, rng: random.Random) -> None:
        """A new name in a directory whose modification time is put back."""
        if path := self._free(rng, _NAMES):
            before = path.parent.stat()
            self._put(path, 2000)
            os.utime(path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))

    def link(self, rng: random.Random) -> None:
        if (path := self._file(rng)) and (target := self._free(rng, _NAMES)):
            os.link(path, target)

    def unlink_one(self, rng: random.Random) -> None:
        """One of several names."""
        linked = [path for path in self._entries()[1] if path.stat().st_nlink > 1]
        if linked:
            rng.choice(linked).unlink()

    def to_directory(self, rng: random.Random) -> None:
        if path := self._file(rng):
            path.unlink()
            path.mkdir()
            self._put(path / "inside", 1000)

    def to_file(self, rng: random.Random) -> None:
        if path := self._directory(rng):
            shutil.rmtree(path)
            self._put(path, 1000)

    def symlink(self, rng: random.Random) -> None:
        """A new one, or an old one to another target."""
        path = rng.choice([self.root, *self._entries()[0]]) / f"link-{rng.randrange(3)}"
        if path.is_symlink():
            path.unlink()
        if not os.path.lexists(path):
            path.symlink_to(rng.choice(("a", "../b", "/etc/hostname", "x" * 200)))

    def fifo(self, rng: random.Random) -> None:
        path = rng.choice([self.root, *self._entries()[0]]) / "fifo"
        if path.is_fifo():
            path.unlink()
        elif not os.path.lexists(path):
            os.mkfifo(path)
            if "system.posix_acl_access" in os.listxattr(path):  # inherited; archives keep none of a fifo
                os.removexattr(path, "system.posix_acl_access")

    def exclude(self, rng: random.Random) -> None:
        """An exclude file appears, changes in place, or vanishes."""
        path = rng.choice([self.root, *self._entries()[0]]) / EXCLUDE_FILE
        if path.exists() and rng.random() < 0.4:
            path.unlink()
        else:
            path.write_text(rng.choice(_LINES))
            self._stamp(path)

    # -- attributes --------------------------------------------------------------------------------------------------

    def chmod(self, rng: random.Random) -> None:
        path = self._either(rng)
        path.chmod(rng.choice(_MODES) | (0o700 if path.is_dir() else 0))

    def chown(self, rng: random.Random) -> None:
        if os.geteuid() == 0:
            os.chown(self._either(rng), rng.choice((0, 1000, 70_000)), rng.choice((0, 1000)))

    def attribute(self, rng: random.Random) -> None:
        os.setxattr(self._either(rng), rng.choice(_ATTRIBUTES), self._noise(rng.choice((0, 10, 300))))

    def remove_attribute(self, rng: random.Random) -> None:
        directories, files = self._entries()
        found = [(path, name) for path in (*directories, *files) for name in os.listxattr(path) if name in _ATTRIBUTES]
        if found:
            path, name = rng.choice(found)
            os.removexattr(path, name)

    def acl(self, rng: random.Random) -> None:
        """An access list, on a directory a default one too, or none any more."""
        path = self._either(rng)
        names = ["system.posix_acl_access", *(["system.posix_acl_default"] if path.is_dir() else [])]
        for name in names:
            if name in os.listxattr(path) and rng.random() < 0.4:
                os.removexattr(path, name)
            else:
                os.setxattr(path, name, rng.choice(_ACLS))

    def flag(self, rng: random.Random) -> None:
        """chattr +A or -A"""
        fd = os.open(self._either(rng), os.O_RDONLY)
        try:
            change_flags(fd, **{rng.choice(("add", "remove")): NOATIME})
        finally:
            os.close(fd)


def _fifos(place: Path, names: list[str]) -> list[str]:
    return [name for name in names if (place / name).is_fifo()]


CHANGES: dict[str, Callable[[LivingTree, random.Random], None]] = {
    name: method
    for name, method in vars(LivingTree).items()
    if callable(method) and name[0] != "_" and name != "change"
}


def selected(tree: Description, root: Path, options: list[str]) -> Description:
    """What is archived of the tree at ``root``: without that which the exclude files in it and ``options``, the
    patterns of a run, leave out. Understands patterns of the form ``*SUFFIX`` and ``!*SUFFIX``."""
    lines: dict[str, list[str]] = {}  # of each directory, with those inherited
    kept: Description = {}
    for key, entry in tree.items():
        path = os.fsdecode(bytes.fromhex(key))
        parent, _, name = path.rpartition("/")
        if path and (parent not in lines or _excluded(name, lines[parent])):
            continue
        kept[key] = dict(entry)
        if (root / path).is_dir() and not (root / path).is_symlink():
            own = root / path / EXCLUDE_FILE
            lines[path] = (lines[parent] if path else options) + (own.read_text().split("\n") if own.exists() else [])
    _join_links(kept)
    return kept


def _excluded(name: str, lines: list[str]) -> bool:
    """The last line that matches decides."""
    matching = [line for line in lines if line[:1] in "*!" and line and name.endswith(line.lstrip("!*"))]
    return bool(matching) and matching[-1][0] != "!"


def _join_links(tree: Description) -> None:
    """Names of one file that are left: the first of them is what the others are linked to, a single one is no link."""
    groups: dict[str, list[str]] = {}
    for key, entry in tree.items():
        if entry["link"] is not None:
            groups.setdefault(entry["link"], []).append(key)
    for keys in groups.values():
        for key in keys:
            tree[key]["link"] = keys[0] if len(keys) > 1 else None
