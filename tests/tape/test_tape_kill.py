"""kill -9 of tape backup and tape restore at any moment: nothing is lost, nothing is claimed that is not there, and the
next run ends the work."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ask, call
from tests.random_trees import noise
from tests.stores import ROOT, command, damage, make_store, save
from tests.sync.pair import finished

START = 1_700_000_000


@dataclass
class Shelf:
    """A store with snapshots, a drive with media; ``state``: what the machine knows of tapes."""

    base: Path

    @classmethod
    def make(cls, place: Path, snapshots: int = 3) -> Shelf:
        shelf = cls(place)
        make_store(shelf.store)
        tree = place / "tree"
        tree.mkdir()
        for number in range(snapshots):
            for name in range(3):
                (tree / f"{number}-{name}").write_bytes(noise(10 * number + name, 2 << 20))
            save(shelf.store, tree, time=START + number, chunk_size=256 << 10)
        ask("tape", "drive", "add", "usb", "--path", shelf.media, "--max-size", "9M")
        ask("tape", "pool", "create", "daily")
        for label in ("ONE", "TWO", "THREE", "FOUR"):
            ask("tape", "label", "--label-text", label, "--pool", "daily")
        return shelf

    @property
    def store(self) -> Path:
        return self.base / "store"

    @property
    def media(self) -> Path:
        return self.base / "media"

    @property
    def state(self) -> Path:
        return Path(os.environ["XDG_STATE_HOME"]) / "archiver"

    def is_in_use(self) -> bool:
        """A run has begun or taken up a media set."""
        return any((self.state / "tape").glob(".media-set-*"))

    def keep(self) -> None:
        shutil.copytree(self.media, self.base / "kept-media")
        shutil.copytree(self.state, self.base / "kept-state")

    def again(self) -> None:
        """As it was kept."""
        for place, kept in ((self.media, "kept-media"), (self.state, "kept-state")):
            shutil.rmtree(place)
            shutil.copytree(self.base / kept, place)


def killed_after(seconds: float, begun: Callable[[], bool], *arguments: str | Path) -> bool:
    """Whether it was: ``seconds`` after its work has ``begun``, however long its start takes on a busy machine."""
    running = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while running.poll() is None and not begun():
        time.sleep(0.002)
    time.sleep(seconds)
    running.kill()
    _, err = running.communicate()
    assert b"Traceback" not in err
    return running.returncode == -signal.SIGKILL


def duration(*arguments: str | Path) -> float:
    began = time.monotonic()
    subprocess.run(command(*arguments), cwd=ROOT, check=True, capture_output=True)
    return time.monotonic() - began


def catalogs_say_the_truth() -> None:
    """All that a catalog knows is on the medium, whole; what else is there is known to be more."""
    document = call("tape", "verify", "daily", "--json").document
    wrong: list[Any] = [item for item in document.get("items", ()) if "does not know it" not in item["reason"]]
    assert wrong == []


def kill_backups(shelf: Shelf, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    shelf.keep()
    arguments = ("--store", shelf.store, "tape", "backup", "daily")
    whole = duration(*arguments)
    killed = written = 0
    for _ in range(kills):
        shelf.again()
        for _ in range(rng.randrange(1, 3)):
            killed += killed_after(rng.uniform(0, 0.6) * whole, shelf.is_in_use, *arguments)
            if (shelf.media / "tapefile-1-ONE.json").exists():
                written += 1
                catalogs_say_the_truth()
        done = ask(*arguments)
        assert done["problems"] == [], done
        catalogs_say_the_truth()
        items = ask("tape", "media", "content")["items"]
        assert sorted(item["snapshot"] for item in items) == sorted(ref.path for ref in finished(shelf.store))
        target = make_store(shelf.base / "back")
        back = ask("--store", target, "tape", "restore", "daily")
        assert back["problems"] == [] and finished(target) == finished(shelf.store) and damage(target) == []
        shutil.rmtree(target)
    assert killed and written


def kill_restores(shelf: Shelf, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    assert ask("--store", shelf.store, "tape", "backup", "daily")["problems"] == []
    shelf.keep()
    snapshots = [ref.path for ref in finished(shelf.store)]
    target = make_store(shelf.base / "back")
    shutil.copytree(target, shelf.base / "empty")
    sessions = target / ".archiver" / "sessions"
    whole = duration("--store", target, "tape", "restore", "daily")
    killed = 0
    for number in range(kills):
        shutil.rmtree(target)
        shutil.copytree(shelf.base / "empty", target)
        chosen = snapshots if number % 2 else []
        arguments: tuple[str | Path, ...] = ("--store", target, "tape", "restore", "daily", *chosen)
        for _ in range(rng.randrange(1, 3)):
            killed += killed_after(
                rng.uniform(0, 0.5) * whole, lambda: sessions.is_dir() and any(sessions.iterdir()), *arguments
            )
            assert damage(target) == [], "what is visible is whole"
        done = ask(*arguments)
        assert done["problems"] == [] and finished(target) == finished(shelf.store)
        assert damage(target) == []
        if done["restored"]:  # a kill behind the last publishing leaves a session that a run without work does not see
            # One that was killed before it was registered stays for an hour: nobody can tell that it is dead.
            assert [name for name in os.listdir(sessions) if not name.startswith(".new-")] == []
        assert ask(*arguments)["bytes_read"] == 0
    assert killed


def test_backup_killed_at_some_moments(tmp_path: Path) -> None:
    kill_backups(Shelf.make(tmp_path), 5, 1)


def test_restore_killed_at_some_moments(tmp_path: Path) -> None:
    kill_restores(Shelf.make(tmp_path), 5, 2)


@pytest.mark.slow
def test_backup_killed_at_many_moments(tmp_path: Path) -> None:
    kill_backups(Shelf.make(tmp_path), 50, 3)


@pytest.mark.slow
def test_restore_killed_at_many_moments(tmp_path: Path) -> None:
    kill_restores(Shelf.make(tmp_path), 50, 4)
