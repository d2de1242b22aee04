"""Secrets are in no output, argument or file: passphrases, the key, the private master key, whatever goes wrong."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archiver.cli.main import run
from archiver.errors import KeyProblem
from archiver.keys.ring import UnlockedKey, new_passphrase
from formats.crypt import CryptConfig
from formats.keyfile import KeyFile, KeyTime, Pbkdf2
from tests.cli.command import Argument, Done, call, process
from tests.formats.test_masterkey import PASSPHRASE as MASTER_PASSPHRASE
from tests.formats.test_masterkey import PROTECTED, PUBLIC, other, private_pem

pytestmark = pytest.mark.in_memory

KEY = b"MARKER-of-the-key-32-bytes-long!"
PASSPHRASE = "MARKER of the passphrase"
NEW = "MARKER of the new passphrase"
WRONG = "MARKER of a wrong passphrase"
PEM = private_pem(other(2136))
WHEN = KeyTime(1_700_000_000)


def forms(secret: bytes) -> set[bytes]:
    """As it may be printed: raw, hex, base64 (wherever it starts in a longer text), repr, with its spaces escaped."""
    found = {secret, secret.hex().encode(), secret.hex(":").encode(), secret.upper(), secret[::-1]}
    found |= {base64.b64encode(bytes(pad) + secret)[4:-4] for pad in range(3)}
    return found | {repr(secret)[2:-1].encode(), json.dumps(secret.decode())[1:-1].encode(), secret.replace(b" ", b"+")}


SECRETS = set().union(*map(forms, (KEY, PASSPHRASE.encode(), NEW.encode(), WRONG.encode(), MASTER_PASSPHRASE)))
SECRETS |= {line for line in PEM.splitlines() if len(line) > 40 and b"---" not in line}
SECRETS |= {b"MARKER", b"TUFSS0VS"}


def leaks(data: bytes) -> set[bytes]:
    return {secret for secret in SECRETS if secret in data}


def key_file(kdf: Pbkdf2 | None, passphrase: bytes = PASSPHRASE.encode()) -> bytes:
    return KeyFile.wrap(CryptConfig(KEY), passphrase, kdf, bytes(16), WHEN, WHEN).encode()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Key files, whole and broken, a store, and a working directory that is not the checkout's."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(key_file(None))))
    locked, plain = key_file(Pbkdf2(1000, b"salt")), key_file(None)
    text = plain.decode()
    files: dict[str, bytes] = {
        "locked.json": locked,
        "plain.json": plain,
        "cut.json": plain[:-40],
        "twice.json": (text[:-1] + ',"data":"AAAA"}').encode(),
        "fingerprint.json": json.dumps(json.loads(text) | {"fingerprint": "00" * 32}).encode(),
        "badprint.json": json.dumps(json.loads(text) | {"fingerprint": "zz"}).encode(),
        "short.json": json.dumps(json.loads(text) | {"data": base64.b64encode(KEY[:-1]).decode()}).encode(),
        "dirty.json": json.dumps(json.loads(text) | {"data": base64.b64encode(KEY).decode() + "*"}).encode(),
        "quote.json": text.replace('"data":"', '"data":').encode(),
        "time.json": json.dumps(json.loads(text) | {"created": "yesterday"}).encode(),
        "raw.json": KEY,
        "hex.json": KEY.hex().encode(),
        "private.pem": PEM,
        "broken.pem": PEM.replace(b"\nM", b"\nN", 1),
        "cut.pem": PEM[:700],
        "protected.pem": PROTECTED,
        "public.pem": PUBLIC,
        "passphrase": PASSPHRASE.encode(),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_bytes(b"contents")
    monkeypatch.chdir(tmp_path)
    assert call("init", "store").code == 0
    keys = ("--keyfile", "plain.json", "--master-pubkey-file", "public.pem")
    assert call("--store", "store", "backup", "source", "--id", "a", *keys).code == 0
    monkeypatch.setenv("ARCHIVER_STORE", "store")
    return tmp_path


def commands(key: str) -> Iterator[tuple[Argument, ...]]:
    yield from (("key", name, key) for name in ("show", "test"))
    yield ("key", "change-passphrase", key, "--kdf", "pbkdf2")
    yield ("key", "change-passphrase", key, "--hint", "a\nb")
    yield ("key", "change-passphrase", key, "--kdf", "none", "--hint", "x")
    yield ("key", "create", key)
    yield ("key", "create", key, "--kdf", "pbkdf2", "--force")
    yield ("key", "create", "new/k.json", "--hint", "x" * 70)
    yield ("key", "create-master-key", key)
    if key == "plain.json":
        yield ("key", "create-master-key", "pair")  # takes a second
    yield ("key", "import-master-pubkey", key)
    for way in ("--master-keyfile", "--paper"):
        yield ("key", "drill", way, key)
        yield ("key", "drill", "host/absent", way, key)
        yield ("key", "recover", way, key, "-o", "recovered.json", "--force")
    wrapped = ("--encrypted-keyfile", key, "--master-keyfile", "private.pem", "--kdf", "pbkdf2")
    yield ("key", "recover", *wrapped, "-o", "r.json", "--force")
    yield ("key", "drill", "--paper", "-")
    for command in (("backup", "source"), ("ls", "host/a"), ("restore", "host/a", "out"), ("verify",)):
        yield (*command, "--keyfile", key)
    yield ("debug", "inspect", key)
    yield ("debug", "inspect", "store/.chunks", "--keyfile", key)
    yield ("backup", "source", "--keyfile", "plain.json", "--master-pubkey-file", key)


ENVIRONMENTS: dict[str, dict[str, str]] = {
    "nothing": {},
    "right": {"ARCHIVER_PASSWORD": PASSPHRASE, "ARCHIVER_NEW_PASSWORD": NEW, "ARCHIVER_MASTER_PASSWORD": WRONG},
    "wrong": {"ARCHIVER_PASSWORD": WRONG, "ARCHIVER_MASTER_PASSWORD": WRONG},
    # a secret put where the name of a file, a number or a command belongs
    "file": {"ARCHIVER_PASSWORD_FILE": PASSPHRASE, "ARCHIVER_MASTER_PASSWORD_FILE": PASSPHRASE},
    "descriptor": {"ARCHIVER_PASSWORD_FD": PASSPHRASE, "ARCHIVER_MASTER_PASSWORD_FD": PASSPHRASE},
    "long": {"ARCHIVER_PASSWORD": PASSPHRASE * 1000, "ARCHIVER_MASTER_PASSWORD": PASSPHRASE * 60},
}


def test_leaks_are_seen() -> None:
    for text in (key_file(None), KEY.hex().encode(), b"x" + KEY, PEM, base64.b64encode(b"xy" + KEY)):
        assert leaks(b"some text " + text)
    assert not leaks(key_file(Pbkdf2(2, b"salt")))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_no_secret_is_printed(place: Path, monkeypatch: pytest.MonkeyPatch, environment: str) -> None:
    for name, value in ENVIRONMENTS[environment].items():
        monkeypatch.setenv(name, value)
    whole = {path: path.read_bytes() for path in place.iterdir() if path.is_file()}
    codes = set()
    options = itertools.cycle(("", "--json", "-v"))  # the commands are no multiple of 3: each gets each of them
    for path in list(whole):
        for arguments in commands(path.name):
            done = call(*arguments, *filter(None, [next(options)]))
            codes.add(done.code)
            assert not leaks(done.raw + done.err.encode()), arguments
            for before, data in whole.items():
                if not before.exists() or before.read_bytes() != data:
                    before.write_bytes(data)
    assert {2, 12} <= codes
    if environment == "right":
        assert 0 in codes


def test_bug_of_ours_shows_no_secret(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback has our own lines, not what they work with."""
    from formats import keyfile

    def bug(*arguments: Any, **options: Any) -> bytes:
        raise RuntimeError("a bug")

    monkeypatch.setenv("ARCHIVER_PASSWORD", PASSPHRASE)
    monkeypatch.setattr(keyfile, "gcm_decrypt", bug)
    monkeypatch.setattr(keyfile, "gcm_encrypt", bug)
    for arguments in (["key", "test", "locked.json"], ["key", "create", "k.json"]):
        for options in ([], ["--json"]):
            out, err = io.StringIO(), io.StringIO()
            monkeypatch.setattr(sys, "stdout", out)
            monkeypatch.setattr(sys, "stderr", err)
            assert run([*arguments, *options], bool(options)) == 70
            assert "a bug" in out.getvalue() + err.getvalue()
            assert not leaks((out.getvalue() + err.getvalue()).encode())


def test_no_secret_in_arguments_of_processes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What we start others with anybody can read in /proc."""
    started: list[Any] = []
    popen = subprocess.Popen

    def note(arguments: Any, *rest: Any, **options: Any) -> Any:
        started.append(arguments)
        return popen(arguments, *rest, **options)

    monkeypatch.setattr(subprocess, "Popen", note)
    monkeypatch.setenv("ARCHIVER_PASSWORD_COMMAND", "cat passphrase")
    monkeypatch.setenv("ARCHIVER_NEW_PASSWORD_COMMAND", "cat passphrase")
    for arguments in (("key", "test", "locked.json"), ("key", "change-passphrase", "locked.json")):
        assert call(*arguments).code == 0
    assert started == ["cat passphrase"] * 3


def test_process_of_its_own(place: Path) -> None:
    """As it is really run, its end included."""
    root = Path(__file__).parent.parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "ARCHIVER_PASSWORD": WRONG, "ARCHIVER_MASTER_PASSWORD": WRONG}
    codes = []
    for arguments in (
        ("key", "test", "locked.json"),
        ("key", "drill", "--paper", "locked.json"),
        ("key", "drill", "--master-keyfile", "protected.pem"),
        ("key", "show", "dirty.json"),
        ("ls", "host/a", "--keyfile", "locked.json"),
    ):
        done: Done = process(*arguments, cwd=place, env=environment)
        codes.append(done.code)
        assert not leaks(done.raw + done.err.encode())
    assert codes == [12] * 5


def test_drill_writes_no_key(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to the store nor the database nor a temporary file, while it restores."""
    from archiver.restore import drill
    from archiver.restore import run as restore_run

    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD", MASTER_PASSPHRASE.decode())
    given = {path.name for path in place.iterdir() if path.is_file()}
    temp = place / "temp"
    temp.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temp))
    looked_at: list[str] = []
    restore = restore_run.restore

    def look(*arguments: Any, **options: Any) -> Any:
        result = restore(*arguments, **options)
        for path in place.rglob("*"):
            if path.is_file() and path.name not in given:
                looked_at.append(path.name)
                assert not leaks(path.read_bytes()), path
        return result

    monkeypatch.setattr(drill, "restore", look)
    assert call("key", "drill", "--master-keyfile", "protected.pem").code == 0
    assert {"file", "index.json.blob", "data.mdb"} <= set(looked_at)


def test_secrets_have_no_repr() -> None:
    file = KeyFile.decode(key_file(None))
    assert not leaks(repr(UnlockedKey(file, CryptConfig(KEY))).encode())
    with pytest.raises(KeyProblem, match="differ") as caught:
        new_passphrase({}, lambda question: question.encode() + b"MARKER", "it", "X")
    assert not leaks(repr(caught.value).encode())
