"""The sync command: what it prints, its documents, its exit codes."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest

from archiver.errors import UsageError
from archiver.sync.rate import parse_rate
from tests.cli.command import ask, call, start
from tests.cli.stores import SNAPSHOT
from tests.mounts import read_only_view
from tests.random_trees import noise
from tests.stores import chunk_files, listing

pytestmark = pytest.mark.in_memory


@pytest.fixture
def target(tmp_path: Path) -> Path:
    ask("init", tmp_path / "target")
    return tmp_path / "target"


def snapshots(store: Path) -> list[str]:
    return sorted(item["snapshot"] for item in ask("--store", store, "snapshots")["items"])


def add(store: Path, source: Path, when: int) -> str:
    (source / "file").write_bytes(noise(when, 5000))
    snapshot = ask("--store", store, "backup", f"tree.pxar:{source}", "--id", "tester", "--time", str(when))["snapshot"]
    assert isinstance(snapshot, str)
    return snapshot


def test_documents(store: Path, target: Path) -> None:
    dry = ask("sync", store, target, "--dry-run")
    assert dry["dry_run"] is True and dry["done"] == [] and dry["held"] == []
    (item,) = dry["items"]
    assert item == {
        "snapshot": SNAPSHOT,
        "target": SNAPSHOT,
        "action": "copy",
        "reason": "new",
        "size": item["size"],
    }
    files = chunk_files(store)
    assert dry["estimate"] == {"chunks": len(files), "bytes": sum(file.stat().st_size for file in files)}
    assert snapshots(target) == [] and not chunk_files(target)
    done = ask("sync", store, target)
    assert done["done"] == [item] and done["copied_chunks"] == len(files) and done["problems"] == []
    assert done["copied_bytes"] == dry["estimate"]["bytes"] and done["present_chunks"] == 0
    assert snapshots(target) == [SNAPSHOT]
    again = ask("sync", store, target, "--dry-run")
    assert [step["action"] for step in again["items"]] == ["skip"] and again["estimate"] == {"chunks": 0, "bytes": 0}
    assert ask("sync", store, target, "--check") == {"schema": 1, "snapshots": 1, "complete": True, "items": []}


def test_text(store: Path, target: Path) -> None:
    done = call("sync", store, target, "--dry-run")
    assert done.code == 0 and SNAPSHOT in done.out and "would copy 1 snapshots, about" in done.out
    done = call("sync", store, target)
    assert done.code == 0 and done.lines[-1].startswith("copied 1 of 1 snapshots: ")
    assert call("sync", store, target, "-q").out == ""
    assert call("sync", store, target, "--check").out == "the copy is complete: 1 snapshots\n"


def test_check_says_what_is_missing(store: Path, target: Path) -> None:
    done = call("sync", store, target, "--check")
    assert (done.code, done.lines) == (4, [f"{SNAPSHOT}: not there", "the copy lacks 1 of 1 snapshots"])
    document = call("sync", store, target, "--check", "--json").document
    assert document["items"] == [{"snapshot": SNAPSHOT, "reason": "not there"}] and document["complete"] is False


def test_damage(store: Path, source: Path, target: Path) -> None:
    """Exit 20, the snapshot and the chunk are named, the other snapshot is there."""
    second = add(store, source, 1700000100)
    ours = {file.name for file in chunk_files(store)}
    spare = store.with_name("spare")
    ask("init", spare)
    ask("sync", store, spare, "--transfer-last", "1")
    (bad, *_) = sorted(ours - {file.name for file in chunk_files(spare)})
    (store / ".chunks" / bad[:4] / bad).write_bytes(b"damaged")
    done = call("sync", store, target)
    assert done.code == 20 and bad in done.err and SNAPSHOT in done.out
    assert snapshots(target) == [second]
    document = call("sync", store, target, "--json").document
    assert document["error"]["code"] == "damaged" and document["problems"][0]["name"] == SNAPSHOT


def test_guard(store: Path, source: Path, target: Path) -> None:
    second = add(store, source, 1700000100)
    third = add(store, source, 1700000200)
    ask("sync", store, target)
    ask("--store", store, "forget", SNAPSHOT, second)
    done = call("sync", store, target, "--remove-vanished", "--json")
    assert done.code == 30 and done.document["error"]["code"] == "held"
    assert done.document["held"] == [{"group": "host/tester", "reason": "2 of 3 snapshots would be removed at once"}]
    assert len(snapshots(target)) == 3
    assert call("sync", store, target, "--remove-vanished", "--confirm", "0123456789ab").code == 30
    plan = done.document["plan"]
    assert plan in call("sync", store, target, "--remove-vanished").err
    assert call("sync", store, target, "--remove-vanished", "--confirm", plan).code == 0
    assert snapshots(target) == [third]


def test_targets_that_are_none(store: Path, target: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert call("sync", store, empty).code == 10
    assert call("sync", store, tmp_path / "absent").code == 13
    assert call("sync", empty, target).code == 10
    assert call("sync", tmp_path / "absent", target).code == 13
    assert call("sync", store, store).code == 2
    assert call("sync", store, "").code == 2
    assert call("sync", "", target).code == 2
    assert list(empty.iterdir()) == []
    ask("sync", store, target)
    target.rename(tmp_path / "unplugged")
    target.mkdir()
    for arguments in ((), ("--check",), ("--dry-run",), ("--new-target",)):
        assert call("sync", store, target, *arguments).code == 13
    assert list(target.iterdir()) == []


def test_another_store_at_the_place(store: Path, target: Path, tmp_path: Path) -> None:
    ask("sync", store, target)
    shutil.rmtree(target)
    ask("init", target)
    done = call("sync", store, target)
    assert done.code == 2 and "--new-target" in done.err and snapshots(target) == []
    assert call("sync", store, target, "--new-target").code == 0
    assert call("sync", store, target).code == 0


def test_new_uuid(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    assert call("sync", store, copy).code == 2
    before = ask("init", tmp_path / "other")["uuid"]
    renewed = ask("init", "--new-uuid", copy)
    assert renewed["uuid"] != before and renewed["name"] == "store" and snapshots(copy) == [SNAPSHOT]
    assert call("sync", store, copy).code == 0
    assert call("init", "--new-uuid", "--name", "other", copy).code == 2
    assert call("init", "--new-uuid", tmp_path / "absent").code == 13
    (tmp_path / "empty").mkdir()
    assert call("init", "--new-uuid", tmp_path / "empty").code == 10


def test_read_only(store: Path, target: Path, tmp_path: Path) -> None:
    """A target that cannot be written is refused; checks and dry runs work."""
    with read_only_view(target, tmp_path / "view") as view:
        assert call("sync", store, view).code == 2
        assert call("sync", store, view, "--check").code == 4
        assert call("sync", store, view, "--dry-run").code == 0
    before = listing(store / "host")
    assert call("--read-only", "sync", store, target).code == 2
    assert listing(store / "host") == before and snapshots(target) == []


@pytest.mark.parametrize(
    "options",
    [
        ("--group", "host/x"),
        ("--group", "regex:("),
        ("--group", ""),
        ("--ns", ".."),
        ("--to-ns", "a//b"),
        ("--to-ns", "a/" * 8),
        ("--max-depth", "8"),
        ("--max-depth", "-1"),
        ("--transfer-last", "0"),
        ("--owner", "root"),
        ("--owner", "\udcff@pam"),
        ("--rate", "0"),
        ("--rate", "fast"),
        ("--rate", "-1M"),
    ],
)
def test_options_that_are_none(store: Path, target: Path, options: tuple[str, str]) -> None:
    done = call("sync", store, target, *options)
    assert done.code == 2 and done.raw == b""
    assert snapshots(target) == []


def test_rates() -> None:
    assert [parse_rate(text) for text in ("1", "500K", "20M", "20MiB", "3g", "7B")] == [
        1,
        500 << 10,
        20 << 20,
        20 << 20,
        3 << 30,
        7,
    ]
    with pytest.raises(UsageError):
        parse_rate("0M")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(store: Path, source: Path, target: Path, number: signal.Signals) -> None:
    """At once, although the rate would let it take minutes; the next one goes on."""
    (source / "large").write_bytes(noise(1, 9 << 20))
    add(store, source, 1700000100)
    with start("sync", store, target, "--rate", "100K") as running:
        deadline = time.monotonic() + 30
        while not chunk_files(target) and time.monotonic() < deadline:
            time.sleep(0.05)
        began = time.monotonic()
        running.send_signal(number)
        _, err = running.communicate()
        assert running.returncode == 130 and time.monotonic() - began < 5, err
    there = len(chunk_files(target))
    assert there and ask("sync", store, target)["copied_chunks"] == len(chunk_files(target)) - there


def test_two_processes_at_once(store: Path, source: Path, target: Path, tmp_path: Path) -> None:
    """Both end well, whoever was first, and a third one with other groups beside them."""
    names = [SNAPSHOT]
    for number in range(4):
        (source / "large").write_bytes(noise(number, 3 << 20))
        names.append(add(store, source, 1700000100 + number))
    ask("--store", store, "backup", f"tree.pxar:{source}", "--id", "other", "--time", "1700000000")
    options: list[list[str]] = [[], [], ["--group", "group:host/other"]]
    running = [start("sync", store, target, "--json", *each) for each in options]
    for each in running:
        out, err = each.communicate()
        assert each.returncode == 0, out + err
    assert snapshots(target) == snapshots(store) and len(snapshots(target)) == len(names) + 1
    assert ask("sync", store, target, "--check")["complete"] is True
    assert ask("--store", target, "verify")["error_count"] == 0
