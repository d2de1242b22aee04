"""``backup --dry-run`` says what the run then does, and leaves everything as it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.command import call
from tests.golden_store import write_key
from tests.stores import make_store


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    for number in range(8):
        (source / "inner" / f"file-{number}").write_bytes(bytes([number]) * 1000)
    (source / "left-out").write_bytes(b"x" * 77)
    os.link(source / "inner/file-0", source / "second-name")
    (source / "link").symlink_to("inner")
    return source


def rehearsed(store: Path, *arguments: str | Path) -> dict[str, object]:
    done = call("--store", store, "backup", *arguments, "--dry-run", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document.keys() == {"schema", "dry_run", "archives", "errors"} and document["dry_run"] is True
    (archive,) = document["archives"]
    assert isinstance(archive, dict)
    return archive


def inventory(store: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file() and "db" not in path.parts}


@pytest.mark.parametrize("encrypted", [False, True])
def test_what_is_new_changed_and_gone(tmp_path: Path, source: Path, encrypted: bool) -> None:
    store = make_store(tmp_path / "store")
    key = ("--keyfile", write_key(tmp_path / "key.json")) if encrypted else ()
    spec = (f"home.pxar:{source}", "--exclude", "left-out", *key)
    first = rehearsed(store, *spec)
    counted = {"entries": 12, "files": 9, "bytes": 9000}
    assert first == counted | {
        "name": "home.pxar", "since": None, "added": 12, "changed": 0, "removed": 0, "bytes_to_read": 9000
    }  # fmt: skip
    assert list((store / ".chunks").iterdir()) == []
    done = call("--store", store, "backup", *spec, "--json", "--time", "2026-01-01T00:00:00Z")
    assert done.code == 0, done.err
    saved = json.loads(done.out)
    assert saved["files"]["total"] == first["files"]
    before = inventory(store)
    again = rehearsed(store, *spec)
    assert again == first | {"since": saved["snapshot"], "added": 0, "bytes_to_read": 0}
    (source / "inner/file-1").write_bytes(b"longer than before" * 100)
    (source / "inner/file-2").unlink()
    (source / "new").write_bytes(b"n" * 11)
    changed = rehearsed(store, *spec)
    numbers = {name: changed[name] for name in ("added", "changed", "removed", "bytes_to_read")}
    # With them both directories changed, by their times.
    assert numbers == {"added": 1, "changed": 3, "removed": 1, "bytes_to_read": 1811}
    assert rehearsed(store, *spec, "--mode", "data")["bytes_to_read"] == changed["bytes"]
    assert inventory(store) == before
    shown = call("--store", store, "backup", *spec, "-nv")
    lines = shown.out.splitlines()
    assert "+ /new  +11 B" in lines and lines[-1] == "nothing was saved"
    assert any(line.startswith("- /inner/file-2") for line in lines)
    assert any(line.startswith("M /inner/file-1  (size, mtime)") for line in lines)


def test_what_cannot_be_known(tmp_path: Path, source: Path) -> None:
    """Standard input is not read and no command run."""
    store = make_store(tmp_path / "store")
    ran = tmp_path / "ran"
    done = call("--store", store, "backup", "dump.img:-", "--stdin-from-command", f"touch {ran}", "-n")
    assert done.code == 0 and "dump.img: of unknown size" in done.out and not ran.exists()
    done = call("--store", store, "backup", f"a.conf:{source / 'new'}", "-n")
    assert done.code == 2 and f"the source {source / 'new'} does not exist" in done.err


def test_no_store_is_made(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("ARCHIVER_STORE", raising=False)
    done = call("backup", source, "-n")
    assert done.code == 0 and "no earlier snapshot: 13 new" in done.out, done.err
    assert not (tmp_path / "data").exists()
    assert call("--store", tmp_path / "absent", "backup", source, "-n").code == 13


def test_what_cannot_be_read(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the run, it ends with exit code 3, and names it."""
    from archiver.source.walk import SourceDirectory

    look = SourceDirectory.look

    def failing(self: SourceDirectory, name: bytes) -> object:
        if name == b"file-3":
            raise OSError(5, "Input/output error")
        return look(self, name)

    monkeypatch.setattr(SourceDirectory, "look", failing)
    done = call("--store", make_store(tmp_path / "store"), "backup", source, "-n", "--json")
    assert done.code == 3
    assert json.loads(done.out)["errors"] == [{"path": "/inner/file-3", "reason": "input/output error"}]
