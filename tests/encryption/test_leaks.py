"""P6: nothing of an encrypted backup's files is readable without the key, wherever the program has written.

A tree with odd words in everything that is saved of it goes through all that can be done with a store. The same is done
without encryption: there the words must be found in each kind of place, or looking for them would prove nothing.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archiver.backup import contents, journal
from archiver.backup.archive import TreeArchiver
from archiver.backup.run import Mode
from archiver.browse.history import open_histories
from archiver.browse.snapshot import Snapshot
from archiver.core import spill
from archiver.source import content
from archiver.source.walk import WalkOptions
from archiver.store.catalog import writer
from archiver.store.store import Store
from formats.crypt import CryptConfig
from formats.patterns import parse_exclude_option
from tests.cli.command import Done, call
from tests.encryption.leaks import Scanner, nameless_files
from tests.golden_store import write_key
from tests.mounting import has_fuse, mounted
from tests.random_trees import noise
from tests.stores import GROUP, KEY, ROOT, every_snapshot, make_store, save

pytestmark = pytest.mark.in_memory

NAME, CONTENT, TARGET, XATTR, PATTERN, OPTION = (f"wOrd-{kind}-{noise(7, 4).hex()}" for kind in "nctxpo")
MTIME = 1_234_567_891_987_654_321  # ns
WORDS = {
    "name": NAME.encode(),
    "content": CONTENT.encode(),
    "target": TARGET.encode(),
    "xattr": XATTR.encode(),
    "pattern": PATTERN.encode(),
    "option": OPTION.encode(),
    "time": struct.pack("<q", MTIME),
}
MODES: list[Mode] = ["metadata", "data", "legacy"]

# A run that is killed in the middle: after some blocks of its journal, with tables on the disk.
_KILLED = """
import os, signal, sys
from pathlib import Path
from archiver.backup import journal
from archiver.core import spill
from tests.encryption.test_leaks import KEY, small_limits, walk_options
from tests.stores import save

small_limits(setattr)
flush, count = journal.Journal._flush, 0

def counted(self):
    global count
    flush(self)
    count += 1
    if count == 4:
        os.kill(os.getpid(), signal.SIGKILL)

journal.Journal._flush = counted
save(Path(sys.argv[1]), Path(sys.argv[2]), mode="metadata", crypt=KEY if sys.argv[3] == "encrypt" else None,
     walk=walk_options(sys.argv[1]))
"""


def walk_options(store: str) -> WalkOptions:
    return WalkOptions(excludes=[parse_exclude_option(f"*.{OPTION}".encode())])


def small_limits(setattr: Callable[[object, str, Any], None]) -> None:
    """Whatever may go to the disk goes there at once, and in small pieces."""
    setattr(spill.SpillTable.__init__, "__defaults__", (0,))
    setattr(spill, "_BATCH", 0)
    setattr(journal, "_ENTRIES_AT_ONCE", 8)
    setattr(writer, "_PACK", 256)
    setattr(writer, "_NAMES_PART", 256)


def build(root: Path) -> None:
    """Words in names, contents, targets, attributes and patterns, of files small and large, alone and in crowds."""
    for directory in (root, root / f"dir-{NAME}", root / f"dir-{NAME}" / f"below-{NAME}"):
        crowd(directory)
        (directory / f"link-{NAME}").symlink_to(f"../{TARGET}/{TARGET}")
        (directory / "hard").hardlink_to(directory / f"03-{NAME}-file")
        os.utime(directory / f"03-{NAME}-file", ns=(MTIME, MTIME))
        (directory / ".pxarexclude").write_text(f"*.{PATTERN}\n")
        for word in (PATTERN, OPTION):
            (directory / f"left-out.{word}").write_text(CONTENT)
    os.setxattr(root / f"01-{NAME}-file", f"user.{XATTR}", XATTR.encode() * 3)
    os.setxattr(root / f"dir-{NAME}", f"user.{XATTR}", XATTR.encode())
    (root / f"large-{NAME}").write_bytes((noise(99, 50_000) + CONTENT.encode()) * 12)
    (root / f"unreadable-{NAME}").write_bytes(noise(98, 300))
    (root / f"torn-{NAME}").write_bytes(noise(97, 400_000))


def crowd(directory: Path) -> None:
    directory.mkdir()
    for number in range(40):
        path = directory / f"{number:02}-{NAME}-file"
        path.write_bytes(noise(number, number * 50) + f"{CONTENT}\n".encode() * (number % 3))
        os.utime(path, ns=(MTIME, MTIME))


class Watch:
    """Looks at what is on the disk while a run goes on: files without names, tables, journals, temporary files."""

    def __init__(self, scanner: Scanner, roots: list[Path], sessions: Path, temporary: Path) -> None:
        self._scanner = scanner
        self._roots = roots
        self._places = [sessions, temporary]
        self.hits: set[tuple[str, str]] = set()  # place, word
        self.seen: set[str] = set()

    def look(self, place: str) -> None:
        for _, data in nameless_files(self._roots):
            self.hits |= {("nameless", word) for word, _ in self._scanner.data(data)}
            self.seen.add(f"nameless, {place}")
        for path, word, _ in self._scanner.trees(self._places):
            self.hits.add((kind_of(path), word))
        self.seen |= {kind_of(path) for root in self._places for path in root.rglob("*") if path.is_file()}

    def after(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, every: int = 1) -> None:
        """From now on look after each call, or some of them, of ``owner.name``."""
        real, count = getattr(owner, name), 0

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            result = real(*arguments, **options)
            count += 1
            if count % every == 0:
                self.look(f"{owner.__name__}.{name}")
            return result

        monkeypatch.setattr(owner, name, call)


def kind_of(path: Path) -> str:
    """What a file of the store or of a temporary directory is."""
    parts = path.parts
    if ".chunks" in parts:
        return "chunk"
    if any(part.startswith("spill-") for part in parts):
        return "table"
    if path.suffix == ".journal":
        return "journal"
    if path.name in ("data.mdb", "client.log.blob"):
        return path.name
    return "other"


class Place:
    """A store, a tree, and all the places where the program may write."""

    def __init__(self, tmp_path: Path, crypt: CryptConfig | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.crypt = crypt
        self.source, self.out = tmp_path / "source", tmp_path / "out"
        self.image = tmp_path / f"image-{NAME}"
        self.image.write_bytes(noise(96, 300_000) + CONTENT.encode() * 9)
        os.utime(self.image, ns=(MTIME, MTIME))
        self.temporary = tmp_path / "temporary"
        self.temporary.mkdir()
        monkeypatch.setenv("TMPDIR", str(self.temporary))
        monkeypatch.setattr(tempfile, "tempdir", str(self.temporary))
        self.store = make_store(tmp_path / "store")
        self.roots = [self.store, self.temporary, tmp_path / ".xdg"]
        self.options: list[str | Path] = ["--store", self.store]
        if crypt is not None:
            self.options += ["--keyfile", write_key(tmp_path / "key.json", crypt.enc_key)]
        self.scanner = Scanner(WORDS)
        self.watch = Watch(self.scanner, self.roots, self.store / ".archiver" / "sessions", self.temporary)

    def save(self, mode: Mode) -> Any:
        sources = {"tree": self.source, "disk.img": self.image, "small.conf": self.image}
        return save(self.store, sources, mode=mode, crypt=self.crypt, walk=walk_options(str(self.store)))

    def do(self, *arguments: str | Path, code: int = 0, key: bool = True) -> Done:
        done = call(*(self.options if key else self.options[:2]), *arguments)
        assert done.code == code, done.err
        return done

    def hits(self) -> set[tuple[str, str]]:
        """(kind of file, word) of all that can be found now."""
        return {(kind_of(path), word) for path, word, _ in self.scanner.trees(self.roots)}


def go_through(place: Place, monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Everything there is to do with a store; what was found on the way and at the end."""
    watch, found = place.watch, set[tuple[str, str]]()
    with monkeypatch.context() as patch:
        small_limits(patch.setattr)
        watch.after(patch, writer._Packs, "flush")
        watch.after(patch, spill._Sealed, "add", every=20)
        watch.after(patch, journal.Journal, "_flush")
        watch.after(patch, TreeArchiver, "run")
        for number, mode in enumerate((*MODES, "metadata")):
            place.save(mode)
            (place.source / f"{number}-new-{NAME}").write_text(CONTENT * number)
            (place.source / f"dir-{NAME}" / f"below-{NAME}" / f"{number}-{NAME}").symlink_to(TARGET)
        found |= place.hits()
        with patch.context() as failing:
            fail(failing)
            saved = place.save("data")
        assert {problem.kind for problem in saved.result.errors} == {"unreadable", "torn"}
        assert all(NAME.encode() in problem.path for problem in saved.result.errors)
        (place.source / f"large-{NAME}").write_bytes((noise(100, 50_000) + CONTENT.encode()) * 12)
        crowd(place.source / f"more-{NAME}")
        assert killed(place) == -signal.SIGKILL
        left = {kind_of(path) for path in (place.store / ".archiver/sessions").rglob("*") if path.is_file()}
        assert {"journal", "table"} <= left
        found |= place.hits()
        place.save("metadata")  # goes on where that one ended
        read_all(place)
        place.do("db", "rebuild")
        place.save("metadata")  # records the run before from the archive
        read_all(place)
        search(place)
        found |= place.hits()
        oldest = place.do("snapshots", "--json", key=False).document["items"][0]["snapshot"]
        place.do("forget", oldest, key=False)
        place.do("gc", "--immediate", key=False)
        place.do("gc", "--from-files", key=False)
        place.save("metadata")
    return found | place.hits()


def fail(patch: pytest.MonkeyPatch) -> None:
    """One file cannot be opened, another never holds still."""
    opened, read = os.open, content.read_into

    def open_some(path: Any, *arguments: Any, **options: Any) -> int:
        if path == f"unreadable-{NAME}".encode():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *arguments, **options)

    def read_into(fd: int, view: memoryview, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(f"/torn-{NAME}"):
            os.utime(fd)
        return read(fd, view, offset)

    patch.setattr(os, "open", open_some)
    patch.setattr(contents, "read_into", read_into)


def killed(place: Place) -> int:
    mode = "none" if place.crypt is None else "encrypt"
    return subprocess.run([sys.executable, "-c", _KILLED, place.store, place.source, mode], cwd=ROOT).returncode


def read_all(place: Place) -> None:
    base = str(GROUP)
    for command in (("snapshots",), ("groups",), ("files", base), ("status",), ("db", "check"), ("db", "stats")):
        place.do(*command, key=False)
    assert NAME in place.do("ls", "-R", "-l", base).out
    assert CONTENT in place.do("cat", base, f"/large-{NAME}").raw.decode("latin-1")
    place.do("verify")
    place.do("verify", key=False)
    shutil.rmtree(place.out, ignore_errors=True)
    assert place.do("restore", base, place.out).code == 0
    place.do("ls", base, code=12 if place.crypt is not None else 0, key=False)
    look_inside(place, base)


def look_inside(place: Place, base: str) -> None:
    """By every command that shows names, and a mount where there can be one."""
    assert NAME in place.do("find", f"*{NAME}*", "--group", base, "-l").out
    assert NAME in place.do("history", f"/large-{NAME}", "--group", base).out
    assert NAME in place.do("ls", base, "--archive", "tree.pxar", "-R", "--sizes").out
    assert call(*place.options, "diff", base, place.source, "--archive", "tree.pxar", "--content").code in (0, 3, 4)
    place.do("diff", base, "--sizes", code=call(*place.options, "diff", base, "--sizes").code)
    place.do("heal", "--dry-run")
    target = ("--archive", "tree.pxar", place.out)
    place.do("restore", base, *target, "--overwrite", "always", "--delete", "--dry-run")
    for form in ("tar.zst", "zip", "pxar"):
        file = place.out.with_name(f"out.{form}")
        file.unlink(missing_ok=True)
        assert call(*place.options, "restore", base, file, "--archive", "tree.pxar", "--format", form).code in (0, 3)
    if has_fuse():
        with mounted(place.out.with_name("mnt"), *place.options, "mount", base, "--archive", "tree.pxar") as mount:
            names = os.listdir(mount.place)
            assert f"large-{NAME}" in names and CONTENT.encode() in (mount.place / f"large-{NAME}").read_bytes()


def search(place: Place) -> None:
    """All versions of a path, and a pattern over all snapshots."""
    with Store.open(place.store) as store:
        snapshots = [Snapshot(store, ref, place.crypt) for ref in every_snapshot(store)]
        histories, missing = open_histories(snapshots, "tree.pxar")
        assert missing == [] and len(histories) == 1
        assert len(histories[0].versions(f"large-{NAME}".encode())) == 2
        assert len(list(histories[0].glob(parse_exclude_option(f"**/*{NAME}*".encode())))) > 90


def test_nothing_is_readable_without_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path, KEY, monkeypatch)
    build(place.source)
    assert go_through(place, monkeypatch) == set()
    assert place.watch.hits == set()
    check_seen(place)


def test_the_same_without_encryption_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every kind of file that the other test looks at."""
    place = Place(tmp_path, None, monkeypatch)
    build(place.source)
    found = go_through(place, monkeypatch)
    everything = {(kind, word) for kind, word in found if kind in ("chunk", "data.mdb", "client.log.blob", "journal")}
    assert {word for kind, word in everything if kind == "chunk"} >= WORDS.keys() - {"time"}
    assert {word for kind, word in everything if kind == "data.mdb"} >= {"name", "target", "xattr", "time"}
    assert ("other", "content") in found  # small.conf.blob
    assert ("client.log.blob", "name") in everything and ("journal", "time") in everything
    assert {word for kind, word in place.watch.hits if kind == "nameless"} >= {"name", "target", "xattr", "time"}
    assert not [word for kind, word in found | place.watch.hits if kind == "table"]  # which are always sealed
    check_seen(place)


def check_seen(place: Place) -> None:
    """While the runs went on there was something to look at."""
    assert place.watch.seen >= {"table", "journal", "nameless, _Packs.flush"}
    assert sum(1 for path in place.store.rglob("client.log.blob")) == 1
