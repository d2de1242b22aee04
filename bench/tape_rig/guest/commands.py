"""The program as a person runs it: from labelling to the restore on a machine that has nothing but the media."""

from __future__ import annotations

import filecmp
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from archiver.cli.main import main as archiver
from archiver.tape.drive.st import StDrive
from bench.tape_rig.guest.library import Library
from bench.tape_rig.guest.report import check, expect, fact, same
from formats.tape.blocks import BLOCK_SIZE

_MEDIA = ["T00001L8", "T00002L8", "T00003L8", "T00004L8"]
_WORK = Path("/tmp/commands")
_STORE = _WORK / "store"
_SIZE = 12 << 20  # bytes of a backup; a medium has room for one and a half
_HEAVY = ("numpy", "lmdb", "zstandard", "blake3", "cryptography.hazmat.primitives.ciphers.aead", "archiver.tape.access")
_KILLED_AFTER = (1.0, 2.5, 4.0)  # seconds after the drive was taken


@dataclass(frozen=True, slots=True)
class Running:
    """A command as a process of its own."""

    pid: int
    out: IO[bytes]
    err: IO[bytes]

    def is_over(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self) -> tuple[int, str, str]:
        """Its exit code, stdout and stderr."""
        _, status = os.waitpid(self.pid, 0)
        texts = []
        for file in (self.out, self.err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        return os.waitstatus_to_exitcode(status), texts[0], texts[1]


@dataclass(frozen=True, slots=True)
class Machine:
    """One person's state; ``name`` tells it from that of other machines."""

    name: str

    @property
    def environment(self) -> dict[str, str]:
        home = {f"XDG_{kind}_HOME": str(_WORK / self.name / kind.lower()) for kind in ("STATE", "CONFIG", "CACHE")}
        return {**os.environ, **home, "ARCHIVER_RESERVE": "0"}

    def start(self, *arguments: str) -> Running:
        """A process that has all modules already: to start the interpreter anew takes a minute in here."""
        out, err = (tempfile.TemporaryFile() for _ in range(2))
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.environ.update(self.environment)
            for fd, target in ((os.open(os.devnull, os.O_RDONLY), 0), (out.fileno(), 1), (err.fileno(), 2)):
                os.dup2(fd, target)
            archiver([*arguments, "--json"])
        return Running(pid, out, err)

    def ask(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """The document of a command that ends with ``code``."""
        ended, out, err = self.start(*arguments).wait()
        expect(ended == code, f"{' '.join(arguments)}: exit code {ended}\n{out[-1500:]}\n{err[-1500:]}")
        found: dict[str, Any] = json.loads(out)
        return found

    def error(self, *arguments: str, code: int) -> str:
        """The stable code of its error."""
        return str(self.ask(*arguments, code=code)["error"]["code"])

    def set_up(self, rig: Library, *, with_robot: bool = True) -> None:
        if with_robot:
            self.ask("tape", "changer", "add", "robot", "--path", rig.changer)
            self.ask("tape", "drive", "add", "lto", "--path", rig.drive, "--changer", "robot")
        else:
            self.ask("tape", "drive", "add", "lto", "--path", rig.drive)


def run(rig: Library) -> None:
    for name in _HEAVY:
        importlib.import_module(name)
    _WORK.mkdir()
    here = Machine("here")
    with check("a drive and its library are set up"):
        same([found["path"] for found in here.ask("tape", "drive", "scan")["items"]], [rig.drive], "drives")
        same([found["path"] for found in here.ask("tape", "changer", "scan")["items"]], [rig.changer], "changers")
        here.set_up(rig)
        here.ask("tape", "pool", "create", "daily")
        slots = here.ask("tape", "changer", "status")["items"]
        same([slot["label-text"] for slot in slots if slot["entry-kind"] == "slot"][:4], _MEDIA, "slots")
    with check("an empty drive and a blank medium are told from each other"):
        same(here.error("tape", "read-label", code=13), "no-medium", "of the empty drive")
        here.ask("tape", "load", "T00003L8")
        same(here.error("tape", "read-label", code=10), "not-labelled", "of the blank medium")
        same(here.ask("tape", "scan")["items"], [], "files of the blank medium")
    with check("a medium with other data is not labelled"):
        here.ask("tape", "load", "T00004L8")
        with StDrive("lto", rig.drive) as drive, drive.create_file() as writer:
            writer.write(b"other data".ljust(BLOCK_SIZE, b"!"))
        here.ask("tape", "label", "--label-text", "T00004L8", code=20)
        here.ask("tape", "format", code=30)
        here.ask("tape", "format", "--force")
    with check("media are labelled by their barcodes"):
        done = here.ask("tape", "barcode-label", "--pool", "daily")["items"]
        same([(each["label-text"], each["result"]) for each in done], [(name, "labelled") for name in _MEDIA], "media")
    with check("snapshots are made"):
        here.ask("init", str(_STORE), "--name", "laptop")
        for number in (1, 2):
            _back_up(here, number)
    with check("a write-protected medium is not written, and not taken for damaged"):
        here.ask("tape", "load", "T00001L8")
        rig.protect(True)
        try:
            same(here.error("--store", str(_STORE), "tape", "backup", "daily", code=1), "write-protected", "of the run")
        finally:
            rig.protect(False)
        expect("damaged" not in _statuses(here).values(), "a medium is damaged")
    with check("a backup goes over two media, the end of the first one inside a chunk archive"):
        _over_two_media(here)
    with check("what is on the media is not written again, and a later backup goes on behind it"):
        before = here.ask("--store", str(_STORE), "tape", "backup", "daily")
        same((before["media"], before["chunks"]), ([], 0), "the second run")
        _back_up(here, 3, size=1 << 20)
        same(here.ask("--store", str(_STORE), "tape", "backup", "daily")["media"], ["T00002L8"], "media of the third")
    with check("all that is on the media is verified"):
        here.ask("tape", "verify", "daily")
    with check("a backup that is killed is gone on with"):
        _killed(here)
    there = Machine("there")
    with check("a machine that knows nothing makes the catalogs from the media"):
        there.set_up(rig)
        there.ask("tape", "inventory", "--read-all-labels")
        for name in reversed(_used(there)):
            there.ask("tape", "load", name)
            if not _has_catalog(there, name):
                there.ask("tape", "catalog")
        same(_contents(there), _contents(here), "snapshots on the media")
    with check("the whole set is restored there"):
        _restored(there, "whole", _used(there)[0], [], [1, 2, 3, 4])
    with check("one snapshot is restored there"):
        wanted = next(name for name in _contents(there) if "/two/" in name)
        _restored(there, "single", _used(there)[0], [wanted], [2])
    with check("the wrong medium is named, and waited for no longer than asked"):
        _wrong_medium(rig, there)


def _back_up(machine: Machine, number: int, size: int = _SIZE) -> None:
    source = _source(number)
    source.mkdir(parents=True)
    chance = random.Random(number)
    for name in range(8):
        (source / f"file{name}").write_bytes(chance.randbytes(size // 8))
    machine.ask("--store", str(_STORE), "backup", str(source), "--id", _NAMES[number])


_NAMES = {1: "one", 2: "two", 3: "three", 4: "four"}


def _source(number: int) -> Path:
    return _WORK / "source" / _NAMES[number] / "data"


def _statuses(machine: Machine) -> dict[str, str]:
    return {medium["label-text"]: medium["status"] for medium in machine.ask("tape", "media", "list")["items"]}


def _used(machine: Machine) -> list[str]:
    """Labels of the media of the only set, in its order."""
    media = [medium for medium in machine.ask("tape", "media", "list")["items"] if medium["media-set-uuid"]]
    return [medium["label-text"] for medium in sorted(media, key=lambda medium: int(medium["seq-nr"]))]


def _has_catalog(machine: Machine, name: str) -> bool:
    media = machine.ask("tape", "media", "list")["items"]
    return any(medium["label-text"] == name and medium["catalog"] for medium in media)


def _contents(machine: Machine) -> list[str]:
    return sorted({entry["snapshot"] for entry in machine.ask("tape", "media", "content")["items"]})


def _over_two_media(machine: Machine) -> None:
    done = machine.ask("--store", str(_STORE), "tape", "backup", "daily")
    same(done["media"], ["T00001L8", "T00002L8"], "media of the run")
    statuses = _statuses(machine)
    same((statuses["T00001L8"], statuses["T00002L8"]), ("full", "writable"), "their statuses")
    kinds = {}
    for name in ("T00001L8", "T00002L8"):
        machine.ask("tape", "load", name)
        kinds[name] = [(file["kind"], file["bytes"]) for file in machine.ask("tape", "scan")["items"]]
        fact(f"files on {name}", ", ".join(f"{kind} {size}" for kind, size in kinds[name]))
    expect("chunk" in kinds["T00001L8"][-1][0], f"the first medium ends with {kinds['T00001L8'][-1][0]}")
    expect("catalog" in kinds["T00002L8"][2][0], f"the second one begins with {kinds['T00002L8'][2][0]}")
    expect("chunk" in kinds["T00002L8"][3][0], f"then it has {kinds['T00002L8'][3][0]}")


def _killed(machine: Machine) -> None:
    _back_up(machine, 4)
    for seconds in _KILLED_AFTER:
        running = machine.start("--store", str(_STORE), "tape", "backup", "daily")
        while not running.is_over() and not _is_taken():
            time.sleep(0.1)
        time.sleep(seconds)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    done = machine.ask("--store", str(_STORE), "tape", "backup", "daily")
    fact("the run after three that were killed", f"{done['chunks']} chunks onto {', '.join(done['media'])}")
    machine.ask("tape", "verify", "daily")


def _is_taken() -> bool:
    try:
        os.close(os.open("/dev/nst0", os.O_RDWR | os.O_NONBLOCK))
    except OSError:
        return True
    return False


def _restored(machine: Machine, name: str, medium: str, wanted: list[str], numbers: list[int]) -> None:
    store = _WORK / f"store-{name}"
    machine.ask("init", str(store))
    plan = machine.ask("--store", str(store), "tape", "restore", medium, *wanted, "--dry-run")
    fact(f"plan of the restore ({name})", json.dumps({key: plan[key] for key in plan if key != "items"})[:300])
    machine.ask("--store", str(store), "tape", "restore", medium, *wanted)
    found = [entry["snapshot"] for entry in machine.ask("--store", str(store), "snapshots")["items"]]
    same(len(found), len(numbers), "snapshots in the store")
    for number in numbers:
        target = _WORK / f"out-{name}-{number}"
        machine.ask("--store", str(store), "restore", f"host/{_NAMES[number]}", str(target))
        files = [f"file{at}" for at in range(8)]
        equal, _, _ = filecmp.cmpfiles(_source(number), target, files, shallow=False)
        same(sorted(equal), files, f"files of snapshot {number} that are as they were")
        shutil.rmtree(target)


def _wrong_medium(rig: Library, machine: Machine) -> None:
    machine.ask("tape", "load", "T00004L8")
    alone = Machine("alone")
    shutil.copytree(_WORK / machine.name, _WORK / alone.name)
    alone.ask("tape", "drive", "remove", "lto")
    alone.set_up(rig, with_robot=False)
    store = _WORK / "store-wrong"
    alone.ask("init", str(store))
    document = alone.ask("--store", str(store), "tape", "restore", "T00001L8", "--wait", "1", code=13)
    message = document["error"]["message"]
    expect("T00001L8" in message and "T00004L8" in message, f"it says: {message}")
    with StDrive("lto", rig.drive) as drive:
        drive.eject()
