"""Images and small files on the command line: devices, standard input, commands, and what is refused."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from archiver.source import image
from tests.cli.command import ROOT, ask, call, process, start

SIZE = 5_000_001
MIB = 1 << 20


@pytest.fixture
def data() -> bytes:
    return random.Random(1).randbytes(SIZE)


@pytest.fixture
def disk(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "disk").write_bytes(data)
    return tmp_path / "disk"


def restored(store: Path, snapshot: str, target: Path, archive: str = "disk.img") -> bytes:
    ask("--store", store, "restore", snapshot, target, "--archive", archive)
    found = target.read_bytes()
    target.unlink()
    return found


def snapshots(store: Path) -> list[str]:
    return [item["snapshot"] for item in ask("--store", store, "snapshots")["items"]]


# Standard input, and what a command prints.


def test_standard_input(store: Path, disk: Path, data: bytes, tmp_path: Path) -> None:
    with open(disk, "rb") as file:
        done = process("--store", store, "backup", "disk.img:-", "--id", "pipe", "--json", stdin=file)
    assert done.code == 0, done.err
    (archive,) = done.document["archives"]
    assert (archive["name"], archive["size"], archive["chunks"]) == ("disk.img", SIZE, 2)
    assert done.document["bytes_read"] == SIZE
    assert restored(store, "host/pipe", tmp_path / "out") == data
    assert call("--store", store, "cat", "host/pipe", "disk.img").raw == data


@pytest.mark.parametrize("redirection", ["<&-", "</dev/null", "<{empty}"])
def test_closed_and_empty_standard_input(store: Path, tmp_path: Path, redirection: str) -> None:
    (tmp_path / "empty").touch()
    program = shlex.join([sys.executable, "-m", "archiver", "--store", str(store), "backup", "disk.img:-"])
    shell = f"{program} {redirection.format(empty=tmp_path / 'empty')}"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1 and "standard input is empty" in done.stderr and "Traceback" not in done.stderr
    assert len(snapshots(store)) == 1


def test_command(store: Path, disk: Path, source: Path, data: bytes, tmp_path: Path) -> None:
    command = ("--stdin-from-command", f"cat {disk}")
    for _ in range(2):
        done = ask("--store", store, "backup", "disk.img:-", f"tree.pxar:{source}", "--id", "pipe", *command)
    assert [archive["new_chunks"] for archive in done["archives"]] == [0, 0]
    assert restored(store, "host/pipe", tmp_path / "out") == data


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("cat {disk}; exit 3", "ended with exit code 3"),
        ("cat {disk}; kill -9 $$", "was killed by signal 9"),
        ("exit 1", "ended with exit code 1"),
        ("/nonexistent/program", "ended with exit code 127"),
        ("true", "gave no output"),
    ],
)
def test_command_that_fails(store: Path, disk: Path, source: Path, command: str, words: str) -> None:
    before = snapshots(store)
    command = command.format(disk=disk)
    done = call(
        "--store", store, "backup", f"tree.pxar:{source}", "disk.img:-", "--stdin-from-command", command, "--json"
    )
    assert done.code == 1 and words in done.error["message"]
    assert snapshots(store) == before and os.listdir(store / ".archiver/sessions") == []


def test_command_is_told_no_passphrase(store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARCHIVER_PASSWORD", "a passphrase")
    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD_FILE", "a file")
    ask("--store", store, "backup", "disk.img:-", "--id", "pipe", "--stdin-from-command", "env; cat")
    assert b"PASSWORD" not in restored(store, "host/pipe", tmp_path / "out")


def test_command_ends_with_the_backup(store: Path, disk: Path, tmp_path: Path) -> None:
    """A backup that fails does not wait for what it reads from."""
    (store / ".chunks").rename(tmp_path / "elsewhere")
    began = time.monotonic()
    done = process("--store", store, "backup", "disk.img:-", "--stdin-from-command", "cat /dev/urandom")
    assert done.code not in (0, 3) and time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tree.pxar:{source}", "--stdin-from-command", "true"), "needs an image"),
        (("disk.img:-", "--stdin-from-command", " "), "no command"),
        (("a.img:-", "b.img:-"), "both a.img and b.img"),
        (("a.img:{disk}", "a.img:{other}"), "both be a.img"),
        (("a.img:{source}",), "is a directory"),
        (("a.conf:{source}",), "is a directory"),
        (("a.pxar:{disk}",), "is not a directory"),
        (("{disk}",), "is not a directory"),
        (("a.img:{source}/absent",), "does not exist"),
        (("a.img:/dev/zero",), "is a character device"),
        (("a.img:{socket}",), "is a socket"),
        (("a.conf:{fifo}",), "is a fifo"),
        (("a.conf:-",), "does not exist"),
        (("a.img:",), "names no file"),
        (("client.log:{disk}",), "what a backup itself"),
        (("a.key:{disk}",), "neither a directory nor"),
        (("../a.img:{disk}",), "neither a directory nor"),
        (("x" * 250 + ".img:{disk}",), "too long"),
        (("a.img:{disk}/x",), "cannot be read"),
    ],
)
def test_refused(store: Path, source: Path, disk: Path, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    import socket

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "other").write_bytes(b"x")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    places = {name: tmp_path / name for name in ("fifo", "other", "socket")} | {"source": source, "disk": disk}
    done = call("--store", store, "backup", *(text.format(**places) for text in arguments), "--json")
    assert done.code == 2 and words in done.error["message"]
    assert len(snapshots(store)) == 1


def test_empty_file(store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    done = call("--store", store, "backup", f"a.img:{tmp_path / 'empty'}")
    assert done.code == 1 and "is empty" in done.err
    ask("--store", store, "backup", f"a.conf:{tmp_path / 'empty'}", "--id", "conf")
    assert restored(store, "host/conf", tmp_path / "out", "a.conf") == b""


def test_a_name_for_each_kind(store: Path, source: Path, disk: Path, data: bytes, tmp_path: Path) -> None:
    """The same name may be a tree, an image and a small file."""
    (tmp_path / "small").write_bytes(b"small")
    specs = (f"x.pxar:{source}", f"x.img:{disk}", f"x.conf:{tmp_path / 'small'}", f"x.log:{tmp_path / 'small'}")
    done = ask("--store", store, "backup", *specs, "--id", "kinds")
    assert [archive["name"] for archive in done["archives"]] == ["x.pxar", "x.img", "x.conf", "x.log"]
    names = [item["filename"] for item in ask("--store", store, "files", "host/kinds")["items"]]
    wanted = ["x.ppxar.didx", "x.mpxar.didx", "x.img.fidx", "x.conf.blob", "x.log.blob", "index.json.blob"]
    assert sorted(names) == sorted(wanted)
    assert restored(store, "host/kinds", tmp_path / "out", "x.img") == data
    assert restored(store, "host/kinds", tmp_path / "out", "x.log") == b"small"


def test_every_command_knows_them(store: Path, disk: Path, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"small")
    specs = (f"disk.img:{disk}", f"small.conf:{tmp_path / 'small'}")
    for when in ("1700000100", "1700000200"):
        ask("--store", store, "backup", *specs, "--id", "kinds", "--time", when)
    ask("init", tmp_path / "copy")
    ask("sync", store, tmp_path / "copy")
    for place in (store, tmp_path / "copy"):
        for command in (("verify",), ("db", "rebuild"), ("db", "check"), ("gc",), ("status",), ("groups",)):
            ask("--store", place, *command)
        assert ask("--store", place, "verify")["errors"] == []
        ask("--store", place, "prune", "host/kinds", "--keep-last", "1")
        ask("--store", place, "gc")
        assert restored(place, "host/kinds", tmp_path / "out") == data
        assert restored(place, "host/kinds", tmp_path / "out", "small.conf") == b"small"
        found = ask("--store", place, "restore", "host/kinds", tmp_path / "whole")
        assert found["files"] == 2 and (tmp_path / "whole/disk.img").read_bytes() == data
        shutil.rmtree(tmp_path / "whole")


@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_killed(store: Path, data: bytes, tmp_path: Path, count: int) -> None:
    """Nothing of it is seen, unless it was killed behind its last step, and the next run saves everything."""
    rng = random.Random(2)
    large = tmp_path / "large"
    large.write_bytes(data * 8)
    for _ in range(count):
        with start("--store", store, "backup", f"disk.img:{large}", "--id", "killed", "--chunk-size", "64") as running:
            time.sleep(0.5 + rng.random() / 2)
            running.send_signal(signal.SIGKILL)
        if running.returncode != -signal.SIGKILL:
            break
        if "killed" in [item["id"] for item in ask("--store", store, "snapshots")["items"]]:
            assert restored(store, "host/killed", tmp_path / "early") == data * 8
            break
    ask("--store", store, "backup", f"disk.img:{large}", "--id", "killed", "--chunk-size", "64")
    assert ask("--store", store, "verify")["errors"] == []
    assert restored(store, "host/killed", tmp_path / "out") == data * 8


# Devices.


@contextmanager
def loop_device(backing: Path, size: int) -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("loop devices need root")
    backing.touch()
    os.truncate(backing, size)
    done = subprocess.run(["losetup", "-f", "--show", str(backing)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    device = Path(done.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", str(device)], check=True)


def filled(device: Path, seed: int) -> bytes:
    with open(device, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        data = random.Random(seed).randbytes(size // 2).ljust(size, b"\0")
        file.seek(0)
        file.write(data)
    return data


def test_device(store: Path, tmp_path: Path) -> None:
    with loop_device(tmp_path / "backing", 9 * MIB + 512) as device:
        data = filled(device, 3)
        link = tmp_path / "by-id"
        link.symlink_to(device)
        done = ask("--store", store, "backup", f"disk.img:{link}", "--id", "device")
        assert done["archives"][0]["size"] == len(data)
        again = ask("--store", store, "backup", f"disk.img:{device}", "--id", "device")
        assert again["bytes_read"] == len(data) and again["archives"][0]["new_chunks"] == 0
        assert restored(store, "host/device", tmp_path / "out") == data
        filled(device, 4)
        refused = call("--store", store, "restore", "host/device", device)
        assert refused.code == 2 and "--to-device" in refused.err
        found = ask("--store", store, "restore", "host/device", link, "--archive", "disk.img", "--to-device")
        assert found["bytes"] == len(data) and found["verified"]
        assert device.read_bytes() == data and device.is_block_device()


def test_device_of_another_size(store: Path, disk: Path, data: bytes, tmp_path: Path) -> None:
    ask("--store", store, "backup", f"disk.img:{disk}", "--id", "disk")
    with loop_device(tmp_path / "backing", SIZE // 512 * 512) as device:
        before = filled(device, 5)
        done = call("--store", store, "restore", "host/disk", device, "--to-device")
        assert done.code == 40 and device.read_bytes() == before
    with loop_device(tmp_path / "larger", 8 * MIB) as device:
        before = filled(device, 6)
        ask("--store", store, "restore", "host/disk", device, "--to-device")
        assert device.read_bytes() == data + before[SIZE:]


def test_device_for_what_is_no_image(store: Path, disk: Path, source: Path, tmp_path: Path) -> None:
    ask("--store", store, "backup", f"a.img:{disk}", f"b.img:{disk}", f"c.conf:{disk}", "--id", "disk")
    with loop_device(tmp_path / "backing", 8 * MIB) as device:
        before = filled(device, 7)
        for arguments in (("host/disk",), ("host/disk", "--archive", "c.conf"), ("host/tester",)):
            done = call("--store", store, "restore", arguments[0], device, *arguments[1:], "--to-device")
            assert done.code == 2 and "only an image" in done.err
        assert device.read_bytes() == before


def test_mounted_device(store: Path, disk: Path, tmp_path: Path) -> None:
    """It is not written to, whether the mount can be seen from here or not; reading it is told of."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    ask("--store", store, "backup", f"disk.img:{disk}", "--id", "disk")
    place = tmp_path / "with a blank"
    place.mkdir()
    command = ("--store", store, "restore", "host/disk")
    with loop_device(tmp_path / "backing", 16 * MIB) as device:
        subprocess.run(["mkfs.ext4", "-q", str(device)], check=True)
        subprocess.run(["mount", str(device), str(place)], check=True)
        try:
            (place / "precious").write_bytes(b"precious")
            done = call(*command, device, "--to-device")
            assert done.code == 30 and f"mounted at {place}" in done.err
            told = call("--store", store, "backup", f"mounted.img:{device}", "--id", "mounted")
            assert told.code == 0 and f"is mounted at {place}" in told.err
        finally:
            subprocess.run(["umount", str(place)], check=True)
        script = f"mount {device} '{place}' && echo mounted && read line"
        hidden = ["unshare", "-m", "--propagation", "private", "sh", "-c", script]
        with subprocess.Popen(hidden, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as elsewhere:
            assert elsewhere.stdout is not None and elsewhere.stdout.readline() == b"mounted\n"
            done = call(*command, device, "--to-device")
            assert done.code == 30 and "is in use" in done.err
        subprocess.run(["mount", str(device), str(place)], check=True)
        try:
            assert (place / "precious").read_bytes() == b"precious"
        finally:
            subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("vanishes", [False, True])
def test_device_that_fails(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vanishes: bool) -> None:
    """What it cannot read any more is told and zeros; of a drive that was pulled nothing is published."""
    with loop_device(tmp_path / "backing", 16 * MIB) as device:
        data = filled(device, 8)
        subprocess.run(["blockdev", "--flushbufs", str(device)], check=True)
        node = tmp_path / "stick"
        os.mknod(node, 0o600 | stat.S_IFBLK, device.stat().st_rdev)
        os.truncate(tmp_path / "backing", 5 * MIB)
        read_into = image.Source.read_into

        def read(self: image.Source, view: memoryview, offset: int) -> int:
            if vanishes and offset >= 4 * MIB:
                node.unlink(missing_ok=True)
            return read_into(self, view, offset)

        monkeypatch.setattr(image.Source, "read_into", read)
        done = call("--store", store, "backup", f"disk.img:{node}", "--id", "device", "--json")
        if vanishes:
            assert done.code == 1 and "still there" in done.error["hint"]
            assert len(snapshots(store)) == 1
            return
        assert done.code == 3
        (error,) = done.document["errors"]
        assert error["path"] == "disk.img" and f"bytes {5 * MIB}-{16 * MIB - 1}" in error["reason"]
        assert restored(store, "host/device", tmp_path / "out") == data[: 5 * MIB].ljust(16 * MIB, b"\0")
