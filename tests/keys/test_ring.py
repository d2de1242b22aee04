from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from archiver.cli.context import Context
from archiver.errors import KeyProblem
from archiver.keys import ring
from archiver.keys.places import default_keyfile
from archiver.keys.ring import load_key, passphrase_from
from tests.golden_data import GOLDEN
from tests.hostile.limits import bounded
from tests.source.sandbox import as_ordinary_user, world_readable_directory

KEYS = GOLDEN / "keys"
FACTS = json.loads((KEYS / "keys.json").read_bytes())
PASSPHRASE: str = FACTS["password"]
KEY = bytes.fromhex(FACTS["key"])
PBKDF2 = str(KEYS / "key-pbkdf2.json")
LONGEST = 4096


def nobody_to_ask(question: str) -> bytes | None:
    return None


def never_ask(question: str) -> bytes | None:
    pytest.fail(f"asked: {question}")


def descriptor(data: bytes) -> int:
    """The reading end of a pipe that has ``data`` and ends behind it."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading


def told(error: BaseException | None) -> str:
    """Everything that an error and those behind it say."""
    text = ""
    while error is not None:
        text += f"{error!r} {error} {getattr(error, 'hint', '')}\n"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return text


# Unlocking.


@pytest.mark.parametrize("name", ["key-none.json", "key-pbkdf2.json", "key-scrypt.json"])
def test_golden_keys(name: str) -> None:
    crypt = load_key(str(KEYS / name), {"ARCHIVER_PASSWORD": PASSPHRASE}, never_ask)
    assert crypt.enc_key == KEY
    assert crypt.fingerprint.hex() == FACTS["crypt"]["fingerprint"]


def test_key_without_passphrase_asks_for_none() -> None:
    broken = {"ARCHIVER_PASSWORD_COMMAND": "exit 1", "ARCHIVER_PASSWORD_FD": "none"}
    assert load_key(str(KEYS / "key-none.json"), broken, never_ask).enc_key == KEY


def test_person_is_asked_when_nothing_is_set() -> None:
    questions = []

    def answer(question: str) -> bytes:
        questions.append(question)
        return PASSPHRASE.encode()

    assert load_key(PBKDF2, {}, answer).enc_key == KEY
    assert questions == [f"Passphrase of {PBKDF2}: "]


def test_nobody_to_ask() -> None:
    with pytest.raises(KeyProblem, match="protected by a passphrase") as caught:
        load_key(PBKDF2, {}, nobody_to_ask)
    assert caught.value.exit_code == 12
    assert "ARCHIVER_PASSWORD" in str(caught.value.hint)


@pytest.mark.parametrize(
    "wrong", [PASSPHRASE + "x", PASSPHRASE[:-1], "", "x", "\udcff\udcfe\udcfd\udcfc\udcfb", " " * 99]
)
def test_wrong_passphrase(wrong: str) -> None:
    for name, hint in (("key-pbkdf2.json", None), ("key-scrypt.json", "the hint")):
        with pytest.raises(KeyProblem, match="cannot be unlocked") as caught:
            load_key(str(KEYS / name), {"ARCHIVER_PASSWORD": wrong}, never_ask)
        assert (caught.value.exit_code, caught.value.code) == (12, "key")
        assert hint is None or hint in str(caught.value)
        assert wrong.strip() == "" or len(wrong) < 5 or wrong not in told(caught.value)


# Sources of a passphrase.


def source_file(tmp_path: Path, data: bytes) -> tuple[str, str]:
    (tmp_path / "passphrase").write_bytes(data)
    return "ARCHIVER_PASSWORD_FILE", str(tmp_path / "passphrase")


def source_fifo(tmp_path: Path, data: bytes) -> tuple[str, str]:
    return "ARCHIVER_PASSWORD_FILE", f"/proc/self/fd/{descriptor(data)}"


def source_descriptor(tmp_path: Path, data: bytes) -> tuple[str, str]:
    return "ARCHIVER_PASSWORD_FD", str(descriptor(data))


def source_command(tmp_path: Path, data: bytes) -> tuple[str, str]:
    (tmp_path / "output").write_bytes(data)
    return "ARCHIVER_PASSWORD_COMMAND", f"cat '{tmp_path}/output'"


SOURCES = [source_file, source_fifo, source_descriptor, source_command]
Source = Callable[[Path, bytes], tuple[str, str]]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"secret", b"secret"),
        (b"secret\n", b"secret"),
        (b"secret\r\nmore", b"secret"),
        (b"\nsecret", b""),
        (b"", b""),
        (b" \xff\xfe\0 secret \n", b" \xff\xfe\0 secret "),
        (b"x" * LONGEST, b"x" * LONGEST),
        (b"x" * LONGEST + b"\n" + b"y" * 50_000, b"x" * LONGEST),
        (b"x\n" + b"y" * 60_000, b"x"),
    ],
)
def test_first_line_of_a_source(tmp_path: Path, source: Source, data: bytes, expected: bytes) -> None:
    name, value = source(tmp_path, data)
    assert passphrase_from({name: value}) == expected


@pytest.mark.parametrize("source", SOURCES)
def test_passphrase_that_is_too_long_is_not_cut(tmp_path: Path, source: Source) -> None:
    name, value = source(tmp_path, b"x" * (LONGEST + 1))
    with pytest.raises(KeyProblem, match=f"{name} is longer than {LONGEST} bytes"):
        passphrase_from({name: value})


def test_variable() -> None:
    assert passphrase_from({"ARCHIVER_PASSWORD": "secret"}) == b"secret"
    assert passphrase_from({"ARCHIVER_PASSWORD": "ä\udcff\nmore"}) == b"\xc3\xa4\xff"
    assert passphrase_from({"ARCHIVER_PASSWORD": ""}) == b""
    with pytest.raises(KeyProblem, match="ARCHIVER_PASSWORD is longer"):
        passphrase_from({"ARCHIVER_PASSWORD": "x" * (LONGEST + 1)})
    assert passphrase_from({}) is None
    assert passphrase_from({"ARCHIVER_PASSWORDS": "x", "PASSWORD": "x"}) is None


def test_first_source_that_is_set_counts(tmp_path: Path) -> None:
    sources = {
        "ARCHIVER_PASSWORD_COMMAND": "echo command",
        "ARCHIVER_PASSWORD_FILE": source_file(tmp_path, b"file")[1],
        "ARCHIVER_PASSWORD_FD": str(descriptor(b"descriptor")),
        "ARCHIVER_PASSWORD": "variable",
    }
    for name, expected in [
        ("ARCHIVER_PASSWORD", b"variable"),
        ("ARCHIVER_PASSWORD_FD", b"descriptor"),
        ("ARCHIVER_PASSWORD_FILE", b"file"),
        ("ARCHIVER_PASSWORD_COMMAND", b"command"),
    ]:
        assert passphrase_from(sources) == expected
        del sources[name]
    assert passphrase_from(sources) is None


def test_a_source_that_fails_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(KeyProblem, match="ARCHIVER_PASSWORD_FILE does not work"):
        passphrase_from({"ARCHIVER_PASSWORD_FILE": str(tmp_path / "absent"), "ARCHIVER_PASSWORD_COMMAND": "echo x"})


def test_descriptor_whose_writer_lives_on() -> None:
    """A line is enough; its end need not come."""
    reading, writing = os.pipe()
    os.write(writing, b"secret\n")
    with bounded():
        assert passphrase_from({"ARCHIVER_PASSWORD_FD": str(reading)}) == b"secret"
    os.close(writing)


def test_descriptor_is_closed() -> None:
    reading = descriptor(b"secret")
    passphrase_from({"ARCHIVER_PASSWORD_FD": str(reading)})
    with pytest.raises(OSError):
        os.fstat(reading)


def test_standard_descriptors_stay_open() -> None:
    """What is opened next would take the place of stdout, and what is printed would go into it."""
    program = (
        "import os, sys; from archiver.keys.ring import passphrase_from;"
        "assert passphrase_from({'ARCHIVER_PASSWORD_FD': sys.argv[1]}) == b'secret'; os.fstat(int(sys.argv[1]))"
    )
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        files: dict[str, Any] = {name: descriptor(b"secret\n")}
        assert subprocess.run([sys.executable, "-c", program, str(number)], **files).returncode == 0, name


@pytest.mark.parametrize("kind", ["FILE", "FD"])
def test_pipe_that_nobody_writes_into(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "_SECONDS_TO_WAIT", 0.2)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    value = str(fifo) if kind == "FILE" else str(os.open(fifo, os.O_RDWR))
    with bounded(), pytest.raises(KeyProblem, match=f"ARCHIVER_PASSWORD_{kind} does not work") as caught:
        passphrase_from({f"ARCHIVER_PASSWORD_{kind}": value})
    assert caught.value.hint == "nothing came for 0.2 seconds"


def test_writer_that_comes_late(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["sh", "-c", 'sleep 0.3; { printf sec; sleep 0.1; echo ret; } > "$0"', str(fifo)]), bounded():
        assert passphrase_from({"ARCHIVER_PASSWORD_FILE": str(fifo)}) == b"secret"


def test_descriptor_that_cannot_be_read(tmp_path: Path) -> None:
    _, writing = os.pipe()
    with bounded(), pytest.raises(KeyProblem, match="ARCHIVER_PASSWORD_FD does not work"):
        passphrase_from({"ARCHIVER_PASSWORD_FD": str(writing)})


@pytest.mark.parametrize("value", ["", "secret", "-1", "-7", "99999", "1e3", "9" * 30, "9" * 5000, "0x0", "\udcff"])
def test_descriptor_that_is_none(value: str) -> None:
    with pytest.raises(KeyProblem, match="ARCHIVER_PASSWORD_FD does not work") as caught:
        passphrase_from({"ARCHIVER_PASSWORD_FD": value})
    assert value != "secret" or "secret" not in told(caught.value)


def test_endless_sources() -> None:
    with bounded(memory=64 << 20):
        for name, value in [("FILE", "/dev/zero"), ("FD", str(os.open("/dev/zero", os.O_RDONLY)))]:
            with pytest.raises(KeyProblem, match="longer than"):
                passphrase_from({f"ARCHIVER_PASSWORD_{name}": value})


@pytest.mark.parametrize("value", ["", "/", "/nowhere/secret"])
def test_file_that_cannot_be_read(value: str) -> None:
    with pytest.raises(KeyProblem, match="ARCHIVER_PASSWORD_FILE does not work") as caught:
        passphrase_from({"ARCHIVER_PASSWORD_FILE": value})
    assert "secret" not in f"{caught.value} {caught.value.hint}"


# Commands.


def test_command_runs_in_a_shell_without_input() -> None:
    assert passphrase_from({"ARCHIVER_PASSWORD_COMMAND": "x=secret; read line; echo $x$line"}) == b"secret"


def test_command_is_not_told_other_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ARCHIVER_PASSWORD", "ARCHIVER_NEW_PASSWORD", "ARCHIVER_MASTER_PASSWORD", "OTHER"):
        monkeypatch.setenv(name, name.lower())
    command = "echo $ARCHIVER_PASSWORD$ARCHIVER_NEW_PASSWORD$ARCHIVER_MASTER_PASSWORD$OTHER"
    assert passphrase_from({"ARCHIVER_PASSWORD_COMMAND": command}) == b"other"


@pytest.mark.parametrize(
    ("command", "code"),
    [("echo secret; exit 3", 3), ("no-such-command-anywhere", 127), ("kill -9 $$", -9), ("false", 1)],
)
def test_command_that_fails(command: str, code: int) -> None:
    with pytest.raises(KeyProblem, match="ARCHIVER_PASSWORD_COMMAND does not work") as caught:
        passphrase_from({"ARCHIVER_PASSWORD_COMMAND": command})
    assert caught.value.hint == f"the command ended with exit code {code}"
    assert command not in told(caught.value)
    assert "secret" not in told(caught.value)


def test_slow_output_is_waited_for() -> None:
    """The first line alone does not say whether the command will succeed."""
    command = "echo secret; (while kill -0 $$; do :; done) 2>/dev/null >/dev/null & echo more; exit 0"
    assert passphrase_from({"ARCHIVER_PASSWORD_COMMAND": command}) == b"secret"
    with pytest.raises(KeyProblem):
        passphrase_from({"ARCHIVER_PASSWORD_COMMAND": "echo secret; echo more; exit 1"})


@pytest.mark.parametrize(
    "command",
    [
        "exec sleep 20",
        "sleep 20 | cat",  # the pipe outlives the shell
        "echo secret; sleep 20",
        "echo secret; exec >/dev/null; exec sleep 20",
        "yes secret",
        "cat /dev/zero",
    ],
)
def test_command_that_does_not_end(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "_COMMAND_SECONDS", 0.2)
    with bounded(60, memory=128 << 20), pytest.raises(KeyProblem, match="does not work") as caught:
        passphrase_from({"ARCHIVER_PASSWORD_COMMAND": command})
    assert "longer than" in str(caught.value.hint)
    assert "secret" not in told(caught.value)


# Key files.


def changed(**members: Any) -> bytes:
    parsed = json.loads((KEYS / "key-scrypt.json").read_bytes()) | members
    return json.dumps(parsed).encode()


def refused(path: Path, data: bytes) -> KeyProblem:
    path.write_bytes(data)
    with bounded(memory=512 << 20), pytest.raises(KeyProblem) as caught:
        load_key(str(path), {"ARCHIVER_PASSWORD": PASSPHRASE}, never_ask)
    return caught.value


SALT = "AAAA"


@pytest.mark.parametrize(
    "kdf",
    [
        {"Scrypt": {"n": 1 << 40, "r": 8, "p": 1, "salt": SALT}},
        {"Scrypt": {"n": 1 << 20, "r": 1 << 20, "p": 1, "salt": SALT}},
        {"Scrypt": {"n": 65536, "r": 8, "p": 1 << 20, "salt": SALT}},
        {"Scrypt": {"n": 2, "r": 1, "p": 1 << 30, "salt": SALT}},
        {"Scrypt": {"n": 65535, "r": 8, "p": 1, "salt": SALT}},
        {"Scrypt": {"n": 0, "r": 8, "p": 1, "salt": SALT}},
        {"Scrypt": {"n": -65536, "r": -8, "p": 1, "salt": SALT}},
        {"Scrypt": {"n": 10**400, "r": 8, "p": 1, "salt": SALT}},
        {"Scrypt": {"n": 65536.0, "r": 8, "p": 1, "salt": SALT}},
        {"Scrypt": {"n": 65536, "r": 8, "p": 1}},
        {"PBKDF2": {"iter": 1 << 40, "salt": SALT}},
        {"PBKDF2": {"iter": 10**400, "salt": SALT}},
        {"PBKDF2": {"iter": 0, "salt": SALT}},
        {"PBKDF2": {"iter": True, "salt": SALT}},
        {"Argon2": {}},
        {"Scrypt": {}, "PBKDF2": {}},
        {},
        [],
        "Scrypt",
    ],
)
def test_hostile_kdf(tmp_path: Path, kdf: Any) -> None:
    error = refused(tmp_path / "key", changed(kdf=kdf))
    assert "is not a usable key file" in str(error)
    assert len(str(error)) < 2000
    assert PASSPHRASE not in told(error)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b"[" * 60_000,
        b"\0" * 1000,
        b"\xff\xfe",
        b"-----BEGIN PRIVATE KEY-----\n",
        b" " * (64 << 10) + b"{}",
        b"1" * 60_000,
    ],
)
def test_garbage(tmp_path: Path, data: bytes) -> None:
    error = refused(tmp_path / "key", data)
    assert (error.exit_code, error.code) == (12, "key")
    assert str(error).startswith(f"{tmp_path / 'key'} is not a usable key file: ")


def test_cut_key_files(tmp_path: Path) -> None:
    whole = (KEYS / "key-none.json").read_bytes()
    secret = json.loads(whole)["data"]
    for length in range(len(whole)):
        error = refused(tmp_path / "key", whole[:length])
        assert secret[:10] not in told(error)


def test_key_that_is_not_the_one_its_file_names(tmp_path: Path) -> None:
    other = json.loads((KEYS / "key-none.json").read_bytes()) | {"data": "A" * 43 + "="}
    error = refused(tmp_path / "key", json.dumps(other).encode())
    assert "cannot be unlocked" in str(error)
    assert "A" * 20 not in told(error)


def test_endless_key_file() -> None:
    with bounded(memory=64 << 20), pytest.raises(KeyProblem, match="not a usable key file"):
        load_key("/dev/zero", {}, never_ask)


@pytest.mark.parametrize(("path", "reason"), [("/nowhere/key", "no such file"), ("/", "is a directory")])
def test_key_file_that_cannot_be_read(path: str, reason: str) -> None:
    with pytest.raises(KeyProblem, match=f"{path} cannot be read: {reason}") as caught:
        load_key(path, {}, never_ask)
    assert caught.value.exit_code == 12


def test_key_file_of_somebody_else() -> None:
    def work() -> str:
        with pytest.raises(KeyProblem) as caught:
            load_key(str(path), {}, never_ask)
        return str(caught.value)

    with world_readable_directory() as place:
        path = place / "key"
        path.touch(0)
        assert as_ordinary_user(work) == f"the key file {path} cannot be read: permission denied"


def test_key_from_a_pipe() -> None:
    path = f"/proc/self/fd/{descriptor((KEYS / 'key-none.json').read_bytes())}"
    assert load_key(path, {}, never_ask).enc_key == KEY


# The user's own key.


@pytest.fixture
def configuration(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "config/archiver"
    directory.mkdir(parents=True)
    yield directory


def test_default_key(configuration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"XDG_CONFIG_HOME": str(configuration.parent)}
    key = configuration / "encryption-key.json"
    assert default_keyfile(environment) is None
    key.write_bytes(b"")
    assert default_keyfile(environment) == str(key)
    monkeypatch.setenv("HOME", str(configuration.parent.parent))
    assert default_keyfile({}) is None
    (configuration.parent.parent / ".config").symlink_to("config")
    assert default_keyfile({}) == default_keyfile({"XDG_CONFIG_HOME": ""}) != None  # noqa: E711


def test_default_key_that_cannot_be_read_is_no_reason_to_go_without(configuration: Path) -> None:
    key = configuration / "encryption-key.json"
    key.symlink_to("/media/stick/key.json")  # not plugged in
    path = default_keyfile({"XDG_CONFIG_HOME": str(configuration.parent)})
    assert path is not None
    with pytest.raises(KeyProblem, match="cannot be read"):
        load_key(path, {}, never_ask)


# The question on the terminal.


def test_question_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(getpass, "getpass", lambda question: PASSPHRASE)
    crypt = Context(keyfile=PBKDF2).key()
    assert crypt is not None and crypt.enc_key == KEY


def test_no_question_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    monkeypatch.setattr(getpass, "getpass", never_ask)
    with pytest.raises(KeyProblem, match="protected by a passphrase"):
        Context(keyfile=PBKDF2).key()


def test_question_that_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def control_d(question: str) -> str:
        raise EOFError

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(getpass, "getpass", control_d)
    with pytest.raises(KeyProblem, match="protected by a passphrase"):
        Context(keyfile=PBKDF2).key()
