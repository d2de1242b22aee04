"""Restoring into hostile surroundings: nothing outside the target is touched, what could not be done is listed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archiver.core import linux
from archiver.store.layout import SnapshotRef
from tests.attributes import IMMUTABLE, change_flags, unlock_tree
from tests.cli.command import call
from tests.compare import compare_descriptions, differences, snapshot_tree
from tests.mounts import read_only_view, small_file_system, weak_file_system
from tests.restore.over import over
from tests.source.sandbox import IS_ROOT, NOBODY, as_ordinary_user, world_readable_directory
from tests.stores import ROOT, make_store, save

needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")


class Place:
    """A saved tree, a target, and a directory that nobody may touch."""

    def __init__(self, base: Path) -> None:
        self.base, self.store = base, make_store(base / "store")
        self.source, self.target, self.outside = base / "source", base / "target", base / "outside"
        for path in ("a/one", "a/two", "b/deep/three", "c", "fifo-to-be"):
            (self.source / path).parent.mkdir(parents=True, exist_ok=True)
            (self.source / path).write_text(path * 1000)
        (self.source / "fifo-to-be").unlink()
        os.mkfifo(self.source / "fifo-to-be")
        (self.source / "link").symlink_to("a/one")
        (self.outside / "below").mkdir(parents=True)
        for path in ("one", "three", "below/three", "secret"):
            (self.outside / path).write_text("outside")
        self.target.mkdir()
        self.ref: SnapshotRef = save(self.store, self.source).snapshot
        self._before = snapshot_tree(self.outside)

    def restore(self, *options: str) -> tuple[int, dict[str, str]]:
        """(exit code, what was told)"""
        done = call("--store", self.store, "restore", "latest", self.target, "--json", *options)
        assert done.code in (0, 3), done.err
        return done.code, {error["path"]: error["kind"] for error in done.document["errors"]}

    def outside_is_untouched(self) -> bool:
        return compare_descriptions(self._before, snapshot_tree(self.outside), ignore=()) == []


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    assert made.outside_is_untouched()
    if made.target.exists():
        unlock_tree(made.target)


@pytest.mark.parametrize("mode", ["if-changed", "if-newer", "always"])
def test_symlinks_where_directories_were(place: Place, mode: str) -> None:
    (place.target / "a").symlink_to(place.outside)
    (place.target / "b").mkdir()
    (place.target / "b/deep").symlink_to("../../outside/below")
    (place.target / "c").symlink_to(place.outside / "secret")
    for path in ("a", "b/deep", "c"):
        os.utime(place.target / path, ns=(0, 0), follow_symlinks=False)
    for path in ("b", ""):
        os.utime(place.target / path, ns=(0, 0))
    assert place.restore("--overwrite", mode) == (0, {})
    assert differences(place.source, place.target) == []


def test_symlinks_that_stay(place: Place) -> None:
    """Nothing is restored through them."""
    (place.target / "a").symlink_to(place.outside)
    assert place.restore("--overwrite", "never", "--delete") == (3, {"/a": "not-restored"})
    assert os.readlink(place.target / "a") == str(place.outside)
    assert (place.target / "b/deep/three").read_text().startswith("b/deep")


def test_symlinks_are_moved_away_as_they_are(place: Place) -> None:
    (place.target / "extra").symlink_to(place.outside)
    result = over(place.store, place.ref, place.target, delete=True)
    assert os.readlink(Path(result.quarantine[0]) / "extra") == str(place.outside)
    assert differences(place.source, place.target) == []


def test_other_kinds_in_the_way(place: Place) -> None:
    """A fifo is not opened, a socket not talked to; each gives way, but for a directory with entries."""
    os.mkfifo(place.target / "c")
    (place.target / "a").mkdir()
    os.mkfifo(place.target / "a/one")
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(place.target / "a")
        made.bind("two")
        os.chdir(here)
    (place.target / "b").write_text("a file")
    (place.target / "link").mkdir()
    (place.target / "fifo-to-be" / "with").mkdir(parents=True)
    assert place.restore("--overwrite", "always") == (3, {"/fifo-to-be": "not-restored"})
    assert place.restore("--overwrite", "always", "--delete") == (0, {})
    assert differences(place.source, place.target) == []


@needs_root
def test_immutable_entries(place: Place) -> None:
    """They stay, and are named; a plan says so before."""
    for path in ("a/one", "b/deep/three", "extra", "c"):
        (place.target / path).parent.mkdir(parents=True, exist_ok=True)
        (place.target / path).write_text("immutable")
    shutil.copy2(place.source / "c", place.target / "c")
    sealed = [place.target / path for path in ("a/one", "b/deep", "extra", "c")]
    for one in sealed:
        fd = os.open(one, os.O_RDONLY)
        try:
            change_flags(fd, add=IMMUTABLE)
        except OSError:
            pytest.skip("the file system has no immutable files")
        finally:
            os.close(fd)
    plan = call(
        "--store", place.store, "restore", "latest", place.target, "--overwrite", "always", "--dry-run", "--json"
    )
    reasons = {item["path"]: item["reasons"] for item in plan.document["items"]}
    assert plan.code == 3 and reasons["/a/one"] == ["what is there is immutable or append-only"]
    code, told = place.restore("--overwrite", "always", "--delete")
    assert code == 3
    assert told == {
        "/a/one": "not-restored",
        "/b/deep/three": "not-restored",
        "/b/deep": "attribute",
        "/extra": "not-removed",
    }
    assert (place.target / "a/one").read_text() == "immutable" and (place.target / "extra").exists()
    assert (place.target / "a/two").read_text() == (place.source / "a/two").read_text()


@needs_root
def test_read_only_mount_in_the_target(place: Place) -> None:
    (place.target / "a").mkdir()
    with read_only_view(place.outside, place.target / "b"):
        code, told = place.restore("--overwrite", "always")
        assert code == 3
        assert told == {"/b": "attribute", "/b/deep": "not-restored"}
    assert differences(place.source / "a", place.target / "a") == []


@needs_root
def test_read_only_target(place: Place) -> None:
    with read_only_view(place.outside, place.base / "view") as view:
        done = call("--store", place.store, "restore", "latest", view, "--overwrite", "always", "--json")
    assert done.code == 1 and "read-only" in done.error["message"]


@needs_root
def test_read_only_directories_of_an_ordinary_user() -> None:
    """One's own are made writable for the time being, those of others are listed."""
    with world_readable_directory() as base:
        place = Place(base)
        os.chmod(base, 0o755)
        subprocess.run(["chmod", "-R", "a+rX", base], check=True)
        for path in ("a", "b"):
            (place.target / path).mkdir()
        (place.target / "a/one").write_text("old")
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", place.target], check=True)
        os.chown(place.target / "b", 0, 0)
        (place.target / "a").chmod(0o500)

        def work() -> Any:
            os.chdir(ROOT)
            for name in ("CACHE", "CONFIG", "DATA"):
                os.environ[f"XDG_{name}_HOME"] = str(place.target / ".xdg")
            options: list[str | Path] = [
                "--store",
                place.store,
                "--read-only",
                "restore",
                "latest",
                place.target,
                "--json",
            ]
            done = call(*options, "--overwrite", "always", "--owner", "none")
            return done.code, done.out, done.err

        for _ in range(2):  # an ordinary user may not be able to load modules
            call("--store", place.store, "restore", "latest", base / "loaded", "--json", "--overwrite", "always")

        code, out, err = as_ordinary_user(work)
        assert code == 3, err
        import json

        told = {(error["path"], error["kind"]) for error in json.loads(out)["errors"]}
        assert told == {("/b", "attribute"), ("/b/deep", "not-restored")}
        assert differences(place.source / "a", place.target / "a", ignore={"uid", "gid"} | _USUAL) == []
        assert place.outside_is_untouched()


_USUAL = {"nodump", "special-links"}


def test_directories_exchanged_for_symlinks_meanwhile(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was looked at and before it is opened."""
    (place.target / "a").mkdir()
    (place.target / "b/deep").mkdir(parents=True)
    real = os.open

    def exchanging(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == b"a" and flags & os.O_DIRECTORY and not (place.target / "a").is_symlink():
            (place.target / "a").rmdir()
            (place.target / "a").symlink_to(place.outside)
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", exchanging)
    result = over(place.store, place.ref, place.target, verify=False)
    monkeypatch.undo()
    assert [(problem.path, problem.kind) for problem in result.problems] == [(b"/a", "not-restored")]
    assert differences(place.source / "b", place.target / "b") == []


def test_files_exchanged_meanwhile(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody put there while the new contents were written is not lost."""
    (place.target / "c").write_text("old")
    real = os.fsync

    def exchanging(fd: int) -> None:
        real(fd)
        if os.fstat(fd).st_size == len((place.source / "c").read_bytes()):
            (place.target / "new").write_text("somebody else's")
            (place.target / "new").rename(place.target / "c")

    monkeypatch.setattr(os, "fsync", exchanging)
    result = over(place.store, place.ref, place.target, verify=False)
    monkeypatch.undo()
    assert [(problem.path, problem.kind) for problem in result.problems] == [(b"/c", "not-restored")]
    assert (place.target / "c").read_text() == "somebody else's"
    assert not [name for name in os.listdir(place.target) if name.startswith(".archiver")]


# -- file systems that cannot hold everything ------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("there", [[], ["--overwrite", "always"]])
def test_target_that_ignores_case(tmp_path: Path, there: list[str]) -> None:
    """Of two names that are one there the first is restored, the other is listed; neither takes the other's place."""
    source = tmp_path / "source"
    (source / "in").mkdir(parents=True)
    for name in ("Case", "case", "in/STRASSE", "in/strasse", "in/x"):
        (source / name).write_text(name)
    (source / "Dir").mkdir()
    (source / "dir").mkdir()
    (source / "Dir/one").write_text("one")
    (source / "dir/two").write_text("two")
    ref = save(make_store(tmp_path / "store"), source).snapshot
    with small_file_system(tmp_path, 8 << 20, "-O", "casefold", "-I", "256") as root:
        target = root / "target"
        target.mkdir()
        if subprocess.run(["chattr", "+F", target], check=False, capture_output=True).returncode:
            pytest.skip("the kernel has no case-insensitive ext4")
        if there:
            (target / "CASE").write_text("what was there")
            (target / "EXTRA").write_text("extra")
            there = [*there, "--delete"]
        done = call("--store", tmp_path / "store", "restore", str(ref), target, "--json", *there)
        told = {error["path"]: error["kind"] for error in done.document["errors"]}
        assert done.code == 3
        assert told == {
            "/case": "not-restored",
            "/in/strasse": "not-restored",
            **({} if there else {"/dir": "not-restored"}),
        }
        assert (target / "case").read_text() == "Case"
        assert (target / "in/strasse").read_text() == "in/STRASSE"
        assert (target / "dir/one").read_text() == "one"
        assert not (target / "EXTRA").exists()


def test_names_that_differ_in_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the kernel has no such file system: names are looked up as one would."""
    source = tmp_path / "source"
    (source / "in").mkdir(parents=True)
    for name in ("Case", "case", "in/x", "in/X"):
        (source / name).write_text(name)
    ref = save(make_store(tmp_path / "store"), source).snapshot
    target = tmp_path / "target"
    (target / "in").mkdir(parents=True)
    for name in ("CASE", "EXTRA", "in/1"):
        (target / name).write_text("there")
    _ignore_case(monkeypatch)
    result = over(tmp_path / "store", ref, target, delete=True, verify=False)
    monkeypatch.undo()
    assert {problem.path: problem.kind for problem in result.problems} == {
        b"/case": "not-restored",
        b"/in/x": "not-restored",
    }
    assert sorted(os.listdir(target)) == ["CASE", "in"] and os.listdir(target / "in") == ["X"]
    assert (target / "CASE").read_text() == "Case" and (target / "in/X").read_text() == "in/X"
    assert result.removed == 2


def _ignore_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def actual(name: Any, fd: int | None) -> Any:
        if fd is None or not isinstance(name, bytes):
            return name
        there = os.listdir(b"/proc/self/fd/%d" % fd)  # that of the descriptor would begin its other readers anew
        return name if name in there else next((it for it in there if it.lower() == name.lower()), name)

    def wrapped(module: Any, function: str, *descriptors: str) -> None:
        real = getattr(module, function)

        def call_it(*arguments: Any, **options: Any) -> Any:
            fds = [options.get(name) for name in descriptors]
            names = [actual(name, fd) for name, fd in zip(arguments, fds, strict=False)]
            return real(*names, *arguments[len(names) :], **options)

        monkeypatch.setattr(module, function, call_it)

    for function in ("open", "stat", "mkdir", "unlink", "rmdir"):
        wrapped(os, function, "dir_fd")
    for module, function in ((os, "rename"), (os, "link"), (linux, "rename_new")):
        wrapped(module, function, "src_dir_fd", "dst_dir_fd")


@needs_root
@pytest.mark.parametrize("kind", ["ramfs", "ext4", "vfat"])
def test_target_without_attributes(tmp_path: Path, kind: str) -> None:
    """ramfs: no extended attributes. ext4 with small inodes: times of seconds. vfat: also no owners, modes and links.
    Contents are restored, everything that is lost is listed, and nothing is said to be different afterwards."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("plain", "a:b", "attributes"):
        (source / name).write_text(name)
    os.utime(source / "a:b", ns=(0, 1_600_000_001 * 10**9 + 5))
    for name in ("plain", "attributes", ""):
        os.setxattr(source / "attributes", "user.x", b"y")
        os.utime(source / name, ns=(0, 1_600_000_000 * 10**9))
    (source / "link").symlink_to("plain")
    os.utime(source / "link", ns=(0, 1_600_000_000 * 10**9), follow_symlinks=False)
    os.link(source / "plain", source / "z-linked")
    os.utime(source, ns=(0, 1_600_000_000 * 10**9))
    ref = save(make_store(tmp_path / "store"), source).snapshot
    with weak_file_system(tmp_path, kind) as target:
        for options in ((), ("--overwrite", "if-changed"), ("--overwrite", "always")):
            done = call("--store", tmp_path / "store", "restore", str(ref), target / "x", "--json", *options)
            assert done.code == 3, done.err
            told: dict[str, set[str]] = {}
            for error in done.document["errors"]:
                told.setdefault(error["kind"], set()).add(error["path"])
            lost = {"ramfs": {"/attributes"}, "ext4": {"/a:b"}, "vfat": {"/", "/plain", "/attributes"}}[kind]
            assert told["attribute"] == lost
            assert told.get("not-restored", set()) == ({"/a:b", "/link", "/z-linked"} if kind == "vfat" else set())
            assert told.keys() <= {"not-restored", "attribute"}
            assert (target / "x/plain").read_text() == "plain"
