"""archiver key: what each command does, prints, and refuses."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from formats import blob
from formats.crypt import CryptConfig
from formats.keyfile import KeyFile, KeyTime, Pbkdf2, Scrypt
from formats.paperkey import PaperKey
from tests.cli.command import Argument, ask, call
from tests.cli.stores import filled_store
from tests.formats.test_masterkey import BAD, PRIVATE, PROTECTED, PUBLIC, other, public_pem
from tests.golden_store import FINGERPRINT, write_key

pytestmark = pytest.mark.in_memory

PASSPHRASE = "a good passphrase"
SHOWN = {"schema", "path", "kdf", "created", "modified", "fingerprint", "hint"}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / ".xdg/config/archiver/encryption-key.json"


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)


@pytest.fixture
def passphrase(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ARCHIVER_PASSWORD", PASSPHRASE)
    return PASSPHRASE


def answers(monkeypatch: pytest.MonkeyPatch, *given: str) -> list[str]:
    """A person at a terminal; what they are asked."""
    left, questions = list(given), []

    def answer(question: str) -> str:
        questions.append(question)
        return left.pop(0)

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(getpass, "getpass", answer)
    return questions


# create, show


def test_create(own: Path, passphrase: str) -> None:
    document = ask("key", "create", "--hint", "what it is")
    assert document.keys() == SHOWN and document["path"] == str(own)
    assert (document["kdf"], document["hint"]) == ("scrypt", "what it is")
    assert document["created"] == document["modified"]
    assert stat.S_IMODE(own.stat().st_mode) == 0o600 and stat.S_IMODE(own.parent.stat().st_mode) == 0o700
    file = KeyFile.decode(own.read_bytes())
    assert isinstance(file.kdf, Scrypt) and len(file.kdf.salt) == 32
    assert (file.kdf.n, file.kdf.r, file.kdf.p) == (65536, 8, 1)
    assert file.unlock(passphrase.encode()).fingerprint.hex(":") == document["fingerprint"]
    assert ask("key", "show") == document
    assert own.read_bytes() == file.encode()


def test_create_says_what_to_do_now(tmp_path: Path, passphrase: str) -> None:
    done = call("key", "create", tmp_path / "k")
    assert done.code == 0
    assert "lost" in done.err and "key paper" in done.err and "create-master-key" in done.err
    assert "not protected" in call("key", "create", tmp_path / "plain", "--kdf", "none").err
    assert call("key", "create", tmp_path / "quiet", "-q").err == ""


def test_kinds_of_protection(tmp_path: Path, passphrase: str) -> None:
    assert ask("key", "create", tmp_path / "a", "--kdf", "pbkdf2")["kdf"] == "pbkdf2"
    kdf = KeyFile.decode((tmp_path / "a").read_bytes()).kdf
    assert isinstance(kdf, Pbkdf2) and (kdf.iterations, len(kdf.salt)) == (65535, 32)
    assert ask("key", "create", tmp_path / "b", "--kdf", "none")["kdf"] == "none"
    plain = KeyFile.decode((tmp_path / "b").read_bytes())
    assert plain.kdf is None and len(set(plain.data)) > 10
    assert plain.fingerprint != KeyFile.decode((tmp_path / "a").read_bytes()).fingerprint


def test_nobody_to_ask_is_no_reason_for_a_key_without_passphrase(own: Path) -> None:
    done = call("key", "create")
    assert done.code == 12 and "ARCHIVER_PASSWORD_FILE" in done.err and not own.exists()
    assert call("key", "create", "--kdf", "none").code == 0  # unless it is asked for


def test_create_at_a_terminal(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = answers(monkeypatch, PASSPHRASE, PASSPHRASE + "x", PASSPHRASE, PASSPHRASE)
    assert call("key", "create").code == 12 and not own.exists()
    assert call("key", "create").code == 0
    assert len(questions) == 4
    assert KeyFile.decode(own.read_bytes()).unlock(PASSPHRASE.encode())


@pytest.mark.parametrize("passphrase", ["", "four", "x" * 5000])
def test_passphrases_that_will_not_do(own: Path, monkeypatch: pytest.MonkeyPatch, passphrase: str) -> None:
    monkeypatch.setenv("ARCHIVER_PASSWORD", passphrase)
    assert call("key", "create").code == 12
    assert not own.parent.exists()


@pytest.mark.parametrize("options", [("--hint", ""), ("--hint", "x" * 65), ("--hint", "a\nb"), ("--kdf", "rot13")])
def test_options_that_will_not_do(own: Path, passphrase: str, options: tuple[str, ...]) -> None:
    assert call("key", "create", *options).code == 2
    assert not own.exists()
    assert call("key", "create", "--kdf", "none", "--hint", "x").code == 2


def test_nothing_is_overwritten(own: Path, tmp_path: Path, passphrase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a passphrase asked for before."""
    assert call("key", "create").code == 0
    before = own.read_bytes()
    questions = answers(monkeypatch)
    monkeypatch.delenv("ARCHIVER_PASSWORD")
    for command in (("key", "create"), ("key", "recover", "--paper", tmp_path / "absent")):
        done = call(*command)
        assert done.code == 2 and "--force" in done.err
    assert own.read_bytes() == before and questions == []
    monkeypatch.setenv("ARCHIVER_PASSWORD", PASSPHRASE)
    assert call("key", "create", "--force").code == 0
    assert own.read_bytes() != before
    assert call("key", "create", tmp_path, "--force").code == 2


def test_which_key_file(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [tmp_path / name for name in ("argument", "option", "variable")]
    keys = {path: write_key(path, bytes([number]) * 32) for number, path in enumerate(names)}
    assert len(keys) == 3
    monkeypatch.setenv("ARCHIVER_KEYFILE", str(names[2]))
    assert ask("key", "show")["path"] == str(names[2])
    assert ask("key", "show", "--keyfile", names[1])["path"] == str(names[1])
    assert ask("key", "show", names[0], "--keyfile", names[1])["path"] == str(names[0])
    monkeypatch.delenv("ARCHIVER_KEYFILE")
    done = call("key", "show")
    assert done.code == 12 and str(own) in done.err
    assert call("key", "show", "").code == 2


def test_show_needs_no_passphrase_and_shows_no_escapes(tmp_path: Path) -> None:
    file = KeyFile.decode((Path(__file__).parent.parent / "golden/keys/key-scrypt.json").read_bytes())
    (tmp_path / "k").write_bytes(file.encode().replace(b"the hint", b"\\u001b[2J"))
    done = call("key", "show", tmp_path / "k")
    assert done.code == 0 and "\x1b" not in done.out and "scrypt" in done.out
    assert ask("key", "show", tmp_path / "k")["hint"] == "\x1b[2J"


BROKEN = {
    "empty": b"",
    "text": b"no key",
    "json": b"[]",
    "pem": PUBLIC,
    "huge": b" " * 1_000_000,
    "truncated": b'{"kdf":null,"created":"2026-01-02T03:04:05+01:00"',
}


@pytest.mark.parametrize("kind", [*BROKEN, "directory", "fifo", "absent", "zero"])
@pytest.mark.parametrize("command", ["show", "change-passphrase", "paper", "test"])
def test_files_that_are_no_keys(tmp_path: Path, kind: str, command: str, passphrase: str) -> None:
    place = tmp_path / "k"
    if kind in BROKEN:
        place.write_bytes(BROKEN[kind])
    elif kind == "directory":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "zero":
        place = Path("/dev/zero")
    done = call("key", command, place)
    assert done.code == 12 and done.raw == b"" and str(place) in done.err and len(done.err) < 500


# change-passphrase


def test_change_passphrase(own: Path, tmp_path: Path, passphrase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ask("key", "create", "--hint", "old")
    old = own.read_bytes()
    assert call("key", "change-passphrase").code == 12 and own.read_bytes() == old
    monkeypatch.setenv("ARCHIVER_NEW_PASSWORD_COMMAND", "echo another passphrase")
    own.chmod(0o644)
    after = ask("key", "change-passphrase", "--kdf", "pbkdf2")
    assert after["fingerprint"] == before["fingerprint"] and after["created"] == before["created"]
    assert (after["kdf"], after["hint"]) == ("pbkdf2", None)
    assert stat.S_IMODE(own.stat().st_mode) == 0o600 and os.listdir(own.parent) == [own.name]
    assert call("key", "test").code == 12
    monkeypatch.setenv("ARCHIVER_PASSWORD", "another passphrase")
    assert ask("key", "test")["unlocked"] is True
    (tmp_path / "copy").write_bytes(old)  # still opens with the old one
    monkeypatch.setenv("ARCHIVER_PASSWORD", passphrase)
    assert call("key", "test", tmp_path / "copy").code == 0


def test_remove_and_set_passphrase(own: Path, passphrase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ask("key", "create")
    assert ask("key", "change-passphrase", "--kdf", "none")["kdf"] == "none"
    monkeypatch.delenv("ARCHIVER_PASSWORD")
    assert ask("key", "test")["fingerprint"] == before["fingerprint"]
    monkeypatch.setenv("ARCHIVER_NEW_PASSWORD", "new passphrase")
    assert ask("key", "change-passphrase", "--hint", "new")["hint"] == "new"
    assert call("key", "test").code == 12


def test_change_passphrase_at_a_terminal(own: Path, passphrase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ask("key", "create")
    monkeypatch.delenv("ARCHIVER_PASSWORD")
    questions = answers(monkeypatch, PASSPHRASE, "new passphrase", "new passphrase")
    assert call("key", "change-passphrase").code == 0
    assert len(questions) == 3 and "New" in questions[1]
    assert KeyFile.decode(own.read_bytes()).unlock(b"new passphrase")


def test_key_that_was_exchanged_while_a_person_was_asked(
    own: Path, passphrase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing the old key over the new one would lose it."""
    ask("key", "create")
    new = KeyFile.wrap(CryptConfig(bytes(32)), None, None, None, KeyTime(0), KeyTime(0)).encode()

    def answer(question: str) -> str:
        own.write_bytes(new)
        return "new passphrase"

    answers(monkeypatch)
    monkeypatch.setattr(getpass, "getpass", answer)
    done = call("key", "change-passphrase")
    assert done.code == 12 and "meanwhile" in done.err and own.read_bytes() == new


def test_wrong_passphrase_names_the_key(own: Path, passphrase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ask("key", "create", "--hint", "my cat")["fingerprint"][:23]
    old = own.read_bytes()
    monkeypatch.setenv("ARCHIVER_PASSWORD", "wrong passphrase")
    monkeypatch.setenv("ARCHIVER_NEW_PASSWORD", "new passphrase")
    for command in ("test", "change-passphrase"):
        done = call("key", command)
        assert done.code == 12 and short in done.err and "my cat" in done.err
    assert own.read_bytes() == old


# paper


def test_paper(own: Path, passphrase: str) -> None:
    ask("key", "create")
    page = call("key", "paper", "--subject", "key of <me>")
    assert page.code == 0 and "key of <me>" in page.out
    assert PaperKey.typed(page.out).data == own.read_bytes()
    sheet = call("key", "paper", "--format", "html", "--subject", "key of <me>")
    assert "<title>" in sheet.out and "&lt;me&gt;" in sheet.out
    assert call("key", "paper", "--json").error["code"] == "usage"
    assert PaperKey.typed(call("key", "paper", "--subject", "\udcff\n{\x1b").out).data == own.read_bytes()


def test_paper_of_a_private_master_key(tmp_path: Path) -> None:
    for pem in (PRIVATE, PROTECTED):
        (tmp_path / "pem").write_bytes(pem)
        assert PaperKey.typed(call("key", "paper", tmp_path / "pem").out).data == pem
    (tmp_path / "pem").write_bytes(PUBLIC)
    assert call("key", "paper", tmp_path / "pem").code == 12


# test


@pytest.fixture
def sealed(tmp_path: Path, source: Path) -> dict[str, Any]:
    """A store with snapshots of no key, of one key (encrypted and signed), and of another one."""
    store = filled_store(tmp_path / "store", source)
    keys = {"key": write_key(tmp_path / "key.json"), "other": write_key(tmp_path / "other.json", bytes(32))}
    for name, key, mode in (("a", "key", "encrypt"), ("b", "key", "sign-only"), ("c", "other", "encrypt")):
        options: tuple[Argument, ...] = ("--id", name, "--keyfile", keys[key], "--crypt", mode)
        ask("--store", store, "backup", f"tree.pxar:{source}", *options)
    return {"store": store, **keys}


def test_key_and_store(sealed: dict[str, Any], tmp_path: Path) -> None:
    document = ask("key", "test", sealed["key"], "--store", sealed["store"])
    assert document.keys() == SHOWN | {"unlocked", "fingerprint_compared", "store"}
    assert document["fingerprint"] == FINGERPRINT and document["fingerprint_compared"] is False
    found = document["store"]
    assert (found["plain"], found["with_keys"], found["with_this_key"]) == (1, 3, 2)
    assert len(found["other_keys"]) == 1 and found["problems"] == []
    third = write_key(tmp_path / "third.json", bytes([7]) * 32)
    done = call("key", "test", third, "--store", sealed["store"])
    assert done.code == 12 and "no snapshot of this store" in done.err and FINGERPRINT[:23] in done.err
    assert call("key", "test", third, "--store", sealed["store"], "--json").error["code"] == "key"
    assert call("key", "test", sealed["key"], "--store", tmp_path / "absent").code == 13
    assert ask("key", "test", sealed["key"])["store"] is None


def alter(store: Path, group: str) -> None:
    (manifest,) = store.glob(f"host/{group}/*/index.json.blob")
    text = json.loads(blob.decode(manifest.read_bytes()))
    text["files"][0]["size"] += 1
    manifest.write_bytes(blob.encode(json.dumps(text).encode()))


def test_altered_snapshot_is_told(sealed: dict[str, Any]) -> None:
    """It is damage, also where no sound snapshot is left to prove the key by."""
    command = ("key", "test", sealed["key"], "--store", sealed["store"])
    alter(sealed["store"], "a")
    done = call(*command, "--json")
    found = done.document["store"]
    assert done.code == 20 and found["with_this_key"] == 1 and "altered" in found["problems"][0]
    quiet = call(*command, "-q")
    assert quiet.code == 20 and "altered" in quiet.out
    alter(sealed["store"], "b")
    shutil.rmtree(sealed["store"] / "host/c")
    done = call(*command, "--json")
    assert done.code == 20 and (done.document["store"]["with_keys"], len(done.document["store"]["problems"])) == (2, 2)


# Wrong keys elsewhere.


@pytest.mark.parametrize(
    "command", [("ls", "host/a"), ("cat", "host/a", "/file"), ("restore", "host/a", "{target}"), ("verify", "host/a")]
)
def test_wrong_key_is_told_at_once(sealed: dict[str, Any], tmp_path: Path, command: tuple[str, ...]) -> None:
    arguments = [part.format(target=tmp_path / "target") for part in command]
    other_short = "".join(ask("key", "test", sealed["other"])["fingerprint"][:23])
    done = call("--store", sealed["store"], *arguments, "--keyfile", sealed["other"])
    assert done.code == 12 and FINGERPRINT[:23] in done.err and other_short in done.err
    assert done.raw == b"" and not (tmp_path / "target").exists()


def test_verify_with_a_key_that_is_nobodys(sealed: dict[str, Any], tmp_path: Path) -> None:
    third = write_key(tmp_path / "third.json", bytes([7]) * 32)
    done = call("--store", sealed["store"], "verify", "--keyfile", third)
    assert done.code == 12 and FINGERPRINT[:23] in done.err
    assert "".join(ask("key", "test", sealed["other"])["fingerprint"][:23]) in done.err  # each key that is needed
    mixed = call("--store", sealed["store"], "verify", "--keyfile", sealed["key"])
    assert mixed.code == 0 and "checked without a key" in mixed.err
    assert call("--store", sealed["store"], "verify", "host/tester", "--keyfile", third).code == 0


def test_verify_without_the_passphrase(
    sealed: dict[str, Any], passphrase: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the user's own key: none is needed for plain snapshots, and elsewhere only to check everything."""
    store = ("--store", sealed["store"])
    ask("key", "create")
    ask(*store, "backup", f"tree.pxar:{source}", "--id", "own")
    monkeypatch.delenv("ARCHIVER_PASSWORD")
    assert ask(*store, "verify", "host/tester")["without_key"] == 0
    assert call(*store, "verify", "host/own").code == 12
    found = ask(*store, "verify", "host/own", "--without-key")
    assert found["without_key"] > 0 and len(found["signatures"]["unchecked"]) == 1
    assert call(*store, "verify", "--without-key", "--keyfile", sealed["key"]).code == 2


@pytest.mark.parametrize(
    "command",
    [
        ("backup", "{source}"),
        ("ls", "host/a"),
        ("cat", "host/a", "/file"),
        ("restore", "host/a", "{target}"),
        ("verify",),
    ],
)
def test_wrong_passphrase_before_any_work(
    sealed: dict[str, Any],
    source: Path,
    tmp_path: Path,
    command: tuple[str, ...],
    passphrase: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = ask("key", "create", tmp_path / "locked")["fingerprint"][:23]
    monkeypatch.setenv("ARCHIVER_PASSWORD", "wrong passphrase")
    store = Path(sealed["store"])
    before = sorted(store.rglob("*"))
    arguments = [part.format(source=source, target=tmp_path / "target") for part in command]
    done = call("--store", store, *arguments, "--keyfile", tmp_path / "locked")
    assert done.code == 12 and done.raw == b"" and short in done.err
    assert not (tmp_path / "target").exists()
    assert [path for path in sorted(store.rglob("*")) if ".archiver" not in str(path)] == [
        path for path in before if ".archiver" not in str(path)
    ]


# The master key's files.


def test_create_master_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Path) -> None:
    place = tmp_path / "new"
    assert call("key", "create-master-key", place).code == 12 and not place.exists()
    (tmp_path / "file").touch()
    assert call("key", "create-master-key", tmp_path / "file").code == 2  # before a passphrase is asked for
    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD", "master passphrase")
    document = ask("key", "create-master-key", place)
    assert document == {
        "schema": 1,
        "public": str(place / "master-public.pem"),
        "private": str(place / "master-private.pem"),
    }
    for name in ("master-public.pem", "master-private.pem"):
        assert stat.S_IMODE((place / name).stat().st_mode) == 0o600
    before = (place / "master-private.pem").read_bytes()
    assert before.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert call("key", "create-master-key", place).code == 2
    (place / "master-private.pem").unlink()
    assert call("key", "create-master-key", place).code == 2  # not half a pair either
    assert os.listdir(place) == ["master-public.pem"]
    assert call("key", "import-master-pubkey", place / "master-public.pem").code == 0
    imported = own.parent / "master-public.pem"
    assert imported.read_bytes() == (place / "master-public.pem").read_bytes()
    assert stat.S_IMODE(imported.stat().st_mode) == 0o600
    (place / "another.pem").write_bytes(PUBLIC)
    assert call("key", "import-master-pubkey", place / "another.pem").code == 2
    assert call("key", "import-master-pubkey", place / "another.pem", "--force").code == 0
    assert imported.read_bytes() == PUBLIC


@pytest.mark.parametrize("kind", [*BAD, "private", "1024 bits", "2048 bits", "directory", "fifo", "absent", "huge"])
def test_public_keys_that_will_not_do(tmp_path: Path, own: Path, kind: str) -> None:
    place = tmp_path / "pem"
    if kind == "directory":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "huge":
        place.write_bytes(PUBLIC + b" " * 5_000_000)
    elif kind != "absent":
        data = {"private": PRIVATE, "1024 bits": public_pem(other(1024)), "2048 bits": public_pem(other(2048))} | BAD
        place.write_bytes(data[kind])
    done = call("key", "import-master-pubkey", place)
    assert done.code == 12 and str(place) in done.err and len(done.err) < 400
    assert not (own.parent / "master-public.pem").exists()
    if kind == "private":
        assert "keep the private key away" in done.err
