"""Key files on the disk: how they are read without waiting for ever, and written whole, for their owner only."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from archiver.core.clock import Clock
from archiver.core.disk import Disk
from archiver.errors import ArchiverError, KeyProblem, UsageError
from archiver.keys import ring
from archiver.keys.make import key_time, protect, write_file
from archiver.keys.ring import NEW_PASSWORD, PASSWORD, load_key, new_passphrase, read_file
from formats.crypt import CryptConfig
from formats.keyfile import KeyFile, KeyTime, Pbkdf2, Scrypt
from tests.golden_data import GOLDEN
from tests.hostile.limits import bounded
from tests.keys.test_ring import FACTS, KEY, KEYS, PASSPHRASE, nobody_to_ask

# Reading.


def test_named_pipe_without_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with bounded(seconds=10), pytest.raises(KeyProblem, match="not a usable key file"):
        load_key(str(tmp_path / "fifo"), {}, nobody_to_ask)


def test_pipe_whose_writer_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with --keyfile <(gpg -d key.gpg)."""
    reading, writing = os.pipe()
    data = (KEYS / "key-none.json").read_bytes()

    def write() -> None:
        for part in (data[:100], data[100:]):
            os.write(writing, part)
            threading.Event().wait(0.2)
        os.close(writing)

    thread = threading.Timer(0.2, write)
    thread.start()
    with bounded(seconds=30):
        assert load_key(f"/proc/self/fd/{reading}", {}, nobody_to_ask).enc_key == KEY
    thread.join()
    os.close(reading)


def test_pipe_whose_writer_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "_SECONDS_TO_WAIT", 0.2)
    reading, writing = os.pipe()
    with bounded(seconds=30), pytest.raises(KeyProblem, match="nothing came for"):
        load_key(f"/proc/self/fd/{reading}", {}, nobody_to_ask)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/", "is a directory"),
        ("/absent", "no such file"),
        ("", "no such file"),
        ("a\0b", "null"),
        ("x" * 300, "too long"),
    ],
)
def test_what_cannot_be_read(path: str, reason: str) -> None:
    with pytest.raises(KeyProblem, match=f"cannot be read: .*{reason}") as caught:
        load_key(path, {}, nobody_to_ask)
    assert caught.value.exit_code == 12


def test_endless_file() -> None:
    with bounded(memory=64 << 20):
        assert len(read_file("/dev/zero", "key file", 1000)) == 1001
        with pytest.raises(KeyProblem, match="at most"):
            load_key("/dev/zero", {}, nobody_to_ask)


# Writing.


def test_written_file(tmp_path: Path) -> None:
    os.umask(0o777)
    path = tmp_path / "a/b/key.json"
    write_file(str(path), b"first", force=False)
    os.umask(0o022)
    assert path.read_bytes() == b"first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [stat.S_IMODE(place.stat().st_mode) for place in (path.parent, path.parent.parent)] == [0o700, 0o700]
    with pytest.raises(UsageError, match="exists already") as caught:
        write_file(str(path), b"second", force=False)
    assert "--force" in str(caught.value.hint)
    assert path.read_bytes() == b"first"
    path.chmod(0o644)
    write_file(str(path), b"second", force=True)
    assert path.read_bytes() == b"second" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["key.json"]


def test_file_that_came_just_now_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key.json"
    put = Disk.put

    def late(self: Disk, place: str, *rest: object, **options: object) -> None:
        put(self, place, *rest, **options)  # type: ignore[arg-type]
        path.write_bytes(b"another's")

    monkeypatch.setattr(Disk, "put", late)
    with pytest.raises(UsageError, match="exists already"):
        write_file(str(path), b"mine", force=False)
    assert path.read_bytes() == b"another's" and os.listdir(tmp_path) == ["key.json"]


def test_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "link", no_link)
    write_file(str(tmp_path / "key.json"), b"mine", force=False)
    assert (tmp_path / "key.json").read_bytes() == b"mine" and os.listdir(tmp_path) == ["key.json"]


def test_key_on_a_stick_stays_there(tmp_path: Path) -> None:
    """A symlink is not replaced by a file: the old key would stay behind it."""
    (tmp_path / "stick").mkdir()
    stick, link = tmp_path / "stick/key.json", tmp_path / "key.json"
    stick.write_bytes(b"old")
    link.symlink_to("stick/key.json")
    with pytest.raises(UsageError):
        write_file(str(link), b"new", force=False)
    write_file(str(link), b"new", force=True)
    assert link.is_symlink() and stick.read_bytes() == b"new"
    link.unlink()
    link.symlink_to("absent")
    with pytest.raises(UsageError):
        write_file(str(link), b"new", force=False)


def test_directory_is_never_overwritten(tmp_path: Path) -> None:
    for force in (False, True):
        with pytest.raises(UsageError, match="is a directory"):
            write_file(str(tmp_path), b"x", force=force)


@pytest.mark.parametrize("kind", ["fifo", "socket", "link to a device", "directory that is absent"])
def test_what_is_no_file_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    """For root, a rename would put a file in the place of /dev/null."""
    path = tmp_path / "place"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif kind == "link to a device":
        path.symlink_to("/dev/null")
    name = f"{path}/" if kind == "directory that is absent" else str(path)
    before = path.lstat() if os.path.lexists(path) else None
    for force in (False, True):
        with pytest.raises(UsageError, match="is a directory" if name.endswith("/") else "is no regular file"):
            write_file(name, b"x", force=force)
    assert (path.lstat() if os.path.lexists(path) else None) == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name, told in (("file/key.json", "file is no directory"), ("file/below/key.json", "cannot write")):
        with pytest.raises(ArchiverError, match=told):
            write_file(str(tmp_path / name), b"x", force=False)


class Recorded(Disk):
    """Notes what is made durable, and when the name appears."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.synced: list[tuple[str, bool]] = []

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        self.synced.append((path, self.path.exists()))


@pytest.mark.parametrize("force", [False, True])
def test_written_durably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool) -> None:
    path = tmp_path / "new/key.json"
    disk, synced = Recorded(path), []
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.append((stat.S_ISREG(os.fstat(fd).st_mode), path.exists()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    write_file(str(path), b"key", force=force, disk=disk)
    assert (True, False) in synced  # the contents, before they had the name
    assert disk.synced[-1] == (str(path.parent), True)  # the name
    assert (str(tmp_path), False) in disk.synced  # the new directory


# Passphrases.


def asked(*answers: bytes | None) -> Callable[[str], bytes | None]:
    left = list(answers)
    return lambda question: left.pop(0)


def test_new_passphrase_is_asked_for_twice() -> None:
    assert new_passphrase({}, asked(b"secret", b"secret"), "it", PASSWORD) == b"secret"
    for answers, message in (
        ((b"secret", b"Secret"), "differ"),
        ((b"secret", None), "differ"),
        ((b"four", b"four"), "too short"),
        ((b"", b""), "too short"),
        ((None,), "it needs a passphrase"),
    ):
        with pytest.raises(KeyProblem, match=message) as caught:
            new_passphrase({}, asked(*answers), "it", PASSWORD)
        assert caught.value.exit_code == 12


def test_sources_of_a_new_passphrase(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from a file\nmore")
    sources = {"ARCHIVER_NEW_PASSWORD_FILE": str(tmp_path / "file"), "ARCHIVER_PASSWORD": "the old one"}
    assert new_passphrase(sources, asked(), "it", NEW_PASSWORD) == b"from a file"
    assert new_passphrase(sources, asked(), "it", PASSWORD, NEW_PASSWORD) == b"the old one"
    command = {"ARCHIVER_NEW_PASSWORD_COMMAND": "echo from a command"}
    assert new_passphrase(command, asked(), "it", PASSWORD, NEW_PASSWORD) == b"from a command"
    with pytest.raises(KeyProblem, match="too short"):
        new_passphrase({"ARCHIVER_NEW_PASSWORD": ""}, asked(), "it", NEW_PASSWORD)
    with pytest.raises(KeyProblem, match="ARCHIVER_NEW_PASSWORD_FILE does not work"):
        new_passphrase({"ARCHIVER_NEW_PASSWORD_FILE": "/absent"}, asked(), "it", NEW_PASSWORD)


# Key files.


@pytest.mark.parametrize("name", ["key-none.json", "key-pbkdf2.json", "key-scrypt.json"])
def test_golden_keys_are_made_again_byte_for_byte(name: str) -> None:
    """Given the same randomness: salt, then IV."""
    raw = (GOLDEN / "keys" / name).read_bytes()
    golden = KeyFile.decode(raw)
    drawn = [golden.kdf.salt, golden.data[:16]] if isinstance(golden.kdf, Scrypt | Pbkdf2) else []
    made = protect(
        CryptConfig(bytes.fromhex(FACTS["key"])),
        "key",
        name.removeprefix("key-").removesuffix(".json"),
        golden.hint,
        golden.created,
        {PASSWORD: PASSPHRASE},
        asked(),
        PASSWORD,
        random=lambda size: drawn.pop(0)[:size],
    )
    again = KeyFile(made.kdf, made.created, golden.modified, made.data, made.fingerprint, made.hint)
    assert again.encode() == raw and not drawn


@pytest.mark.parametrize(("zone", "offset"), [("UTC0", 0), ("XXX-5:45", 345), ("XXX9:30", -570)])
def test_time_of_a_key(monkeypatch: pytest.MonkeyPatch, zone: str, offset: int) -> None:
    import time

    class Fixed(Clock):
        def now(self) -> int:
            return 1_700_000_000

    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert key_time(Fixed()) == KeyTime(1_700_000_000, offset)
    finally:
        monkeypatch.undo()
        time.tzset()
