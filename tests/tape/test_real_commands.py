"""The tape commands with a real drive and a library: simulated below the kernel's calls and below mtx."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from archiver.tape.changer.mtx import Library, MtxChanger
from archiver.tape.drive.interface import Drive
from archiver.tape.drive.scan import FoundDevice
from archiver.tape.drive.st import StDrive
from formats.tape.blocks import BLOCK_SIZE
from tests.cli.command import ask, call
from tests.tape.simulator import EMULATED, GENERIC, NODE, Medium, SimulatedKernel
from tests.tape.test_commands import README, documented
from tests.tape.test_mtx import SimulatedLibrary

SLOTS = {1: "AAAA01", 2: "AAAA02", 3: "AAAA03", 4: "CLN001", 5: None, 6: None}


class Machine:
    """What is attached to it. Processes come and go: the drive is opened by each anew."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel = SimulatedKernel(EMULATED)
        self.library = SimulatedLibrary(self.kernel, dict(SLOTS), exports=[6])
        monkeypatch.setattr("archiver.tape.access.StDrive", self.drive)
        monkeypatch.setattr("archiver.tape.access.MtxChanger", self.changer)
        monkeypatch.setattr("archiver.tape.access.Library", self.robot)
        monkeypatch.setattr("archiver.tape.changer.mtx.Library", self.robot)

    def drive(self, name: str, path: str, *, generic: str | None = None) -> StDrive:
        assert path == NODE
        return StDrive(name, path, kernel=self.kernel, generic=generic or GENERIC, sleep=lambda _: None)

    def robot(self, path: str, export_slots: Sequence[int] = (), **_: object) -> Library:
        return Library(path, export_slots, run=self.library.run)

    def changer(self, name: str, path: str, number: int, drive: Drive, export_slots: Sequence[int]) -> MtxChanger:
        return MtxChanger(name, path, number, drive, export_slots, run=self.library.run)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def robot(machine: Machine) -> Machine:
    ask("tape", "changer", "add", "robot", "--path", "/dev/sg2")
    ask("tape", "drive", "add", "lto", "--path", NODE, "--changer", "robot")
    return machine


def check(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """Has the members that the README names."""
    members, items = documented()[name]
    assert document.keys() == {"schema"} | members
    for item in document.get("items", ()):
        assert item.keys() == items
    return document


def test_a_person_puts_media_into_the_drive(machine: Machine) -> None:
    ask("tape", "drive", "add", "lto", "--path", NODE)
    done = call("tape", "read-label", "--json")
    assert (done.code, done.error["code"]) == (13, "no-medium")
    assert call("tape", "eject").code == 13 and call("tape", "rewind").code == 13
    assert call("tape", "load", "AAAA01").code == 2
    status = check("tape drive status", ask("tape", "drive", "status"))
    assert status["loaded"] is False and status["medium"] is None
    machine.kernel.medium = Medium()
    assert call("tape", "read-label", "--json").error["code"] == "not-labelled"
    ask("tape", "label", "--label-text", "SHELF1")
    assert ask("tape", "read-label")["label-text"] == "SHELF1"
    assert [item["kind"] for item in ask("tape", "scan")["items"]] == ["media label"]
    again = call("tape", "label", "--label-text", "SHELF2")
    assert again.code == 2 and "SHELF1" in again.err
    assert call("tape", "changer", "status").code == 2 and call("tape", "inventory").code == 2
    ask("tape", "format")
    assert call("tape", "read-label", "--json").error["code"] == "not-labelled"
    ask("tape", "eject")
    assert machine.kernel.medium is None
    assert not machine.kernel.in_use


def test_a_protected_medium_is_not_labelled(machine: Machine) -> None:
    ask("tape", "drive", "add", "lto", "--path", NODE)
    machine.kernel.medium = Medium(protected=True)
    done = call("tape", "label", "--label-text", "SHELF1", "--json")
    assert (done.code, done.error["code"]) == (1, "write-protected")
    assert ask("tape", "drive", "status")["write-protect"] is True
    assert machine.kernel.medium.items == []


def test_a_drive_that_is_gone_or_in_use(machine: Machine) -> None:
    ask("tape", "drive", "add", "lto", "--path", NODE)
    machine.kernel.busy = True
    assert call("tape", "drive", "status").code == 11
    machine.kernel.busy, machine.kernel.gone = False, True
    done = call("tape", "drive", "status", "--json")
    assert (done.code, done.error["code"]) == (13, "target-absent")


def test_a_robot_loads_and_labels(robot: Machine) -> None:
    items = check("tape changer status", ask("tape", "changer", "status"))["items"]
    assert [(item["entry-kind"], item["entry-id"], item["label-text"]) for item in items] == [
        ("drive", 0, None),
        ("slot", 1, "AAAA01"),
        ("slot", 2, "AAAA02"),
        ("slot", 3, "AAAA03"),
        ("slot", 4, "CLN001"),
        ("slot", 5, None),
        ("import-export", 6, None),
    ]
    robot.library.media["AAAA02"] = Medium(items=[b"other data".ljust(BLOCK_SIZE), None])
    done = check("tape barcode-label", ask("tape", "barcode-label"))["items"]
    assert [item["label-text"] for item in done if item["result"] == "labelled"] == ["AAAA01", "AAAA03"]
    assert robot.library.media["AAAA02"].files == [[b"other data".ljust(BLOCK_SIZE)]]
    ask("tape", "load", "AAAA01")
    assert ask("tape", "read-label")["label-text"] == "AAAA01"
    assert ask("tape", "changer", "status")["items"][0]["loaded-slot"] == 1
    found = {item["label-text"]: item["location"] for item in ask("tape", "inventory")["items"]}
    assert found["AAAA01"] == "online-robot" and found["AAAA03"] == "online-robot"
    ask("tape", "eject")
    assert robot.library.slots[1] == "AAAA01"
    assert call("tape", "load", "CLN001").code == 2
    assert call("tape", "load", "AAAA09").code == 10


def test_media_are_moved_out_of_the_library(robot: Machine) -> None:
    ask("tape", "barcode-label")
    ask("tape", "eject")
    done = check("tape changer transfer", ask("tape", "changer", "transfer", "robot", "--from", "3", "--to", "6"))
    assert (done["changer"], done["from"], done["to"]) == ("robot", 3, 6)
    assert robot.library.slots[6] == "AAAA03"
    locations = {item["label-text"]: item["location"] for item in ask("tape", "media", "list")["items"]}
    assert locations == {"AAAA01": "online-robot", "AAAA02": "online-robot", "AAAA03": "offline"}
    robot.library.slots[1] = None  # taken out by hand
    locations = {item["label-text"]: item["location"] for item in ask("tape", "media", "list")["items"]}
    assert locations["AAAA01"] == "offline"
    robot.library.fails = [(1, b"cannot open SCSI device '/dev/sg2' - No such device\n")]
    locations = {item["label-text"]: item["location"] for item in ask("tape", "media", "list")["items"]}
    assert locations["AAAA02"] == "online-robot"  # who cannot be asked has told nothing new
    robot.library.fails = [(1, b"Source Element Address 1000 is Empty\n")]
    assert call("tape", "changer", "transfer", "robot", "--from", "1", "--to", "2").code == 1
    assert call("tape", "changer", "transfer", "none", "--from", "1", "--to", "2").code == 10
    assert call("tape", "changer", "transfer", "robot", "--from", "0", "--to", "2").code == 2


def test_what_the_kernel_has_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    drive = FoundDevice("drive", NODE, GENERIC, "IBM", "ULT3580-HH8", "1097")
    robot = FoundDevice("changer", "/dev/sg2", "/dev/sg2", "IBM", "3573-TL", "4711")
    for devices in ([drive], []):
        monkeypatch.setattr("archiver.tape.drive.scan.find_drives", lambda devices=devices: devices)
        items = check("tape drive scan", ask("tape", "drive", "scan"))["items"]
        assert [item["serial"] for item in items] == ["1097"] * len(devices)
    monkeypatch.setattr("archiver.tape.drive.scan.find_changers", lambda: [robot])
    assert check("tape changer scan", ask("tape", "changer", "scan"))["items"][0]["path"] == "/dev/sg2"
    assert "3573-TL" in call("tape", "changer", "scan").out
    assert "no tape drive" in call("tape", "drive", "scan").err + call("tape", "drive", "scan").out


def test_a_backup_goes_over_media_and_comes_back(robot: Machine, tmp_path: Path) -> None:
    source, store, again = tmp_path / "data", tmp_path / "store", tmp_path / "again"
    source.mkdir()
    chance = random.Random(7)
    for number in range(4):
        (source / f"file{number}").write_bytes(chance.randbytes(1 << 19))
    ask("init", store, "--name", "laptop")
    ask("--store", store, "backup", source, "--id", "one", "--chunk-size", "256")
    ask("tape", "pool", "create", "daily")
    for label in ("AAAA01", "AAAA02", "AAAA03"):
        robot.library.media[label] = Medium(capacity=8, reserve=8)
    ask("tape", "barcode-label", "--pool", "daily")
    assert ask("--store", store, "tape", "backup", "daily")["media"] == ["AAAA01", "AAAA02"]
    assert all(item is None for medium in robot.library.media.values() for item in medium.items[-1:])
    ask("tape", "verify", "daily")
    assert ask("--store", store, "tape", "backup", "daily")["media"] == []
    ask("init", again)
    ask("--store", again, "tape", "restore", "daily")
    ask("--store", again, "restore", "host/one", tmp_path / "out")
    for number in range(4):
        assert (tmp_path / "out" / f"file{number}").read_bytes() == (source / f"file{number}").read_bytes()
    assert not robot.kernel.in_use
    robot.library.slots[1] = None  # the first medium was taken out
    ask("init", tmp_path / "third")
    missing = call("--store", tmp_path / "third", "tape", "restore", "daily", "--json")
    assert missing.code == 13 and "AAAA01" in missing.document["error"]["message"]


def test_a_person_is_asked_for_the_next_medium(machine: Machine, tmp_path: Path) -> None:
    """The full one is ejected; without anybody who waits the run ends, and goes on when the next one is in."""
    source, store = tmp_path / "data", tmp_path / "store"
    source.mkdir()
    for number in range(4):
        (source / f"file{number}").write_bytes(random.Random(number).randbytes(1 << 19))
    ask("init", store)
    ask("--store", store, "backup", source, "--id", "one", "--chunk-size", "256")
    ask("tape", "drive", "add", "lto", "--path", NODE)
    ask("tape", "pool", "create", "daily")
    media = [Medium(capacity=8, reserve=8) for _ in range(2)]
    for number, medium in enumerate(media, 1):
        machine.kernel.medium = medium
        ask("tape", "label", "--label-text", f"SHELF{number}", "--pool", "daily")
    machine.kernel.medium = media[0]
    done = call("--store", store, "tape", "backup", "daily", "--json")
    assert (done.code, done.document["error"]["code"]) == (13, "wrong-medium")
    assert "SHELF2" in done.document["error"]["message"]
    assert machine.kernel.medium is None
    machine.kernel.medium = media[1]
    assert len(ask("--store", store, "tape", "backup", "daily")["written"]) == 1
    checked = call("tape", "verify", "daily", "--medium", "SHELF2")
    assert checked.code == 0


def test_media_are_put_away(robot: Machine, tmp_path: Path) -> None:
    """At the end of a run, whether there was something to write or not."""
    source, store = tmp_path / "data", tmp_path / "store"
    source.mkdir()
    (source / "file").write_bytes(random.Random(7).randbytes(1 << 16))
    ask("init", store)
    ask("--store", store, "backup", source, "--id", "one")
    ask("tape", "pool", "create", "daily")
    ask("tape", "barcode-label", "--pool", "daily")
    done = ask("--store", store, "tape", "backup", "daily", "--export")
    assert done["media"] == ["AAAA01"] and robot.library.slots[6] == "AAAA01"
    locations = {item["label-text"]: item["location"] for item in ask("tape", "media", "list")["items"]}
    assert locations["AAAA01"] == "offline"
    ask("tape", "load", "AAAA02")
    done = ask("--store", store, "tape", "backup", "daily", "--eject")
    assert done["written"] == [] and robot.library.slots[2] == "AAAA02"


def test_the_lines_of_the_readme_set_up_a_library(machine: Machine) -> None:
    ask("tape", "pool", "create", "offline")
    (lines,) = re.findall(r"(?:^    archiver tape .*\n)+(?=\nWithout a changer)", README.read_text(), re.MULTILINE)
    for line in lines.splitlines():
        ask(*line.split()[1:])
    assert {item["pool"] for item in ask("tape", "media", "list")["items"]} == {"offline"}
