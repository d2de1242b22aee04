"""The programs that are compared, and how each is called for the same work.

| program  | compression | encryption                      | its restore checks what it wrote  |
|----------|-------------|---------------------------------|-----------------------------------|
| archiver | zstd        | none                            | unless told ``--no-verify``       |
| with key | zstd        | AES-256-GCM                     | unless told ``--no-verify``       |
| restic   | zstd (auto) | always, it cannot be turned off | only when told ``--verify``       |
| borg     | zstd,1      | none                            | no                                |

All stay on one file system. A *place* is a directory of one program's own: repository, caches and home directory are
in it, so that nothing of the user's is read or changed.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path

from formats.crypt import CryptConfig
from formats.keyfile import KeyFile, KeyTime

Command = list[str]

PROJECT = Path(__file__).resolve().parent.parent
BACKUP_ID = "bench"
_THEN = KeyTime(0)


class Program(ABC):
    """A backup program. Every method that takes a ``place`` returns the command to run there, and runs nothing."""

    name: str
    finished = frozenset({0})
    """Exit codes of a run that did its work, possibly without files that this user may not read."""
    restore_options: tuple[tuple[str, ...], ...] = ((),)
    """Each is appended to ``restore`` and measured as a row of its own; the first is the default restore."""

    @abstractmethod
    def version(self) -> str | None:
        """The installed version; None when the program is not installed."""

    def environment(self, place: Path) -> dict[str, str]:
        """All of the environment the program gets; the directories in it exist."""
        home, temporary = place / "home", place / "tmp"
        for directory in (home, temporary):
            directory.mkdir(parents=True, exist_ok=True)
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_DATA_HOME": str(home / "data"),
            "XDG_STATE_HOME": str(home / "state"),
        }

    def repository(self, place: Path) -> Path:
        """Where the backups are; what its size on disk is taken of."""
        return place / "repository"

    @abstractmethod
    def init(self, place: Path) -> Command:
        """Makes the repository, which is not there yet."""

    def database(self, place: Path) -> Path | None:
        """The directory of the LMDB environment whose growth is measured; None for programs without one."""
        return None

    @abstractmethod
    def backup(self, place: Path, source: Path, name: str) -> Command:
        """Backs up ``source``; ``name`` differs from backup to backup, the first is "first"."""

    def bytes_read(self, output: str) -> int | None:
        """Bytes of file content that a backup says it has read; None for programs that do not say."""
        return None

    @abstractmethod
    def restore(self, place: Path, target: Path, name: str) -> Command:
        """Restores ``name``, or the newest backup, which is like it, to the empty directory ``target``, run in it."""

    def restored(self, target: Path, source: Path) -> Path:
        """Where a restore to ``target`` puts the directory ``source``: the absolute path below it."""
        return target / source.relative_to("/")

    @abstractmethod
    def verify(self, place: Path) -> Command:
        """Reads and checks all stored data."""

    @abstractmethod
    def snapshots(self, place: Path) -> Command:
        """Lists the backups."""

    @abstractmethod
    def help(self) -> Command:
        """Shows the help and does nothing."""


class Archiver(Program):
    """This program, from this checkout."""

    name = "archiver"
    finished = frozenset({0, 3})
    restore_options = ((), ("--no-verify",))

    def version(self) -> str | None:
        if not (PROJECT / "archiver" / "__main__.py").exists():
            return None
        return str(importlib.import_module("archiver").__version__)

    def environment(self, place: Path) -> dict[str, str]:
        return {**super().environment(place), "PYTHONPATH": str(PROJECT)}

    def init(self, place: Path) -> Command:
        return self._command(place, "init")

    def database(self, place: Path) -> Path | None:
        return self.repository(place) / ".archiver" / "db"

    def backup(self, place: Path, source: Path, name: str) -> Command:
        options = ["--json", "--mode", "metadata", "--id", BACKUP_ID]
        return self._command(place, "backup", *options, f"data.pxar:{source}")

    def bytes_read(self, output: str) -> int | None:
        document = next(line for line in output.splitlines() if line.startswith("{"))
        return int(json.loads(document)["bytes_read"])

    def restore(self, place: Path, target: Path, name: str) -> Command:
        return self._command(place, "restore", f"host/{BACKUP_ID}", str(target))

    def restored(self, target: Path, source: Path) -> Path:
        return target

    def verify(self, place: Path) -> Command:
        return self._command(place, "verify")

    def snapshots(self, place: Path) -> Command:
        return self._command(place, "snapshots")

    def help(self) -> Command:
        return [sys.executable, "-m", "archiver", "--help"]

    def _command(self, place: Path, *arguments: str) -> Command:
        return [sys.executable, "-m", "archiver", "--store", str(self.repository(place)), *arguments]


class ArchiverWithKey(Archiver):
    """The same with everything encrypted, by a key file without a passphrase."""

    name = "archiver+key"

    def environment(self, place: Path) -> dict[str, str]:
        keyfile = place / "key.json"
        if not keyfile.exists():
            place.mkdir(parents=True, exist_ok=True)
            keyfile.write_bytes(KeyFile.wrap(CryptConfig(bytes(range(32))), None, None, None, _THEN, _THEN).encode())
        return {**super().environment(place), "ARCHIVER_KEYFILE": str(keyfile)}


class Restic(Program):
    name = "restic"
    _program = "restic"
    finished = frozenset({0, 3})
    restore_options = ((), ("--verify",))

    def version(self) -> str | None:
        return _version_word(self._program, "version")

    def environment(self, place: Path) -> dict[str, str]:
        return {
            **super().environment(place),
            "RESTIC_PASSWORD": "bench",
            "RESTIC_REPOSITORY": str(self.repository(place)),
            "RESTIC_CACHE_DIR": str(place / "home" / "cache"),
        }

    def init(self, place: Path) -> Command:
        # Version 1 repositories do not compress. Programs older than 0.14 know no other, nor this option.
        help_text = subprocess.run(
            [self._program, "init", "--help"], capture_output=True, text=True, check=False
        ).stdout
        option = ["--repository-version", "2"] if "--repository-version" in help_text else []
        return [self._program, "init", *option]

    def backup(self, place: Path, source: Path, name: str) -> Command:
        return [self._program, "backup", "--one-file-system", "--host", BACKUP_ID, str(source)]

    def restore(self, place: Path, target: Path, name: str) -> Command:
        return [self._program, "restore", "latest", "--target", str(target)]

    def verify(self, place: Path) -> Command:
        return [self._program, "check", "--read-data"]

    def snapshots(self, place: Path) -> Command:
        return [self._program, "snapshots"]

    def help(self) -> Command:
        return [self._program, "--help"]


class Borg(Program):
    name = "borg"
    finished = frozenset({0, 1})

    def version(self) -> str | None:
        return _version_word(self.name, "--version")

    def environment(self, place: Path) -> dict[str, str]:
        return {
            **super().environment(place),
            "BORG_REPO": str(self.repository(place)),
            "BORG_BASE_DIR": str(place / "home"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }

    def init(self, place: Path) -> Command:
        return [self.name, "init", "--encryption", "none"]

    def backup(self, place: Path, source: Path, name: str) -> Command:
        return [self.name, "create", "--one-file-system", "--compression", "zstd,1", f"::{name}", str(source)]

    def restore(self, place: Path, target: Path, name: str) -> Command:
        return [self.name, "extract", f"::{name}"]

    def verify(self, place: Path) -> Command:
        return [self.name, "check", "--verify-data"]

    def snapshots(self, place: Path) -> Command:
        return [self.name, "list"]

    def help(self) -> Command:
        return [self.name, "--help"]


def programs() -> list[Program]:
    """All that are compared, installed or not."""
    return [Archiver(), ArchiverWithKey(), Restic(), Borg()]


def _version_word(program: str, argument: str) -> str | None:
    """The second word of ``program argument``, which is where restic and borg name their version."""
    if shutil.which(program) is None:
        return None
    words = subprocess.run([program, argument], capture_output=True, text=True, check=False).stdout.split()
    return words[1] if len(words) > 1 else "unknown"
