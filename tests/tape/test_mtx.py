"""Libraries through mtx: what it prints is understood, and nothing that it could print does harm."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from archiver.errors import ArchiverError, Locked, NotFound, TargetAbsent, UsageError
from archiver.tape.changer.mtx import Element, Library, MtxChanger, parse_status
from archiver.tape.drive.interface import NoMedium
from archiver.tape.drive.scan import find_changers, find_drives, generic_node, model_of
from archiver.tape.drive.st import StDrive
from tests.tape.simulator import GENERIC, NODE, REAL, Medium, SimulatedKernel

# as mtx 1.3.12 prints it of the library of tgt 1.0.85
TGT = """\
  Storage Changer /dev/sg2:1 Drives, 7 Slots ( 1 Import/Export )
Data Transfer Element 0:Full (Storage Element 2 Loaded):VolumeTag = T00002L8~
      Storage Element 1:Full :VolumeTag=T00001L8~
      Storage Element 2:Empty:VolumeTag=~
      Storage Element 3:Full :VolumeTag=~
      Storage Element 4:Full :VolumeTag=CLN001L1~
      Storage Element 5:Empty:VolumeTag=~
      Storage Element 6:Empty:VolumeTag=~
      Storage Element 7 IMPORT/EXPORT:Full :VolumeTag=T00003L8~

""".replace("~", " " * 24)
# a library with two drives and alternate tags, from which one medium was taken in by hand
OTHER = """\
  Storage Changer /dev/changer:2 Drives, 4 Slots ( 2 Import/Export )
Data Transfer Element 0:Empty
Data Transfer Element 1:Full (Unknown Storage Element Loaded):VolumeTag = ABC123L6 :AlternateVolumeTag = Z
      Storage Element 1:Empty
      Storage Element 2:Full :VolumeTag=DEF456L6:AlternateVolumeTag=Y
      Storage Element 3 IMPORT/EXPORT:Empty
      Storage Element 4 IMPORT/EXPORT:Full
"""


class SimulatedLibrary:
    """Answers as mtx does; moves media, also into the simulated drive."""

    def __init__(self, kernel: SimulatedKernel, slots: dict[int, str | None], exports: Sequence[int] = ()) -> None:
        self.kernel = kernel
        self.slots = slots
        self.exports = exports
        self.loaded: tuple[int, str] | None = None
        self.media: dict[str, Medium] = {}
        self.calls: list[str] = []
        self.fails: list[tuple[int, bytes]] = []
        self.elsewhere: str | None = None  # in drive 1

    def run(self, command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[bytes]:
        assert command[:3] == ["mtx", "-f", "/dev/sg2"]
        if self.fails:
            code, said = self.fails.pop(0)
            return subprocess.CompletedProcess(command, code, b"", said)
        words = list(command[3:])
        if words != ["status"]:
            self.calls.append(" ".join(words))
            self._move(words[0], int(words[1]), int(words[2]))
        return subprocess.CompletedProcess(command, 0, self._status().encode(), b"")

    def _move(self, what: str, first: int, second: int) -> None:
        if what == "load":
            label = self.slots[first]
            assert label is not None and self.loaded is None and second == 0
            self.slots[first], self.loaded = None, (first, label)
            self.kernel.medium = self.media.setdefault(label, Medium())
        elif what == "unload":
            assert self.loaded is not None and self.slots[first] is None and second == 0
            assert self.kernel.medium is None, "the drive was not told to let go"
            self.slots[first], self.loaded = self.loaded[1], None
        else:
            assert what == "transfer" and self.slots[second] is None and self.slots[first] is not None
            self.slots[first], self.slots[second] = None, self.slots[first]

    def _status(self) -> str:
        lines = [f"  Storage Changer /dev/sg2:2 Drives, {len(self.slots)} Slots ( {len(self.exports)} Import/Export )"]
        if self.loaded is None:
            lines.append("Data Transfer Element 0:Empty")
        else:
            lines.append(
                f"Data Transfer Element 0:Full (Storage Element {self.loaded[0]} Loaded):VolumeTag = {self.loaded[1]} "
            )
        if self.elsewhere:
            lines.append(f"Data Transfer Element 1:Full (Unknown Storage Element Loaded):VolumeTag = {self.elsewhere}")
        for number, label in self.slots.items():
            kind = " IMPORT/EXPORT" if number in self.exports else ""
            full = "Empty" if label is None else f"Full :VolumeTag={label}   "
            lines.append(f"      Storage Element {number}{kind}:{full}")
        return "\n".join(lines) + "\n"


class Rig:
    def __init__(self, slots: dict[int, str | None], exports: Sequence[int] = ()) -> None:
        self.kernel = SimulatedKernel(REAL)
        self.library = SimulatedLibrary(self.kernel, slots, exports)
        self.drive = StDrive("lto", NODE, kernel=self.kernel, generic=GENERIC, sleep=lambda _: None)
        self.naps: list[float] = []
        self.changer = MtxChanger("robot", "/dev/sg2", 0, self.drive, run=self.library.run, sleep=self.naps.append)


def test_what_mtx_prints_is_understood() -> None:
    assert parse_status(TGT) == [
        Element("drive", 0, True, "T00002L8", 2),
        Element("slot", 1, True, "T00001L8"),
        Element("slot", 2, False, None),
        Element("slot", 3, True, None),
        Element("slot", 4, True, "CLN001L1"),
        Element("slot", 5, False, None),
        Element("slot", 6, False, None),
        Element("import-export", 7, True, "T00003L8"),
    ]
    assert parse_status(OTHER, export_slots=[2]) == [
        Element("drive", 0, False, None),
        Element("drive", 1, True, "ABC123L6"),
        Element("slot", 1, False, None),
        Element("import-export", 2, True, "DEF456L6"),
        Element("import-export", 3, False, None),
        Element("import-export", 4, True, None),
    ]
    assert json.loads(json.dumps(parse_status(TGT)[0].as_json())) == {
        "entry-kind": "drive",
        "entry-id": 0,
        "label-text": "T00002L8",
        "loaded-slot": 2,
    }
    assert [element.as_json()["label-text"] for element in parse_status(TGT)[2:4]] == [None, "--FULL--"]


@pytest.mark.parametrize(
    "line",
    [
        "Storage Element 1:Full :VolumeTag=../../etc/passwd",
        "Storage Element 1:Full :VolumeTag=-f",
        "Storage Element 1:Full :VolumeTag=\x1b[31mred",
        "Storage Element 1:Full :VolumeTag=" + "A" * 33,
        "Storage Element 1:Full :VolumeTag=A",
        "Storage Element 1:Full :VolumeTag=two words",
        "Storage Element 1:Full",
    ],
)
def test_a_label_that_is_none_is_not_taken(line: str) -> None:
    assert parse_status(line) == [Element("slot", 1, True, None)]


def test_lines_that_say_nothing_are_passed_over() -> None:
    lines = "Storage Element 99999999999:Full :VolumeTag=AA\nStorage Element -1:Empty\nStorage Element 1:Half\n\0\n"
    assert parse_status(lines) == []
    twice = "Storage Element 1:Full :VolumeTag=AA\nStorage Element 1:Full :VolumeTag=BB\n"
    assert parse_status(twice) == [Element("slot", 1, True, "AA")]


@settings(max_examples=100, deadline=None)
@given(some.integers(), some.text(max_size=30))
def test_damaged_output_is_read_without_harm(seed: int, inserted: str) -> None:
    chance = random.Random(seed)
    text = list(chance.choice([TGT, OTHER]))
    for _ in range(chance.randrange(1, 20)):
        at = chance.randrange(len(text))
        text[at : at + chance.randrange(9)] = chance.choice([[], [inserted], [chr(chance.randrange(256))]])
    for element in parse_status("".join(text)):
        assert element.label is None or (2 <= len(element.label) <= 32 and element.label.isascii())
        assert 0 <= element.number <= 99999


def test_media_are_loaded_and_brought_back_to_their_slots() -> None:
    rig = Rig({1: None, 2: "AAAA01", 3: "AAAA02", 4: "CLN001", 5: "AAAA05"}, exports=[5])
    changer = rig.changer
    assert changer.name == "robot"
    assert changer.online() == ["AAAA01", "AAAA02"]
    changer.load("AAAA02")
    assert rig.drive.status().loaded
    changer.load("AAAA02")
    assert rig.library.calls == ["load 3 0"]
    assert changer.online() == ["AAAA01", "AAAA02"]
    changer.load("AAAA01")
    assert rig.library.calls == ["load 3 0", "unload 3 0", "load 2 0"]
    assert rig.kernel.medium is rig.library.media["AAAA01"]
    rig.library.slots[2] = "OTHER1"  # its slot was filled meanwhile
    changer.unload()
    changer.unload()
    assert rig.library.calls[3:] == ["unload 1 0"]
    with pytest.raises(NoMedium):
        rig.drive.rewind()


def test_media_are_exported() -> None:
    rig = Rig({1: "AAAA01", 2: "AAAA02", 3: None, 4: None}, exports=[3, 4])
    rig.changer.load("AAAA01")
    rig.changer.export("AAAA01")
    rig.changer.export("AAAA01")
    rig.changer.export("AAAA02")
    rig.changer.export("NOTHERE")
    assert rig.library.calls == ["load 1 0", "unload 3 0", "transfer 2 4"]
    assert rig.changer.online() == []
    rig.library.slots[1] = "AAAA03"
    with pytest.raises(ArchiverError, match="no free import-export slot"):
        rig.changer.export("AAAA03")


def test_what_cannot_be_loaded_is_said() -> None:
    rig = Rig({1: "AAAA01", 2: "TWICE1", 3: "TWICE1", 4: "AAAA04", 5: "CLN001"}, exports=[4])
    rig.library.elsewhere = "AAAA09"
    with pytest.raises(NotFound, match="not there") as caught:
        rig.changer.load("AAAA77")
    assert caught.value.exit_code == 10
    with pytest.raises(NotFound, match="import-export"):
        rig.changer.load("AAAA04")
    with pytest.raises(Locked, match="drive 1"):
        rig.changer.load("AAAA09")
    with pytest.raises(Locked, match="drive 1"):
        rig.changer.export("AAAA09")
    with pytest.raises(ArchiverError, match="2 media with the barcode TWICE1: in slot 2 and slot 3"):
        rig.changer.load("TWICE1")
    with pytest.raises(UsageError, match="cleaning"):
        rig.changer.load("CLN001")
    assert rig.library.calls == []
    rig.changer.load("AAAA01")
    rig.library.slots[1] = "BBBB01"
    with pytest.raises(ArchiverError, match="no free slot"):
        rig.changer.unload()
    other = MtxChanger("robot", "/dev/sg2", 7, rig.drive, run=rig.library.run)
    with pytest.raises(TargetAbsent, match="no drive 7"):
        other.unload()


def test_a_medium_that_does_not_become_ready() -> None:
    rig = Rig({1: "AAAA01"})
    rig.kernel.becomes_ready_after = 1 << 30
    changer = MtxChanger("robot", "/dev/sg2", 0, _Never(rig.drive), run=rig.library.run)
    with pytest.raises(TargetAbsent, match="does not become ready"):
        changer.load("AAAA01")


class _Never(StDrive):
    def __init__(self, drive: StDrive) -> None:
        self.__dict__ = drive.__dict__

    def wait_until_ready(self, seconds: float) -> bool:
        assert seconds >= 600
        return False


def test_a_library_that_becomes_ready_is_waited_for() -> None:
    rig = Rig({1: "AAAA01"})
    rig.library.fails = [(1, b"mtx: Request Sense: Sense Key=Not Ready\nmtx: other\n")] * 3
    assert rig.changer.online() == ["AAAA01"]
    assert len(rig.naps) == 3


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (b"cannot open SCSI device '/dev/sg9' - No such file or directory\n", TargetAbsent, "no library to be had"),
        (b"cannot open SCSI device '/dev/sg9' - Permission denied\n", ArchiverError, "Permission denied"),
        (
            b"mtx: Request Sense: Sense Key=Illegal Request\nREAD ELEMENT STATUS Command Failed\n",
            ArchiverError,
            "Illegal",
        ),
        (b"\xff\xfe\x1b[2J\n", ArchiverError, "does not tell what it holds"),
        (b"", ArchiverError, "exit code 1"),
    ],
)
def test_errors_of_mtx_are_sentences(said: bytes, kind: type[ArchiverError], text: str) -> None:
    rig = Rig({1: "AAAA01"})
    rig.library.fails = [(1, said)]
    with pytest.raises(kind, match=text) as caught:
        rig.changer.online()
    assert str(caught.value).isprintable()


def test_an_answer_that_says_nothing() -> None:
    library = Library("/dev/sg2", run=lambda command, _: subprocess.CompletedProcess(command, 0, b"hello\n", b""))
    with pytest.raises(ArchiverError, match="says nothing"):
        library.status()


def test_mtx_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ArchiverError, match="not installed"):
        Library("/dev/sg2").status()
    program = tmp_path / "mtx"
    program.write_text('#!/bin/sh\necho "Storage Element 1:Full :VolumeTag=$2"\nread line && exit 9\ntrue\n')
    program.chmod(0o755)
    assert Library("sg2").status() == [Element("slot", 1, True, "sg2")]
    program.write_text("#!/bin/sh\nwhile :; do :; done\n")
    monkeypatch.setattr("archiver.tape.changer.mtx._STATUS_SECONDS", 0.2)
    with pytest.raises(ArchiverError, match="did not answer"):
        Library("/dev/sg2").status()
    program.chmod(0o644)
    with pytest.raises(ArchiverError, match="cannot run mtx"):
        Library("/dev/sg2").status()


# -- devices of the machine --------------------------------------------------------------------------------------------


def test_drives_and_changers_are_found_in_sysfs(tmp_path: Path) -> None:
    sysfs, names = tmp_path / "sys", tmp_path / "by-id"
    for node, generic, kind in (("nst0", "sg3", "1"), ("nst10", "sg4", "1"), ("nst2", None, "1"), (None, "sg11", "8")):
        device = sysfs / "devices" / (node or str(generic))
        device.mkdir(parents=True)
        (device / "vendor").write_text("IBM     \n")
        (device / "model").write_bytes(b"ULT\xff\x1b3580-HH8 \n")
        (device / "type").write_text(kind + "\n")
        if node:
            (device / "vpd_pg80").write_bytes(b"\x01\x80\x00\x0a1097000012")
            for name in (node, f"{node}a", node[1:]):
                (sysfs / "class/scsi_tape" / name).mkdir(parents=True)
                (sysfs / "class/scsi_tape" / name / "device").symlink_to(device)
        if generic:
            (device / "scsi_generic" / generic).mkdir(parents=True)
            (sysfs / "class/scsi_generic" / generic).mkdir(parents=True)
            (sysfs / "class/scsi_generic" / generic / "device").symlink_to(device)
    names.mkdir()
    (names / "scsi-1097000012-nst").symlink_to("/dev/nst10")
    drives = find_drives(str(sysfs), str(names))
    assert [(drive.path, drive.generic) for drive in drives] == [
        ("/dev/nst0", "/dev/sg3"),
        ("/dev/nst2", None),
        (str(names / "scsi-1097000012-nst"), "/dev/sg4"),
    ]
    assert drives[0].as_json() == {
        "kind": "drive",
        "path": "/dev/nst0",
        "generic": "/dev/sg3",
        "vendor": "IBM",
        "model": "ULT3580-HH8",
        "serial": "1097000012",
    }
    changers = find_changers(str(sysfs), str(names))
    assert [(changer.path, changer.serial) for changer in changers] == [("/dev/sg11", "")]
    assert generic_node("/dev/nst10", str(sysfs)) == "/dev/sg4"
    assert generic_node("/dev/nst2", str(sysfs)) is None
    assert model_of("/dev/nst0", str(sysfs)) == "IBM ULT3580-HH8"


def test_a_machine_without_drives(tmp_path: Path) -> None:
    assert find_drives(str(tmp_path), str(tmp_path)) == [] and find_changers(str(tmp_path), str(tmp_path)) == []
    assert model_of(os.devnull, str(tmp_path)) == ""
