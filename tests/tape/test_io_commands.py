"""tape backup, restore, catalog and verify as commands, and heal from media: documents, exit codes, what is said."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Done, ask, call, start
from tests.random_trees import noise
from tests.stores import KEY, chunk_files, damage, make_store, restored_differences, save
from tests.sync.pair import finished
from tests.tape.test_commands import documented

START = 1_700_000_000


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    tree.mkdir()
    for number in range(2):
        (tree / f"file-{number}").write_bytes(noise(number, 300_000))
        save(path, tree, time=START + number)
    return path


@pytest.fixture
def media(tmp_path: Path) -> Path:
    ask("tape", "drive", "add", "usb", "--path", tmp_path / "media")
    ask("tape", "pool", "create", "daily")
    ask("tape", "label", "--label-text", "ONE", "--pool", "daily")
    return tmp_path / "media"


@pytest.fixture
def written(store: Path, media: Path) -> Path:
    ask("--store", store, "tape", "backup", "daily")
    return media


def check(name: str, found: dict[str, Any]) -> None:
    """The members are those that the README names."""
    members, inner = documented()[name]
    assert found.keys() - {"schema"} == members, name
    assert inner is not None and all(item.keys() == inner for item in found["items"])


def refused(done: Done, code: int, text: str) -> None:
    assert (done.code, done.error["code"] != "bug") == (code, True) and text in done.error["message"]


def test_documents(store: Path, media: Path, tmp_path: Path) -> None:
    dry = ask("--store", store, "tape", "backup", "daily", "--dry-run")
    assert dry.keys() == {
        "schema", "dry_run", "pool", "media_set", "items", "problems", "new_set", "next_media", "bytes",
    }  # fmt: skip
    assert dry["next_media"] == ["ONE"] and dry["bytes"] == sum(file.stat().st_size for file in chunk_files(store))
    done = ask("--store", store, "tape", "backup", "daily")
    check("tape backup", done)
    assert done["written"] == [ref.path for ref in finished(store)] and done["media"] == ["ONE"]
    assert ask("--store", store, "tape", "backup", "daily")["written"] == []
    target = make_store(tmp_path / "target")
    plan = ask("--store", target, "tape", "restore", "daily", "--dry-run")
    assert plan.keys() == {"schema", "dry_run", "whole", "media", "items", "bytes", "problems"}
    assert plan["media"][0].keys() == {"label", "seq_nr", "all_files", "snapshot_files", "chunk_files"}
    assert finished(target) == [] and chunk_files(target) == []
    back = ask("--store", target, "tape", "restore", "daily")
    check("tape restore", back)
    assert finished(target) == finished(store) and back["files_read"] == 4
    check("tape verify", ask("tape", "verify", "daily"))
    ask("tape", "load", "ONE")
    found = ask("tape", "catalog", "--force")
    assert found.keys() - {"schema"} == documented()["tape catalog"][0]


def test_text(store: Path, media: Path, tmp_path: Path) -> None:
    first, second = (ref.path for ref in finished(store))
    done = call("--store", store, "tape", "backup", "daily", "--dry-run")
    assert done.code == 0 and first in done.out and "would write 2 snapshots" in done.out
    assert done.lines[-1] == "media in this order: ONE"
    done = call("--store", store, "tape", "backup", "daily")
    assert done.code == 0 and done.lines[-1].startswith("wrote 2 of 2 snapshots: ") and done.out.endswith("onto ONE\n")
    target = make_store(tmp_path / "target")
    done = call("--store", target, "tape", "restore", "daily", second, "--dry-run")
    assert done.code == 0 and "would restore 1 snapshots from 1 media, about " in done.lines[-1]
    assert done.lines[1].split() == ["ONE", "0", "2,", "4-5"]
    done = call("--store", target, "tape", "restore", "daily", f"test:{second}")
    assert done.lines[0].startswith("restored 1 snapshots, 0 were there: ") and "needed media" in done.err
    done = call("tape", "verify", "daily")
    assert done.code == 0 and done.out.endswith(": no errors\n") and "2 snapshots" in done.out
    assert call("--store", store, "tape", "backup", "daily", "-q").out == ""


def test_nonsense(store: Path, written: Path, tmp_path: Path) -> None:
    refused(call("--store", store, "tape", "backup", "nobody", "--json"), 10, "no pool nobody")
    refused(call("--store", store, "tape", "backup", "daily", "--group", "x", "--json"), 2, "no group filter")
    refused(call("--store", store, "--ns", "x", "tape", "backup", "daily", "--json"), 10, "no namespace x")
    refused(call("--store", store, "tape", "restore", "nobody", "--json"), 10, "no media set nobody")
    refused(call("--store", store, "tape", "restore", "daily", "host/x", "--json"), 2, "is a group")
    refused(call("--store", store, "tape", "restore", "daily", "host/x/2023-11-14T22:13:20Z", "--json"), 10, "host/x")
    for rule in ("x", "source=../x", "max-depth=9", "max-depth=-1", "source=a,source=b", ""):
        refused(call("--store", store, "tape", "restore", "daily", "--namespaces", rule, "--json"), 2, "")
    for place in ("x", "=x", "x="):
        refused(call("tape", "restore", "daily", "--map", place, "--json"), 2, "no place")
    refused(call("--store", store, "tape", "restore", "daily", "--owner", "x", "--json"), 2, "owner")
    refused(call("--store", tmp_path / "none", "tape", "restore", "daily", "--json"), 13, "there is no directory")
    refused(call("tape", "verify", "daily", "--medium", "TWO", "--json"), 10, "no medium TWO")
    refused(call("tape", "verify", "nobody", "--json"), 10, "no media set")
    refused(call("tape", "catalog", "--json", "--drive", "none"), 10, "none")
    ask("tape", "eject")
    refused(call("tape", "catalog", "--json"), 13, "no medium")
    target = make_store(tmp_path / "target")
    refused(call("--store", target, "--read-only", "tape", "restore", "daily", "--json"), 2, "read-only")


def test_medium_is_away(store: Path, written: Path, tmp_path: Path) -> None:
    """Exit 13, in both directions; the snapshot is named, and when it is there again the run goes on."""
    shutil.move(written, tmp_path / "away")
    target = make_store(tmp_path / "target")
    assert call("--store", target, "tape", "restore", "daily").code == 13
    assert call("--store", store, "tape", "backup", "daily").code == 13
    shutil.move(tmp_path / "away", written)
    for path in written.glob("*-ONE.json"):
        path.rename(tmp_path / path.name)
    ask("tape", "inventory")
    done = call("--store", target, "tape", "restore", "daily", "--json")
    assert done.code == 13 and "ONE" in done.document["error"]["message"]
    save(store, tmp_path / "tree", time=START + 50)
    done = call("--store", store, "tape", "backup", "daily")
    assert done.code == 40 and "no medium" in done.err
    for path in tmp_path.glob("*-ONE.json"):
        path.rename(written / path.name)
    assert len(ask("--store", store, "tape", "backup", "daily")["written"]) == 1
    assert len(ask("--store", target, "tape", "restore", "daily")["restored"]) == 3


def test_waits_for_the_medium(store: Path, written: Path, tmp_path: Path) -> None:
    """It is said what to insert, and the run goes on when it came."""
    away = tmp_path / "away"
    away.mkdir()
    for path in written.glob("*-ONE.json"):
        shutil.move(path, away)
    target = make_store(tmp_path / "target")
    with start("--store", target, "tape", "restore", "daily", "--wait", "60") as running:
        assert running.stderr is not None
        line = b""
        while b"please insert" not in line:
            line = running.stderr.readline()
        assert b"ONE" in line
        for path in away.iterdir():
            shutil.move(path, written)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert finished(target) == finished(store)


def test_damage(store: Path, written: Path, tmp_path: Path) -> None:
    """Exit 20: verify names the file, restore the snapshot; the other one is restored."""
    path = written / "tapefile-4-ONE.json"
    data = bytearray(path.read_bytes())
    data[200_000] ^= 1
    path.write_bytes(data)
    done = call("tape", "verify", "daily", "--json")
    assert done.code == 20 and [(item["label"], item["file"]) for item in done.document["items"]] == [("ONE", 4)]
    assert "chunk " in done.document["items"][0]["reason"]
    target = make_store(tmp_path / "target")
    done = call("--store", target, "tape", "restore", "daily", "--json")
    assert done.code == 20 and len(done.document["restored"]) == 1
    assert [problem["name"] for problem in done.document["problems"]] == [f"test:{finished(store)[1]}"]
    assert damage(target) == []
    path.write_bytes(b"")
    done = call("tape", "verify", "daily")
    assert done.code == 20 and "ONE, file 4: it is empty, its catalog knows it" in done.out


def test_terminated(tmp_path: Path) -> None:
    """What is whole is known, nothing else; the next run goes on."""
    store, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    tree.mkdir()
    for number in range(12):
        (tree / "file").write_bytes(noise(number, 4 << 20))
        save(store, tree, time=START + number)
    ask("tape", "drive", "add", "usb", "--path", tmp_path / "media")
    ask("tape", "pool", "create", "daily")
    ask("tape", "label", "--label-text", "ONE", "--pool", "daily")
    with start("--store", store, "tape", "backup", "daily", "--json") as running:
        while not (tmp_path / "media/tapefile-4-ONE.json").exists():
            time.sleep(0.005)
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=60)
    known = ask("tape", "media", "content")["items"]
    assert running.returncode in (0, 130) and known
    assert len(ask("--store", store, "tape", "backup", "daily")["written"]) == 12 - len(known)
    assert ask("tape", "verify", "daily")["snapshots"] == 12


# -- heal ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, KEY])
def test_heal_from_media(key: Any, tmp_path: Path, media: Path) -> None:
    """Lost and damaged chunks come back from the files that hold them."""
    store, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(noise(5, 700_000))
    saved = save(store, tree, time=START, crypt=key).snapshot
    ask("--store", store, "tape", "backup", "daily")
    victims = sorted(chunk_files(store), key=lambda file: file.stat().st_size)[-3:]
    before = [path.read_bytes() for path in victims]
    victims[0].unlink()
    victims[1].write_bytes(before[1][:-1] + bytes([before[1][-1] ^ 1]))
    victims[2].unlink()
    call("--store", store, "verify")
    assert call("--store", store, "heal").code == 20
    dry = call("--store", store, "heal", "--from-tape", "daily", "--dry-run", "--json")
    assert dry.code == 20 and {item["remedy"] for item in dry.document["items"]} == {"the media set daily"}
    done = ask("--store", store, "heal", "--from-tape", "daily")
    assert done["healed"] == 3 and done["remaining"] == 0
    assert [path.read_bytes() for path in victims] == before
    assert damage(store, key) == [] and restored_differences(store, saved, tree, tmp_path / "out", key) == []


def test_heal_from_damaged_media(store: Path, written: Path) -> None:
    victim = max(chunk_files(store), key=lambda file: file.stat().st_size)
    victim.unlink()
    for number in (2, 4):
        path = written / f"tapefile-{number}-ONE.json"
        data = path.read_bytes()
        for at in range(1000, len(data) - 5000, 20_000):
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        path.write_bytes(data)
    done = call("--store", store, "heal", "--from-tape", "daily", "--json")
    assert done.code == 20 and done.document["remaining"] == 1 and not victim.exists()
    assert call("--store", store, "heal", "--from-tape", "nobody").code == 10
