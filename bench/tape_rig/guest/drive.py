"""The drive and the robot themselves, without commands: what a person or a power failure does to them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

from archiver.errors import Locked, NotFound, UsageError
from archiver.tape.changer.mtx import MtxChanger
from archiver.tape.drive.interface import EndOfData, MediumError, NoMedium, WriteProtected
from archiver.tape.drive.mtio import Kernel
from archiver.tape.drive.scan import find_changers, find_drives, generic_node
from archiver.tape.drive.st import StDrive
from bench.tape_rig.guest.library import Library
from bench.tape_rig.guest.report import check, expect, fact, refused, same
from formats.tape.blocks import BLOCK_SIZE

FIRST, SECOND = "T00001L8", "T00002L8"
_ENDLESS = 1000
_STEPS = 60
_QUICK = 10.0  # seconds, even here; a plain opening of an empty drive takes two minutes
_WRITING = """
import sys
from archiver.tape.drive.st import StDrive
drive = StDrive("lto", sys.argv[1])
drive.locate_end()
writer = drive.create_file()
for number in range(200, 203):
    writer.write(bytes((number,)) * 262144)
print("written", flush=True)
sys.stdin.read()
"""


def run(rig: Library) -> None:
    with check("the kernel's drive and changer are found"):
        drives, changers = find_drives(), find_changers()
        same([(found.path, found.vendor) for found in drives], [(rig.drive, "IET")], "drives")
        same([found.path for found in changers], [rig.changer], "changers")
        fact("drive", f"{drives[0].vendor} {drives[0].model}, beside it {drives[0].generic}")
    with check("an empty drive says so at once"):
        began = time.monotonic()
        with StDrive("lto", rig.drive) as drive:
            expect(not drive.status().loaded, "a medium is said to be loaded")
            expect(not drive.wait_until_ready(0), "it is said to be ready")
            with refused(NoMedium, "going to the end"):
                drive.locate_end()
        expect(time.monotonic() - began < _QUICK, f"it took {time.monotonic() - began:.0f} s")
    with check("the robot says what is at hand"), StDrive("lto", rig.drive) as drive:
        robot = MtxChanger("robot", rig.changer, 0, drive)
        same(robot.online(), ["T00001L8", "T00002L8", "T00003L8", "T00004L8"], "labels")
        for label, kind in (("CLN001L1", UsageError), ("T99999L8", NotFound)):
            with refused(kind, f"loading {label}"):
                robot.load(label)
        robot.load(FIRST)
        robot.load(FIRST)
        expect(drive.status().loaded, "the medium is not in the drive")
    with check("a blank medium has no file"), StDrive("lto", rig.drive) as drive:
        with refused(EndOfData, "reading"):
            drive.open_file()
        same(drive.locate_end(), 0, "files")
    with check("one process has the drive"), StDrive("lto", rig.drive), refused(Locked, "a second opening"):
        StDrive("lto", rig.drive)
    with check(f"{_STEPS} random steps leave the files that were written"):
        _random_steps(rig)
    with check("a writer that is killed leaves a file"):
        _killed(rig)
    with check("a file that a power failure cut is readable and gets its mark"):
        _cut(rig)
    with check("a write-protected medium is not written"):
        _protected(rig)
    with check("the early warning comes, and no block is lost or doubled"):
        _early_warning(rig)
    with check("a medium that cannot be erased is written over"), StDrive("lto", rig.drive) as drive:
        drive.format(fast=True)
        expect(read_all(drive) in ([], [[]]), "there is data on it")
        drive.rewind()
        write(drive, [1])
        same(read_all(drive), [[1]], "files")
        drive.format(fast=True)
    with check("media change places"):
        _changes(rig)


def write(drive: StDrive, numbers: list[int]) -> bool:
    near = False
    with drive.create_file() as writer:
        for number in numbers:
            near = writer.write(bytes((number,)) * BLOCK_SIZE)
        writer.finish()
    return near


def read(drive: StDrive) -> list[int]:
    found = []
    with drive.open_file() as reader:
        while (block := reader.read_block()) is not None:
            expect(len(block) == BLOCK_SIZE and len(set(bytes(block[::4096]))) == 1, "a block is none of ours")
            found.append(block[0])
    return found


def read_all(drive: StDrive) -> list[list[int]]:
    drive.rewind()
    found = []
    while True:
        try:
            found.append(read(drive))
        except EndOfData:
            return found


def _random_steps(rig: Library) -> None:
    chance = random.Random(1)
    files: list[list[int]] = []
    drive = StDrive("lto", rig.drive)
    try:
        for step in range(_STEPS):
            # never none: moving forward from an empty file, tgt does not count its mark
            numbers = [chance.randrange(1, 200) for _ in range(chance.randrange(1, 4))]
            at = chance.randrange(0, len(files) + 1)
            match chance.choice(["append", "append", "write", "read", "read", "part", "again", "beyond", "left"]):
                case "append":
                    same(drive.locate_end(), len(files), f"files at step {step}")
                    write(drive, numbers)
                    files.append(numbers)
                case "write":
                    drive.locate(at)
                    write(drive, numbers)
                    files[at:] = [numbers]
                case "read" if at < len(files):
                    drive.locate(at)
                    same(read(drive), files[at], f"file {at} at step {step}")
                case "part" if at < len(files):
                    drive.locate(at)
                    drive.open_file().read_block()
                case "again":
                    drive.close()
                    drive = StDrive("lto", rig.drive)
                case "beyond":
                    with refused(EndOfData, f"a file behind the end, at step {step},"):
                        drive.locate(len(files) + 1 + at)
                case "left":
                    drive.locate_end()
                    drive.create_file().write(bytes((7,)) * BLOCK_SIZE)
                    drive.close()
                    drive = StDrive("lto", rig.drive)
                    files.append([7])
            if sum(map(len, files)) > 60:
                drive.rewind()
                write(drive, [9])
                files = [[9]]
        same(read_all(drive), files, "files at the end")
    finally:
        drive.close()


def _killed(rig: Library) -> None:
    with StDrive("lto", rig.drive) as drive:
        drive.rewind()
        write(drive, [1])
    child = subprocess.Popen(
        [sys.executable, "-c", _WRITING, rig.drive], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    same(child.stdout.readline(), "written\n", "the writer's word")
    child.send_signal(signal.SIGKILL)
    child.wait()
    with StDrive("lto", rig.drive) as drive:
        same(drive.locate_end(), 2, "files")
        same(read_all(drive), [[1], [200, 201, 202]], "files")


def _cut(rig: Library) -> None:
    """Blocks that are written beside the kernel's driver get no file mark when the node is closed."""
    with StDrive("lto", rig.drive) as drive:
        drive.rewind()
        write(drive, [1, 2])
        drive.locate_end()
    kernel, node = Kernel(), generic_node(rig.drive)
    assert node is not None
    fd = kernel.open(node, os.O_RDWR)
    for number in (3, 4):
        command = bytes((0x0A, 0)) + BLOCK_SIZE.to_bytes(3, "big") + b"\0"
        answer = kernel.scsi(fd, command, send=bytes((number,)) * BLOCK_SIZE, receive=0, seconds=30)
        expect(answer.ok, f"WRITE beside the driver fails: {answer.sense.hex()}")
    kernel.close(fd)
    with StDrive("lto", rig.drive) as drive:
        drive.locate(1)
        reader = drive.open_file()
        for number in (3, 4):
            block = reader.read_block()
            expect(block is not None and block[0] == number, f"block {number} is not there")
        with refused(EndOfData, "reading on"):
            reader.read_block()
        same(drive.locate_end(), 2, "files")
        write(drive, [5])
        same(read_all(drive), [[1, 2], [3, 4], [5]], "files")


def _protected(rig: Library) -> None:
    rig.protect(True)
    try:
        with StDrive("lto", rig.drive) as drive:
            expect(drive.status().write_protected, "the switch is not seen")
            before = read_all(drive)
            drive.rewind()
            with refused(WriteProtected, "writing"):
                drive.create_file()
            with refused(WriteProtected, "erasing"):
                drive.format(fast=True)
            same(read_all(drive), before, "files")
    finally:
        rig.protect(False)
    with StDrive("lto", rig.drive) as drive:
        expect(not drive.status().write_protected, "the switch is said to be on still")


def _early_warning(rig: Library) -> None:
    with StDrive("lto", rig.drive) as drive:
        drive.rewind()
        write(drive, [1])
        written: list[int] = []
        first = None
        with drive.create_file() as writer:
            for number in range(_ENDLESS):
                value = number % 199 + 1
                if writer.write(bytes((value,)) * BLOCK_SIZE) and first is None:
                    first = number + 1
                written.append(value)
                if first is not None and number + 1 == first + 7:
                    break
            writer.finish()
        expect(first is not None, f"no warning in {_ENDLESS} blocks")
        fact("early warning", f"at block {first} of the second file, {_blocks(first)} of the medium")
        expect(write(drive, [2, 3]), "the next file has no warning")
        drive.flush()
        files = read_all(drive)
        same([len(file) for file in files], [1, len(written), 2], "lengths of the files")
        expect(files[1] == written, "a block is lost or doubled")


def _blocks(first: int | None) -> int:
    return (first or 0) + 1


def _changes(rig: Library) -> None:
    with StDrive("lto", rig.drive) as drive:
        robot = MtxChanger("robot", rig.changer, 0, drive)
        for label, value in ((FIRST, 11), (SECOND, 22)):
            robot.load(label)
            drive.rewind()
            write(drive, [value])
        robot.load(FIRST)
        same(read_all(drive), [[11]], f"files of {FIRST}")
        drive.eject()
        expect(not drive.wait_until_ready(0) or drive.status().loaded, "what it says contradicts itself")
        robot.export(FIRST)
        expect(FIRST not in (robot.online() or []), "what was exported is at hand still")
        number = next(element.number for element in robot.status() if element.label == FIRST)
        robot.load(SECOND)
        same(read_all(drive), [[22]], f"files of {SECOND}")
        drive.format(fast=True)
        robot.unload()
        expect(not drive.wait_until_ready(0), "the drive is said to be ready after unloading")
        from archiver.tape.changer.mtx import Library as Robot

        Robot(rig.changer).move("transfer", number, 1)
        robot.load(FIRST)
        with refused(MediumError, "a file in the middle of another"):
            drive.open_file().read_block()
            drive.create_file()
        drive.format(fast=True)
        robot.unload()
