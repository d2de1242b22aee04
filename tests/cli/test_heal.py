"""The heal command: what it is asked, its document, its exit codes, what it says."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.cli.command import ask, call
from tests.golden_store import write_key
from tests.heal.healing import copy_of, flip
from tests.random_trees import build_plain
from tests.stores import chunk_files, listing

pytestmark = pytest.mark.in_memory

MEMBERS = {
    "schema", "dry_run", "snapshots", "unfinished", "busy", "complete", "items", "healed", "remaining", "removed_bad",
    "verify_states", "failed", "duration_s",
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    build_plain(tmp_path / "source", 1, files=20, max_size=60_000)
    return tmp_path / "source"


@pytest.fixture
def store(tmp_path: Path, source: Path) -> Path:
    """Two groups, a snapshot each, one in a namespace too."""
    path = tmp_path / "store"
    ask("init", path)
    for name in ("a", "b"):
        ask("--store", path, "backup", f"tree.pxar:{source}", "--id", name, "--chunk-size", "64")
    ask("--store", path, "ns", "create", "deep")
    ask("--store", path, "--ns", "deep", "backup", f"tree.pxar:{source}", "--id", "c", "--chunk-size", "64")
    return path


@pytest.fixture
def copy(store: Path, tmp_path: Path) -> Path:
    return copy_of(store, tmp_path / "copy")


def largest(store: Path) -> Path:
    return max(chunk_files(store), key=lambda file: file.stat().st_size)


def test_document(store: Path, copy: Path, source: Path) -> None:
    assert ask("--store", store, "heal")["items"] == []
    flip(largest(store), random.Random(1))
    assert call("--store", store, "verify").code == 20
    done = call("--store", store, "heal", "--dry-run", "--from", copy, "--json")
    assert done.code == 20 and done.document.keys() == MEMBERS
    (item,) = done.document["items"]
    assert item["kind"] == "chunk" and item["remedy"] == f"the store {copy}" and item["healed"] is False
    assert item["place_count"] == len(item["places"]) == 3
    assert item["places"][0].keys() == {"snapshot", "archive", "start", "end", "files"}
    assert item["places"][0]["files"] and item["places"][0]["files"][0].keys() == {"path", "start", "end"}
    alone = call("--store", store, "heal", "--json")
    assert alone.code == 20 and alone.document["remaining"] == 1 and alone.document["items"][0]["remedy"] is None
    healed = ask("--store", store, "heal", "--source", source)
    assert (healed["healed"], healed["remaining"], healed["removed_bad"]) == (1, 0, 1)
    assert healed["items"][0]["remedy"] == f"the live files in {source}"
    assert sorted(healed["verify_states"].values()) == ["ok"] * 3
    assert ask("--store", store, "verify")["errors"] == []


def test_what_is_said(store: Path, copy: Path) -> None:
    chunk = largest(store)
    chunk.unlink()
    dry = call("--store", store, "heal", "--dry-run", "--from", copy)
    assert dry.code == 20
    assert dry.lines[0] == f"chunk {chunk.name}: is missing"
    assert "tree.ppxar.didx, bytes " in dry.out and ": bytes 0 to " in dry.out
    assert f"  can be healed from the store {copy}" in dry.lines and "1 can be healed" in dry.lines[-1]
    none = call("--store", store, "heal")
    assert none.code == 20 and "  nothing at hand can heal it" in none.lines
    done = call("--store", store, "heal", "--from", copy)
    assert done.code == 0 and f"  healed from the store {copy}" in done.lines
    assert "1 things were damaged, 1 are healed" in done.out and "its verify state is ok now" in done.out
    assert "nothing is damaged" in call("--store", store, "heal").out
    assert call("--store", store, "heal", "-q").raw == b""


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ((), 3),
        (("--ns", "deep"), 1),
        (("--group", "host/a"), 1),
        (("host/b",), 1),
        (("ns/deep/host/c",), 1),
    ],
)
def test_what_is_looked_at(store: Path, arguments: tuple[str, ...], count: int) -> None:
    assert ask("--store", store, "heal", *arguments)["snapshots"] == count


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("host/a", "--group", "host/a"), 2),
        (("--source", "/nothing/there"), 2),
        (("--without-key", "--keyfile", "k"), 2),
        (("--read-only",), 2),
        (("host/x",), 10),
        (("--group", "host/x"), 10),
        (("--from", "/nothing/there"), 13),
        (("--from", "{source}"), 10),
        (("--from", "{store}"), 2),
    ],
)
def test_usage(store: Path, source: Path, arguments: tuple[str, ...], code: int) -> None:
    filled = [text.format(store=store, source=source) for text in arguments]
    done = call("--store", store, "heal", *filled)
    assert done.code == code, done.err


def test_read_only_and_dry_run(store: Path, copy: Path) -> None:
    largest(store).unlink()
    before = {name: rest for name, rest in listing(store).items() if "/.archiver" not in name}
    assert call("--store", store, "heal", "--dry-run", "--read-only", "--from", copy, "--json").code == 20
    assert {name: rest for name, rest in listing(store).items() if "/.archiver" not in name} == before


def test_identity(store: Path, copy: Path) -> None:
    """From the database; without one the store becomes another one."""
    file = store / ".archiver/store.json"
    before = file.read_bytes()
    file.write_bytes(before[:20])
    assert call("--store", store, "snapshots").code == 20
    dry = call("--store", store, "heal", "--dry-run", "--json")
    assert dry.code == 20 and dry.document["items"][0]["kind"] == "identity"
    assert file.read_bytes() == before[:20]
    done = ask("--store", store, "heal")
    database = (store / ".archiver/db/data.mdb").exists()
    assert done["items"][0]["remedy"] == ("the store's database" if database else "a new identity")
    assert (file.read_bytes() == before) == database
    shutil.rmtree(store / ".archiver/db", ignore_errors=True)
    file.write_bytes(b"")
    done = ask("--store", store, "heal")
    assert done["items"][0]["remedy"] == "a new identity" and done["healed"] == 1
    assert ask("--store", store, "verify")["errors"] == []


def test_key(store: Path, copy: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyfile = write_key(tmp_path / "key.json")
    before = set(chunk_files(store))
    ask("--store", store, "backup", f"tree.pxar:{source}", "--id", "sealed", "--keyfile", keyfile)
    sealed = sorted(set(chunk_files(store)) - before, key=lambda file: file.stat().st_size)
    kept = copy_of(store, tmp_path / "later")
    sealed[-1].unlink()
    assert call("--store", store, "heal", "--source", source).code == 20
    assert call("--store", store, "heal", "--source", source, "--keyfile", keyfile).code == 0
    sealed[-1].unlink()
    assert call("--store", store, "heal", "--from", kept).code == 0
    sealed[-1].unlink()
    monkeypatch.setenv("ARCHIVER_KEYFILE", str(keyfile))
    assert call("--store", store, "heal", "--from", kept, "--without-key").code == 0
    other = write_key(tmp_path / "other.json", bytes(range(32, 64)))
    assert call("--store", store, "heal", "host/sealed", "--keyfile", other).code == 12
