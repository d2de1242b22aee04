"""What a reader is told about signatures, and what it is refused without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from formats import blob
from formats.crypt import CryptConfig
from tests.cli.command import ask, call
from tests.cli.stores import SNAPSHOT
from tests.golden_data import GOLDEN
from tests.golden_store import write_key
from tests.stores import listing

pytestmark = pytest.mark.in_memory

TIMES = {"signed": 1700000001, "forged": 1700000002}
COMMANDS: dict[str, Callable[[str, Path], tuple[str | Path, ...]]] = {
    "restore": lambda name, out: ("restore", name, out),
    "ls": lambda name, out: ("ls", name),
    "cat": lambda name, out: ("cat", name, "/file"),
}


@pytest.fixture
def keyfile(tmp_path: Path) -> Path:
    return write_key(tmp_path / "key.json")


@pytest.fixture
def mixed(store: Path, source: Path, keyfile: Path) -> dict[str, str]:
    """The names of an encrypted snapshot and a later unsigned one of the same group."""
    base = ("--store", store, "backup", f"tree.pxar:{source}", "--id", "group")
    signed = ask(*base, "--keyfile", keyfile, "--time", str(TIMES["signed"]))["snapshot"]
    (source / "file").write_bytes(b"other contents\n")
    forged = ask(*base, "--crypt", "none", "--time", str(TIMES["forged"]))["snapshot"]
    return {"signed": signed, "forged": forged}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("key", ["option", "variable", "own"])
def test_unsigned_is_refused_where_a_key_is_in_use(
    store: Path,
    tmp_path: Path,
    keyfile: Path,
    mixed: dict[str, str],
    command: str,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever the key comes from, and although it is not needed to read. A key file that asks for a passphrase is not
    even opened for that."""
    options: tuple[str | Path, ...] = ("--store", store)
    if key == "option":
        options += ("--keyfile", keyfile)
    elif key == "variable":
        monkeypatch.setenv("ARCHIVER_KEYFILE", str(tmp_path / "not looked into"))
    else:
        own = tmp_path / ".xdg/config/archiver"
        own.mkdir(parents=True)
        (own / "encryption-key.json").write_bytes(b"not looked into")
    arguments = COMMANDS[command](mixed["forged"], tmp_path / "out")
    done = call(*options, *arguments)
    assert (done.code, done.raw) == (20, b"")
    assert mixed["forged"] in done.err and "--allow-unsigned" in done.err
    assert not (tmp_path / "out").exists()
    newest = call(*options, *COMMANDS[command]("host/group", tmp_path / "out"))
    assert newest.code == 20
    assert call(*options, *arguments, "--allow-unsigned").code == 0
    other = COMMANDS[command]("host/tester", tmp_path / "other")  # a group in which nothing is signed
    assert call(*options, *other).code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_unsigned_without_a_key_in_use(store: Path, tmp_path: Path, mixed: dict[str, str], command: str) -> None:
    assert call("--store", store, *COMMANDS[command](mixed["forged"], tmp_path / "out")).code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_signature_without_its_key(
    store: Path, source: Path, tmp_path: Path, keyfile: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ("--store", store, "backup", f"tree.pxar:{source}", "--id", "signed", "--crypt", "sign-only")
    name = ask(*base, "--keyfile", keyfile)["snapshot"]
    arguments = COMMANDS[command](name, tmp_path / "out")
    done = call("--store", store, *arguments)
    assert (done.code, done.raw) == (12, b"") and "--allow-unsigned" in done.err
    assert not (tmp_path / "out").exists()
    other = write_key(tmp_path / "other.json", bytes(32))
    assert call("--store", store, *arguments, "--keyfile", other, "--allow-unsigned").code == 12
    monkeypatch.setenv("ARCHIVER_KEYFILE", str(other))
    assert call("--store", store, *arguments).code == 12
    assert call("--store", store, *arguments, "--allow-unsigned").code == 0
    monkeypatch.setenv("ARCHIVER_KEYFILE", str(keyfile))
    again = COMMANDS[command](name, tmp_path / "again")
    assert call("--store", store, *again).code == 0


def test_listed(store: Path, mixed: dict[str, str]) -> None:
    items = {item["snapshot"]: item for item in ask("--store", store, "snapshots")["items"]}
    assert items[mixed["signed"]]["signature"] == "signed"
    assert items[mixed["forged"]]["signature"] == "unsigned"
    lines = {line.split()[0]: line for line in call("--store", store, "snapshots").lines}
    marked = {name for name, line in lines.items() if "[unsigned]" in line}
    assert marked == {mixed["forged"]}  # not in groups where nothing is signed
    path = store / mixed["signed"] / "index.json.blob"
    fields: dict[str, Any] = json.loads(blob.decode(path.read_bytes()))
    path.write_bytes(blob.encode(json.dumps(fields | {"signature": None}).encode()))
    items = {item["snapshot"]: item for item in ask("--store", store, "snapshots")["items"]}
    assert items[mixed["signed"]]["signature"] == "lost"
    assert "[signature lost]" in call("--store", store, "snapshots").out


def test_verify_tells_what_was_not_checked(store: Path, keyfile: Path, mixed: dict[str, str]) -> None:
    without = call("--store", store, "verify")
    assert without.code == 0
    count = ask("--store", store, "verify")["without_key"]
    assert f"{count} encrypted chunks were checked without their key: CRC and the BLAKE3" in without.out
    assert "1 signatures were not checked" in without.out and "2 snapshots are unsigned" in without.out
    assert f"{mixed['forged']} is unsigned, other snapshots of its group are signed" in without.out
    ask("--store", store, "db", "rebuild")
    assert f"{count} encrypted chunks were checked without their key: CRC alone" in call("--store", store, "verify").out
    with_key = call("--store", store, "verify", "--keyfile", keyfile)
    assert "without their key" not in with_key.out and "not checked" not in with_key.out
    assert "2 snapshots are unsigned" in with_key.out
    again = call("--store", store, "verify").out
    assert "CRC alone" not in again and "CRC and the BLAKE3" in again


def test_wrong_passphrase_before_any_work(store: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a key that has to be unlocked, by every command that takes one; nothing in the store is touched."""
    monkeypatch.setenv("ARCHIVER_PASSWORD", "not it")
    before = listing(store)
    options = ("--store", store, "--keyfile", GOLDEN / "keys" / "key-scrypt.json")
    for command in (
        ("backup", source),
        ("verify",),
        ("ls", SNAPSHOT),
        ("cat", SNAPSHOT, "/file"),
        ("restore", SNAPSHOT),
    ):
        arguments = (*command, source / "out") if command[0] == "restore" else command
        done = call(*options, *arguments)
        assert (done.code, done.raw) == (12, b"") and "key-scrypt.json" in done.err
    assert listing(store) == before and not (source / "out").exists()


def test_backup_tells_of_a_key_that_its_group_was_not_made_with(
    store: Path, source: Path, tmp_path: Path, mixed: dict[str, str]
) -> None:
    """Keys may be changed, so that is no error; but nobody should do it without noticing."""
    base = ("--store", store, "backup", f"tree.pxar:{source}", "--id", "signed-group")
    first, second = (write_key(tmp_path / f"{number}.json", bytes([number]) * 32) for number in range(2))
    ask(*base, "--keyfile", first)
    done = call(*base, "--keyfile", second)
    names = [CryptConfig(bytes([number]) * 32).fingerprint[:8].hex(":") for number in range(2)]
    assert done.code == 0 and all(name in done.err for name in names)
    assert "was made with the key" in done.err
