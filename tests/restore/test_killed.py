"""A restore that is killed or runs out of space: every file is the old or the new one, and the next run completes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.compare import differences
from tests.mounts import small_file_system
from tests.random_trees import build_plain, mutate, noise
from tests.stores import ROOT, archiver, command, make_store, save

MIB = 1 << 20


class Case:
    """A saved tree, and an older state of it as the target, which has files of its own too."""

    def __init__(self, base: Path, seed: int) -> None:
        self.store, self.source, self.old = make_store(base / "store"), base / "source", base / "old"
        build_plain(self.source, seed, files=250, max_size=40_000)
        for number in range(4):
            (self.source / f"large-{number}").write_bytes(noise(number, 4 * MIB))
        os.link(self.source / "large-0", self.source / "linked")
        shutil.copytree(self.source, self.old, symlinks=True)
        mutate(self.source, seed, 40)
        for number in range(2):
            (self.source / f"large-{number}").write_bytes(noise(number + 10, 4 * MIB))
        (self.old / "own").write_text("the user's own")
        save(self.store, self.source, chunk_size=MIB)  # large pieces, which go past the page cache

    def restore(self, target: Path, *options: str) -> list[str]:
        return command("--store", self.store, "--read-only", "restore", "latest", target, *options)

    def wrong(self, target: Path) -> list[str]:
        """Files of the target that are neither as they were nor as they shall be; those that are not complete, or in
        a directory that is not, have other names."""
        found = []
        for path in target.rglob("*"):
            inner = path.relative_to(target)
            unfinished = any(part.startswith(".archiver-restore.") for part in inner.parts)
            if unfinished or path.is_symlink() or not path.is_file():
                continue
            candidates = [root / inner for root in (self.source, self.old)]
            data = path.read_bytes()
            if not any(one.is_file() and one.read_bytes() == data for one in candidates):
                found.append(str(inner))
        return found


def complete(case: Case, target: Path) -> None:
    """The next run does what is left to do."""
    done = subprocess.run(
        case.restore(target, "--overwrite", "if-changed", "--delete"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert differences(case.source, target) == []


def kill_at_moments(base: Path, seed: int, count: int) -> None:
    case, rng = Case(base, seed), random.Random(seed)
    target = base / "target"
    options = {True: ("--overwrite", "always"), False: ()}
    whole, killed = {}, 0
    for number in range(-2, count):
        over = number % 2 == 0
        if over:
            shutil.copytree(case.old, target, symlinks=True)
        began = time.monotonic()
        with subprocess.Popen(
            case.restore(target, "--no-verify", *options[over]),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            if number < 0:  # how long does it take?
                assert process.wait() == 0
                whole[over] = time.monotonic() - began
            else:
                try:
                    process.wait(whole[over] * (0.2 + 0.8 * rng.random()))
                except subprocess.TimeoutExpired:
                    process.kill()
                    killed += 1
        if target.exists():
            assert case.wrong(target) == []
            if over:
                assert (target / "own").read_text() == "the user's own"
        complete(case, target)
        for place in base.glob("target*"):
            shutil.rmtree(place)
    assert killed >= count // 3


def test_killed_at_some_moments(tmp_path: Path) -> None:
    kill_at_moments(tmp_path, 1, 5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
def test_killed_at_many_moments(tmp_path: Path, seed: int) -> None:
    kill_at_moments(tmp_path, seed, 10)


@pytest.mark.parametrize("over", [False, True])
def test_full_disk(tmp_path: Path, over: bool) -> None:
    case = Case(tmp_path, 9)
    with small_file_system(tmp_path, 64 * MIB) as place:
        target = place / "target"
        options: tuple[str, ...] = ()
        if over:
            shutil.copytree(case.old, target, symlinks=True)
            options = ("--overwrite", "always")
        space = os.statvfs(place)
        filler = place / "filler"
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - 2 * MIB)
        plan = archiver("--store", case.store, "restore", "latest", target, "--dry-run", "--json", *options)
        assert plan.returncode == 0, plan.stderr
        done = archiver(*case.restore(target, *options)[3:])
        assert done.returncode == 40 and "no space left to restore" in done.stderr, done.stderr
        assert case.wrong(target) == [] and not list(target.rglob(".archiver-restore.*"))
        if over:
            assert (target / "own").read_text() == "the user's own"
        filler.unlink()
        complete(case, target)


def test_a_killed_one_is_gone_on_with(tmp_path: Path) -> None:
    """What it had restored is not written again."""
    case = Case(tmp_path, 3)
    target = tmp_path / "target"
    subprocess.run(case.restore(target), cwd=ROOT, check=True, capture_output=True)
    before = {path: path.stat().st_ino for path in target.rglob("*") if path.is_file()}
    for number in range(2, 4):
        (target / f"large-{number}").unlink(missing_ok=True)
    done = archiver(*case.restore(target, "--overwrite", "if-changed", "--json")[3:])
    assert done.returncode == 0, done.stderr
    changed = {path.name for path, inode in before.items() if path.stat().st_ino != inode}
    assert changed <= {"large-2", "large-3"}
    assert differences(case.source, target) == []


@pytest.mark.parametrize("overwrite", ["never", "if-changed", "if-newer", "always"])
def test_directories_that_a_killed_one_has_begun(tmp_path: Path, overwrite: str) -> None:
    """They are gone on with, whatever the rule is for the user's own; what is in them may be half, and younger."""
    source, target, store = tmp_path / "source", tmp_path / "target", make_store(tmp_path / "store")
    for inner in ("outer/inner", "whole", "other"):
        (source / inner).mkdir(parents=True)
        (source / inner / "file").write_bytes(noise(len(inner), 5000))
    (source / "outer" / "link").symlink_to("inner")
    os.link(source / "outer/inner/file", source / "outer/linked")
    save(store, source)
    staged = ".archiver-restore.in."
    left = target / f"{staged}outer" / f"{staged}inner"
    left.mkdir(parents=True)
    (left / "file").write_bytes(noise(11, 5000)[:3000])
    (target / f"{staged}other").mkdir(mode=0o700)
    (target / "own").write_text("the user's own")
    restore = ("--store", store, "restore", "latest", target, "--overwrite", overwrite)
    plan = archiver(*restore, "--dry-run", "--json")
    assert plan.returncode == 0 and staged not in plan.stdout, plan.stderr
    done = archiver(*restore)
    assert done.returncode == 0, done.stderr
    assert (target / "own").read_text() == "the user's own"
    (target / "own").unlink()
    os.utime(target, ns=(0, source.stat().st_mtime_ns))  # what the rule does to the target itself is tested elsewhere
    target.chmod(source.stat().st_mode)
    assert differences(source, target) == []


def test_a_directory_whose_name_is_taken_at_last(tmp_path: Path) -> None:
    """What was restored stays where it is, and that is told."""
    source, target, store = tmp_path / "source", tmp_path / "target", make_store(tmp_path / "store")
    (source / "taken").mkdir(parents=True)
    (source / "taken" / "file").write_text("contents")
    save(store, source)
    target.mkdir()
    (target / "own").touch()
    taking = """
import os, sys
from archiver.core import linux
rename = linux.rename_new
def taken(source, target, **places):
    if target == b"taken":
        os.symlink("own", target, dir_fd=places["dst_dir_fd"])
    rename(source, target, **places)
linux.rename_new = taken
from archiver.cli.main import main
sys.exit(main())
"""
    arguments = ("--store", store, "restore", "latest", target, "--overwrite", "always")
    done = subprocess.run(
        [sys.executable, "-c", taking, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "it stays .archiver-restore.in.taken" in done.stdout + done.stderr
    assert (target / ".archiver-restore.in.taken" / "file").read_text() == "contents"
    assert os.readlink(target / "taken") == "own"
