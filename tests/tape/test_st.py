"""The drive over a simulated kernel: what is written is read, whatever a device answers in its own way."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from archiver.errors import ArchiverError, Locked, TargetAbsent, UsageError
from archiver.tape.drive.interface import (
    EndOfData,
    MediumError,
    MediumFull,
    NoMedium,
    WriteProtected,
)
from archiver.tape.drive.mtio import Kernel, ScsiAnswer
from archiver.tape.drive.st import StDrive
from formats.tape.blocks import BLOCK_SIZE
from tests.tape.simulator import (
    ALL,
    EMULATED,
    GENERIC,
    MISCOUNTS,
    NODE,
    REAL,
    Medium,
    SimulatedKernel,
    Traits,
    with_traits,
)

each_kind = pytest.mark.parametrize("traits", ALL.values(), ids=ALL.keys())
_BLOCKS = [bytes((number,)) * BLOCK_SIZE for number in range(1, 33)]


def drive_of(kernel: SimulatedKernel, **options: object) -> StDrive:
    return StDrive("lto", NODE, kernel=kernel, generic=GENERIC, sleep=lambda _: None, **options)  # type: ignore[arg-type]


def write(drive: StDrive, numbers: list[int]) -> bool:
    """One file; whether the end of the medium was near."""
    near = False
    with drive.create_file() as writer:
        for number in numbers:
            near = writer.write(_BLOCKS[number])
        writer.finish()
    return near


def read(drive: StDrive) -> list[int]:
    found = []
    with drive.open_file() as reader:
        while (block := reader.read_block()) is not None:
            assert len(block) == BLOCK_SIZE
            found.append(_BLOCKS.index(bytes(block)))
        assert reader.read_block() is None
    return found


def read_all(drive: StDrive) -> list[list[int]]:
    drive.rewind()
    found = []
    while True:
        try:
            found.append(read(drive))
        except EndOfData:
            return found


@each_kind
def test_files_are_read_as_they_were_written(traits: Traits) -> None:
    kernel = SimulatedKernel(traits, Medium())
    with drive_of(kernel) as drive:
        assert kernel.block_size == 0
        written = [[0], [1, 2, 3], [], [4], [5, 6]]
        for file in written:
            write(drive, file)
        drive.flush()
        assert read_all(drive) == written
        for number in (4, 0, 3, 3, 1, 2):
            drive.locate(number)
            assert read(drive) == written[number]
        drive.locate(2)
        write(drive, [7])
        assert read_all(drive) == [*written[:2], [7]]
    assert kernel.medium is not None
    assert [[_BLOCKS.index(block) for block in file] for file in kernel.medium.files] == [*written[:2], [7]]


@each_kind
def test_the_last_block_outlives_the_reading_of_the_file_mark(traits: Traits) -> None:
    """Streams look for the mark before they give the block away."""
    with drive_of(SimulatedKernel(traits, Medium())) as drive:
        write(drive, [1, 2])
        drive.rewind()
        with drive.open_file() as reader:
            reader.read_block()
            block = reader.read_block()
            assert reader.read_block() is None
            assert block is not None and bytes(block) == _BLOCKS[2]


@each_kind
def test_a_blank_medium_has_no_file(traits: Traits) -> None:
    with drive_of(SimulatedKernel(traits, Medium())) as drive:
        with pytest.raises(EndOfData):
            drive.open_file()
        assert drive.locate_end() == 0
        with pytest.raises(EndOfData):
            drive.locate(1)
        drive.rewind()
        write(drive, [1])
        assert drive.locate_end() == 1
        assert read_all(drive) == [[1]]


@each_kind
def test_behind_the_last_file_is_the_end(traits: Traits) -> None:
    kernel = SimulatedKernel(traits, Medium())
    with drive_of(kernel) as drive:
        for number in range(3):
            write(drive, [number])
        drive.rewind()
        for beyond in (4, 9):
            with pytest.raises(EndOfData):
                drive.locate(beyond)
        drive.locate(3)
        with pytest.raises(EndOfData):
            drive.open_file()
        assert not write(drive, [7])  # what was met there is not taken for the end of the medium
        assert drive.locate_end() == 4
        assert not write(drive, [8])
        assert read_all(drive) == [[0], [1], [2], [7], [8]]


@each_kind
def test_a_file_that_a_power_failure_cut_gets_its_mark(traits: Traits) -> None:
    for before in ([], [[0]], [[0], [1, 2]]):
        kernel = SimulatedKernel(traits, Medium())
        drive = drive_of(kernel)
        for file in before:
            write(drive, file)
        writer = drive.create_file()
        for number in (5, 6):
            writer.write(_BLOCKS[number])
        kernel.power_cut()
        with drive_of(kernel) as drive:
            drive.locate(len(before))
            reader = drive.open_file()
            assert [reader.read_block() is not None for _ in range(2)] == [True, True]
            with pytest.raises(EndOfData):
                reader.read_block()
            assert drive.locate_end() == len(before) + 1
            assert drive.status().file == len(before) + 1
            write(drive, [7])
            assert read_all(drive) == [*before, [5, 6], [7]]


def test_the_cut_file_of_a_protected_medium_is_counted_and_stays() -> None:
    medium = Medium(items=[_BLOCKS[0], None, _BLOCKS[1]], protected=True)
    with drive_of(SimulatedKernel(REAL, medium)) as drive:
        assert drive.locate_end() == 2
    assert medium.items == [_BLOCKS[0], None, _BLOCKS[1]]


@each_kind
def test_a_writer_that_is_left_leaves_a_file_without_end(traits: Traits) -> None:
    kernel = SimulatedKernel(traits, Medium())
    with drive_of(kernel) as drive:
        with pytest.raises(RuntimeError), drive.create_file() as writer:
            writer.write(_BLOCKS[3])
            raise RuntimeError
        write(drive, [4])
        writer = drive.create_file()
        writer.write(_BLOCKS[5])
    with drive_of(kernel) as drive:  # the driver wrote the mark when the node was closed
        assert drive.locate_end() == 3
        assert read_all(drive) == [[3], [4], [5]]


@each_kind
@pytest.mark.parametrize("reserve", [1, 4])
def test_the_early_warning_loses_and_doubles_nothing(traits: Traits, reserve: int) -> None:
    medium = Medium(capacity=5, reserve=reserve)
    kernel = SimulatedKernel(traits, medium)
    written = []
    with drive_of(kernel) as drive:
        write(drive, [0])
        near = []
        with drive.create_file() as writer:
            try:
                for number in range(1, 20):
                    near.append(writer.write(_BLOCKS[number]))
                    written.append(number)
            except MediumFull:
                assert len(written) == 4 + reserve
            else:
                raise AssertionError("endless")
            writer.finish()
        assert near == [False] * 4 + [True] * reserve
        assert read_all(drive) == [[0], written]
        # the next file meets the end at once
        assert drive.locate_end() == 2
        with pytest.raises(MediumFull), drive.create_file() as writer:
            writer.write(_BLOCKS[9])
        # what is written over gives its room back
        drive.locate(1)
        assert not write(drive, [7])


@each_kind
def test_the_first_block_of_a_file_meets_the_early_warning(traits: Traits) -> None:
    medium = Medium(capacity=2, reserve=3)
    kernel = SimulatedKernel(traits, medium)
    with drive_of(kernel) as drive:
        assert not write(drive, [0])
        assert not write(drive, [1])
        assert write(drive, [2])
        assert write(drive, [3, 4])
        assert read_all(drive) == [[0], [1], [2], [3, 4]]


@pytest.mark.parametrize("full", ["no-space", "error"])
def test_a_full_medium_need_not_take_a_file_mark(full: str) -> None:
    kernel = SimulatedKernel(with_traits(REAL, full=full), Medium(capacity=1, reserve=1))
    with drive_of(kernel) as drive, drive.create_file() as writer:
        writer.write(_BLOCKS[0])
        writer.write(_BLOCKS[1])
        with pytest.raises(MediumFull):
            writer.write(_BLOCKS[2])
        kernel.fails = {5: errno.EIO, 35: errno.EIO}
        writer.finish()


def test_a_block_whose_fate_is_not_known_is_not_written_twice() -> None:
    """The drive tells no positions, and the driver lost its count."""
    traits = with_traits(ALL["written-in-spite"], position="none")
    medium = Medium(items=[_BLOCKS[0], None], capacity=2)
    kernel = SimulatedKernel(traits, medium)
    with drive_of(kernel) as drive:
        drive.locate_end()
        with drive.create_file() as writer:
            writer.write(_BLOCKS[1])
            kernel._block = -1
            with pytest.raises(MediumFull):
                writer.write(_BLOCKS[2])
    assert medium.items == [_BLOCKS[0], None, _BLOCKS[1], _BLOCKS[2], None]


@pytest.mark.parametrize("kind", ["real", "in-spite-without-position", "blank-is-error"])
def test_where_no_mark_fits_any_more_finishing_says_so(kind: str) -> None:
    """The file has all its blocks, and no mark: the medium was near its end."""
    kernel = SimulatedKernel(ALL[kind], Medium(capacity=1, reserve=9))
    with drive_of(kernel) as drive:
        writer = drive.create_file()
        assert [writer.write(_BLOCKS[number]) for number in range(2)] == [False, True]
        kernel.fails = {5: errno.EIO, 35: errno.EIO}
        with pytest.raises(MediumFull):
            writer.finish()


def test_writing_into_a_bad_place_is_no_end_of_the_medium() -> None:
    kernel = SimulatedKernel(with_traits(REAL, full="error"), Medium(capacity=1 << 30))
    with drive_of(kernel) as drive:
        writer = drive.create_file()
        writer.write(_BLOCKS[0])
        kernel.write_error = errno.EIO
        with pytest.raises(MediumError) as caught:
            writer.write(_BLOCKS[1])
        assert caught.value.exit_code == 20
        kernel.write_error = None
        writer.finish()
        assert read_all(drive) == [[0]]


@each_kind
def test_a_protected_medium_is_never_written(traits: Traits) -> None:
    medium = Medium(items=[_BLOCKS[0], None], protected=True)
    kernel = SimulatedKernel(traits, medium)
    with drive_of(kernel) as drive:
        assert drive.status().write_protected
        for act in (drive.create_file, lambda: drive.format(fast=True)):
            with pytest.raises(WriteProtected) as caught:
                act()
            assert caught.value.exit_code == 1 and "switch" in (caught.value.hint or "")
        assert drive.locate_end() == 1
        assert read_all(drive) == [[0]]


def test_a_node_that_opens_only_for_reading_is_a_protected_medium() -> None:
    kernel = SimulatedKernel(REAL, Medium(items=[_BLOCKS[0], None]))
    kernel.read_only_node = True
    with drive_of(kernel) as drive:
        assert drive.status().write_protected
        with pytest.raises(WriteProtected):
            drive.create_file()
        assert read_all(drive) == [[0]]


@each_kind
def test_an_empty_drive(traits: Traits) -> None:
    kernel = SimulatedKernel(traits)
    with drive_of(kernel) as drive:
        assert not drive.status().loaded and drive.status().file is None
        acts: list[Callable[[], object]] = [
            drive.rewind,
            lambda: drive.locate(3),
            drive.locate_end,
            drive.open_file,
            drive.create_file,
            drive.flush,
            lambda: drive.format(fast=True),
            drive.eject,
        ]
        for act in acts:
            with pytest.raises(NoMedium) as caught:
                act()
            assert caught.value.exit_code == 13
        assert not drive.wait_until_ready(0)
        kernel.medium = Medium(items=[_BLOCKS[0], None])
        assert drive.wait_until_ready(0)
        assert read_all(drive) == [[0]]
        drive.eject()
        assert not drive.status().loaded
        with pytest.raises(NoMedium):
            drive.rewind()


def test_a_medium_that_was_changed_is_known_when_it_is_waited_for() -> None:
    kernel = SimulatedKernel(REAL, Medium())
    with drive_of(kernel) as drive:
        for number in range(3):
            write(drive, [number])
        other = Medium(items=[_BLOCKS[9], None])
        kernel.medium = other
        assert drive.wait_until_ready(5)
        assert drive.status().file == 0
        assert drive.locate_end() == 1
        write(drive, [10])
    assert [[_BLOCKS.index(block) for block in file] for file in other.files] == [[9], [10]]


def test_a_drive_that_becomes_ready_is_waited_for() -> None:
    kernel = SimulatedKernel(REAL, Medium())
    kernel.becomes_ready_after = 4
    with drive_of(kernel) as drive:
        assert drive.wait_until_ready(60)
        assert kernel.becomes_ready_after < 0


def test_a_drive_in_use_or_gone() -> None:
    kernel = SimulatedKernel(REAL, Medium())
    with drive_of(kernel) as drive:
        with pytest.raises(Locked) as locked:
            drive_of(kernel)
        assert locked.value.exit_code == 11
        kernel.gone = True
        with pytest.raises(TargetAbsent):
            drive.rewind()
        with pytest.raises(TargetAbsent):
            drive.wait_until_ready(0)
        with pytest.raises(TargetAbsent):
            drive.status()
    with pytest.raises(TargetAbsent) as absent:
        drive_of(kernel)
    assert absent.value.exit_code == 13


def test_another_process_takes_the_drive_while_it_is_opened_again() -> None:
    kernel = SimulatedKernel(REAL)
    with drive_of(kernel) as drive:
        kernel.busy = True
        with pytest.raises(Locked):
            drive.wait_until_ready(0)
        kernel.busy, kernel.medium = False, Medium()
        drive.rewind()


def test_only_nodes_that_do_not_rewind_are_drives(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (str(tmp_path / "file"), "/dev/null"):
        with pytest.raises(UsageError):
            StDrive("lto", path)
    with pytest.raises(TargetAbsent):
        StDrive("lto", str(tmp_path / "nothing"))
    if os.geteuid() == 0:
        for minor, refused in ((0, UsageError), (0x80 | 31, ArchiverError)):
            node = tmp_path / f"node{minor}"
            os.mknod(node, 0o020600, os.makedev(9, minor))
            with pytest.raises(refused):
                StDrive("lto", str(node))


def test_the_position_must_be_the_start_of_a_file() -> None:
    kernel = SimulatedKernel(REAL, Medium())
    with drive_of(kernel) as drive:
        write(drive, [1, 2])
        drive.rewind()
        drive.open_file().read_block()
        for act in (drive.create_file, drive.open_file):
            with pytest.raises(MediumError):
                act()
        drive.locate(0)
        assert read(drive) == [1, 2]


def test_an_unreadable_block_does_not_hide_the_next_file() -> None:
    medium = Medium(items=[_BLOCKS[0], None, _BLOCKS[1], _BLOCKS[2], _BLOCKS[3], None, _BLOCKS[4], None], bad={3})
    for traits in (REAL, EMULATED):
        with drive_of(SimulatedKernel(traits, medium)) as drive:
            drive.locate(1)
            reader = drive.open_file()
            assert reader.read_block() is not None
            with pytest.raises(MediumError):
                reader.read_block()
            drive.locate(2)
            assert read(drive) == [4]


def test_a_number_that_a_failed_move_left_is_not_trusted() -> None:
    """Passing over files beyond the last one, the driver counts those that are not there."""
    kernel = SimulatedKernel(EMULATED, Medium())
    with drive_of(kernel) as drive:
        for number in range(12):
            write(drive, [number])
        kernel.fails = {6: errno.EIO}  # the rewind behind it
        with pytest.raises(MediumError):
            drive.locate(15)
        kernel.fails = {}
        drive.locate(10)
        assert read(drive) == [10]


def test_what_cannot_be_reached_is_not_the_end_of_the_data() -> None:
    kernel = SimulatedKernel(REAL, Medium())
    with drive_of(kernel) as drive:
        for number in range(3):
            write(drive, [number])
        drive.rewind()
        kernel.fails = {1: errno.EIO, 12: errno.EIO}
        for act in (lambda: drive.locate(2), drive.locate_end):
            with pytest.raises(MediumError):
                act()


def test_an_unreadable_first_block_is_no_blank_medium() -> None:
    for kind in ("real", "emulated", "blank-is-error"):
        medium = Medium(items=[_BLOCKS[0], None], bad={0})
        with drive_of(SimulatedKernel(ALL[kind], medium)) as drive, pytest.raises(MediumError):
            drive.open_file()


def test_records_of_other_programs() -> None:
    medium = Medium(items=[b"short", None, bytes(BLOCK_SIZE + 512), None, None, b"\0" * BLOCK_SIZE, None])
    with drive_of(SimulatedKernel(REAL, medium)) as drive:
        record = drive.open_file().read_block()
        assert record is not None and bytes(record) == b"short"
        drive.locate(1)
        with pytest.raises(MediumError, match="another program"):
            drive.open_file()
        drive.locate(2)
        assert read(drive) == []
        record = drive.open_file().read_block()
        assert record is not None and not any(record)


@each_kind
@pytest.mark.parametrize("fast", [True, False])
def test_format_leaves_nothing_to_read(traits: Traits, fast: bool) -> None:
    kernel = SimulatedKernel(traits, Medium())
    with drive_of(kernel) as drive:
        for number in range(3):
            write(drive, [number])
        drive.format(fast=fast)
        assert read_all(drive) == ([] if traits.erases else [[]])
        drive.rewind()
        write(drive, [5])
        assert read_all(drive) == [[5]]


@pytest.mark.parametrize(
    "files", [[[]], [[], [1]], [[], [], [1, 2]], [[0], [], [1], [], [], [2]], [[0], [], [1, 2], []]]
)
def test_an_emulator_that_passes_over_empty_files_has_nothing_overwritten(files: list[list[int]]) -> None:
    for cut in (False, True):
        kernel = SimulatedKernel(MISCOUNTS, Medium())
        drive = drive_of(kernel)
        for file in files:
            write(drive, file)
        if cut:
            drive.create_file().write(_BLOCKS[9])
            kernel.power_cut()
            drive = drive_of(kernel)
        assert drive.locate_end() == len(files) + cut
        assert kernel.medium is not None
        assert [[_BLOCKS.index(block) for block in file] for file in kernel.medium.files] == [*files, [9]][
            : len(files) + cut
        ]


def test_going_to_the_end_without_counting() -> None:
    """An option of the driver that only root can switch off, set by somebody."""
    kernel = SimulatedKernel(with_traits(REAL, privileged=False), Medium())
    kernel.fast_end = True
    with drive_of(kernel) as drive:
        for number in range(4):
            write(drive, [number])
        drive.rewind()
        assert drive.locate_end() == 4
        write(drive, [8])
        assert read_all(drive) == [[0], [1], [2], [3], [8]]


def test_options_in_the_way_are_switched_off() -> None:
    kernel = SimulatedKernel(REAL, Medium())
    kernel.fast_end = True
    with drive_of(kernel):
        assert kernel.options == [0x40000000 | 0x10 | 0x20 | 0x1000]
        assert not kernel.fast_end


def test_a_near_file_is_not_reached_by_a_rewind() -> None:
    kernel = SimulatedKernel(REAL, Medium())
    with drive_of(kernel) as drive:
        for number in range(6):
            write(drive, [number])
        drive.locate(2)
        moves = kernel.moves
        drive.locate(2)
        assert kernel.moves == moves
        assert read(drive) == [2]
        assert kernel.moves == moves
        drive.locate(5)
        drive.locate(4)
        assert kernel.moves == moves + 2
        assert read(drive) == [4]


# -- beside the driver -------------------------------------------------------------------------------------------------


def test_the_drive_encrypts_with_the_key_that_it_is_given() -> None:
    kernel = SimulatedKernel(REAL, Medium())
    kernel.scsi_device.encrypts = True
    key = bytes(range(32))
    with drive_of(kernel) as drive:
        assert drive.can_encrypt
        drive.set_key(key)
        assert kernel.scsi_device.key == key
        drive.set_key(None)
        assert kernel.scsi_device.key is None
        drive.set_key(key)
    assert kernel.scsi_device.key is None  # nobody after us reads or writes with it
    kernel.scsi_device.refuses_key = True
    with drive_of(kernel) as drive, pytest.raises(ArchiverError, match="does not take the key"):
        drive.set_key(key)


def test_a_drive_that_cannot_encrypt_takes_no_key() -> None:
    kernel = SimulatedKernel(REAL, Medium())
    with drive_of(kernel) as drive:
        assert not drive.can_encrypt
        drive.set_key(None)
        with pytest.raises(ArchiverError, match="does not encrypt"):
            drive.set_key(bytes(32))
    with StDrive("lto", NODE, kernel=kernel) as drive:  # no node beside it
        assert not drive.can_encrypt
        with pytest.raises(ArchiverError, match="does not encrypt"):
            drive.set_key(bytes(32))


@pytest.mark.parametrize("pads", [True, False])
def test_status_tells_of_room_and_alerts(pads: bool) -> None:
    kernel = SimulatedKernel(REAL, Medium())
    kernel.scsi_device.pads = pads
    kernel.scsi_device.alerts = [9, 20]
    kernel.scsi_device.parameters = {0x16: (12_000_000).to_bytes(4, "big"), 0x17: (345).to_bytes(8, "big")}
    with drive_of(kernel) as drive:
        status = drive.status()
        assert status.loaded and status.file == 0
        assert (status.bytes_used, status.capacity) == (345_000_000, 12_000_000_000_000)
        assert status.description == "tape drive; LTO-8; alerts: write protect, clean now"
        assert drive.alerts() == [9, 20]
    kernel.scsi_device.alerts, kernel.scsi_device.parameters = None, {0x17: b"\xff" * 8}
    with drive_of(kernel) as drive:
        assert drive.status().description == "tape drive; LTO-8"
        assert drive.status().bytes_used is None and drive.status().capacity is None
        assert drive.alerts() == []


def test_a_change_that_only_the_side_band_heard_of_is_not_written_over() -> None:
    """The drive tells of it once. The kernel's driver would go on with its old position."""
    kernel = SimulatedKernel(REAL, Medium())
    other = Medium(items=[_BLOCKS[9], None])
    with drive_of(kernel) as drive:
        write(drive, [0])
        kernel.medium, kernel.scsi_device.attention, kernel.scsi_device.alerts = other, True, []
        drive.alerts()
        with pytest.raises(NoMedium, match="changed"):
            drive.create_file()
        assert drive.wait_until_ready(0)
        assert read_all(drive) == [[9]]


@pytest.mark.parametrize("seed", range(40))
def test_rubbish_beside_the_driver_is_no_answer(seed: int) -> None:
    chance = random.Random(seed)
    kernel = SimulatedKernel(REAL, Medium())
    kernel.scsi_device.command = lambda command, send, receive: ScsiAnswer(  # type: ignore[method-assign]
        chance.randbytes(chance.randrange(0, 200)), chance.randbytes(chance.randrange(0, 20)), chance.random() < 0.8
    )
    with drive_of(kernel) as drive:
        drive.status()
        drive.wait_until_ready(0)
        if not drive.can_encrypt:
            drive.set_key(None)


# -- properties --------------------------------------------------------------------------------------------------------

_step = some.one_of(
    some.tuples(some.just("append"), some.lists(some.integers(0, 31), max_size=4)),
    some.tuples(some.just("write"), some.integers(0, 6), some.lists(some.integers(0, 31), max_size=4)),
    some.tuples(some.just("read"), some.integers(0, 8)),
    some.tuples(some.just("begin"), some.integers(0, 8)),
    some.tuples(some.just("again"), some.booleans()),
    some.tuples(some.just("cut"), some.lists(some.integers(0, 31), min_size=1, max_size=3), some.booleans()),
    some.tuples(some.just("end")),
)


@settings(max_examples=150, deadline=None)
@given(kind=some.sampled_from(sorted(ALL)), steps=some.lists(_step, max_size=12))
def test_any_row_of_steps_leaves_the_files_that_were_written(kind: str, steps: list[tuple[object, ...]]) -> None:
    kernel = SimulatedKernel(ALL[kind], Medium())
    drive = drive_of(kernel)
    files: list[list[int]] = []
    for step in steps:
        match step:
            case ("append", list(numbers)):
                assert drive.locate_end() == len(files)
                write(drive, numbers)
                files.append(numbers)
            case ("write", int(at), list(numbers)) if at <= len(files):
                drive.locate(at)
                write(drive, numbers)
                files[at:] = [numbers]
            case ("read", int(at)):
                if at < len(files):
                    drive.locate(at)
                    assert read(drive) == files[at]
                else:
                    with pytest.raises(EndOfData):
                        drive.locate(at)
                        drive.open_file()
            case ("begin", int(at)) if at < len(files):
                drive.locate(at)
                drive.open_file().read_block()
            case ("again", bool(closed)):
                if closed:
                    drive.close()
                    drive = drive_of(kernel)
                else:
                    assert drive.wait_until_ready(0)
            case ("cut", list(numbers), bool(with_power)):
                drive.locate_end()
                writer = drive.create_file()
                for number in numbers:
                    writer.write(_BLOCKS[number])
                if with_power:
                    kernel.power_cut()
                else:
                    drive.close()
                drive = drive_of(kernel)
                files.append(numbers)
                assert drive.locate_end() == len(files)
            case ("end",):
                assert drive.locate_end() == len(files)
    assert read_all(drive) == files


@settings(max_examples=60, deadline=None)
@given(
    kind=some.sampled_from(sorted(ALL)),
    capacity=some.integers(1, 8),
    reserve=some.integers(1, 5),
    sizes=some.lists(some.integers(0, 5), max_size=6),
)
def test_what_was_taken_before_the_end_is_on_the_medium(
    kind: str, capacity: int, reserve: int, sizes: list[int]
) -> None:
    kernel = SimulatedKernel(ALL[kind], Medium(capacity=capacity, reserve=reserve))
    taken: list[list[int]] = []
    with drive_of(kernel) as drive:
        for size in sizes:
            file: list[int] = []
            with drive.create_file() as writer:
                try:
                    for number in range(size):
                        near = writer.write(_BLOCKS[number])
                        file.append(number)
                        assert near == (sum(map(len, taken)) + len(file) > capacity)
                except MediumFull:
                    assert sum(map(len, taken)) + len(file) == capacity + reserve
                writer.finish()
            taken.append(file)
        assert read_all(drive) == taken


def test_the_real_kernel_gives_errors_not_crashes(tmp_path: Path) -> None:
    """On a plain file: ioctls that the kernel refuses, with arguments of the size that they must have."""
    kernel = Kernel()
    fd = kernel.open(str(tmp_path), os.O_RDONLY)
    try:
        for request in (0x40086D01, 0x80306D02, 0x80086D03):
            with pytest.raises(OSError):
                kernel.ioctl(fd, request, bytearray(48))
        with pytest.raises(OSError):
            kernel.scsi(fd, bytes(6), send=b"", receive=64, seconds=1)
    finally:
        kernel.close(fd)


def test_critical_alerts() -> None:
    """Write protection is critical to a PBS, and no damage."""
    kernel = SimulatedKernel(REAL, Medium())
    kernel.scsi_device.alerts = [9, 20]
    with drive_of(kernel) as drive:
        assert drive.complaint() is None
        kernel.scsi_device.alerts = [4, 9, 20, 52]
        assert drive.complaint() == "media, system area write failure"
