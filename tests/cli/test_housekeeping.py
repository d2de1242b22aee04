"""forget, prune, protect, note, owner, ns: documents, exit codes, what is printed, who is asked."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from archiver.core.locks import DirectoryLock, lock_range
from formats import blob
from tests.cli.command import ROOT, ask, call, process
from tests.cli.stores import SNAPSHOT
from tests.stores import listing

pytestmark = pytest.mark.in_memory

START = 1700000000
GROUP = "host/tester"
ITEM = {"snapshot", "keep", "reason", "protected", "mark"}
DOCUMENT = {"schema", "plan", "dry_run", "held", "items", "removed", "removed_groups", "skipped", "failed", "gc"}


def name(number: int) -> str:
    """SNAPSHOT is number 0."""
    return f"{GROUP}/2023-11-14T22:13:{20 + number}Z"


@pytest.fixture
def five(store: Path) -> Path:
    """A store with five snapshots of the group."""
    for number in range(1, 5):
        shutil.copytree(store / SNAPSHOT, store / name(number))
        text = ask("debug", "inspect", store / SNAPSHOT / "index.json.blob")["manifest"]
        _write_manifest(store / name(number) / "index.json.blob", text | {"backup-time": START + number})
    assert len(snapshots(store)) == 5
    return store


def _write_manifest(place: Path, fields: dict[str, Any]) -> None:
    place.write_bytes(blob.encode(json.dumps(fields).encode()))


def snapshots(store: Path) -> list[str]:
    return [item["snapshot"] for item in ask("--store", store, "snapshots")["items"]]


# -- prune -----------------------------------------------------------------------------------------------------------


def test_prune(five: Path) -> None:
    document = ask("--store", five, "prune", GROUP, "--keep-last", "3")
    assert document.keys() == DOCUMENT
    assert all(item.keys() == ITEM for item in document["items"])
    assert [(item["snapshot"], item["keep"], item["mark"]) for item in document["items"]] == [
        (name(4), True, "keep"),
        (name(3), True, "keep"),
        (name(2), True, "keep"),
        (name(1), False, "remove"),
        (name(0), False, "remove"),
    ]
    assert document["items"][0]["reason"] == "keep-last 1 of 3"
    assert document["removed"] == [name(0), name(1)]  # the oldest first
    assert document["held"] == document["removed_groups"] == document["skipped"] == document["failed"] == []
    assert snapshots(five) == [name(2), name(3), name(4)]


def test_prune_prints_every_snapshot_with_a_reason(five: Path) -> None:
    done = call("--store", five, "prune", "--keep-last", "4", "--dry-run")
    assert done.code == 0 and done.lines[0].split() == ["snapshot", "action", "reason"]
    assert done.lines[1].split(maxsplit=2) == [name(4), "keep", "keep-last 1 of 4"]
    assert done.lines[5].split(maxsplit=2) == [name(0), "remove", "no keep option takes it"]
    assert done.lines[6].startswith("would remove 1 of 5 snapshots, plan ")
    done = call("--store", five, "prune", "--keep-last", "4", "-q")
    assert [line.split()[0] for line in done.lines] == ["snapshot", name(0)] and done.err == ""


def test_dry_run_changes_nothing(five: Path) -> None:
    before = listing(five)
    document = ask("--store", five, "prune", "--keep-last", "1", "--dry-run")
    assert document["dry_run"] is True and document["removed"] == [] and len(document["held"]) == 1
    done = call("--store", five, "prune", "--keep-last", "1", "--dry-run")
    assert done.code == 0 and "held until confirmed: host/tester: 4 of 5" in done.out
    ask("--store", five, "forget", name(0), "--dry-run")
    ask("--store", five, "forget", "--all", GROUP, "--dry-run")
    assert listing(five) == before


def test_held_until_the_plan_is_confirmed(five: Path) -> None:
    options = ("--store", five, "prune", "--keep-last", "1")
    before = listing(five)
    done = call(*options)
    assert done.code == 30 and "nothing is removed: host/tester: 4 of 5 snapshots would be removed at once" in done.err
    done = call(*options, "--json")
    assert done.code == 30
    document = done.document
    assert document.keys() == DOCUMENT | {"error"} and document["error"]["code"] == "held"
    assert document["held"] == [{"group": GROUP, "reason": "4 of 5 snapshots would be removed at once"}]
    assert document["plan"] in document["error"]["hint"]
    wrong = call(*options, "--confirm", "0123456789ab")
    assert wrong.code == 30 and "the plan is not 0123456789ab any more" in wrong.err
    others = ("--store", five, "prune", "--keep-last", "2", "--confirm", document["plan"])
    assert call(*others).code == 30
    assert listing(five) == before
    assert ask(*options, "--confirm", document["plan"])["removed"] == [name(number) for number in range(4)]
    assert snapshots(five) == [name(4)]
    assert ask(*options, "--confirm", document["plan"])["removed"] == []


def test_another_snapshot_makes_another_plan(five: Path) -> None:
    options = ("--store", five, "prune", "--keep-last", "1", "--json")
    plan = call(*options).document["plan"]
    ask("--store", five, "protect", name(2))
    done = call(*options, "--confirm", plan)
    assert done.code == 30 and done.document["plan"] != plan


def test_future_snapshot_holds(five: Path, source: Path) -> None:
    ask("--store", five, "backup", f"tree.pxar:{source}", "--id", "tester", "--time", "2100-01-01T00:00:00Z")
    done = call("--store", five, "prune", "--keep-last", "5")
    assert done.code == 30 and "2100-01-01T00:00:00Z is in the future" in done.err
    assert len(snapshots(five)) == 6


def test_one_held_group_holds_all(five: Path, source: Path) -> None:
    ask("--store", five, "backup", f"tree.pxar:{source}", "--id", "other", "--time", "1600000000", "--ns", "a")
    ask("--store", five, "backup", f"tree.pxar:{source}", "--id", "other", "--time", "1600000001", "--ns", "a")
    assert call("--store", five, "prune", "--keep-last", "1").code == 30
    assert len(snapshots(five)) == 7
    assert ask("--store", five, "--ns", "a", "prune", "--keep-last", "1")["removed"] == [
        "ns/a/host/other/2020-09-13T12:26:40Z"
    ]
    assert ask("--store", five, "prune", "--keep-last", "1", "host/other", "--ns", "a")["removed"] == []


def test_prune_keeps_what_is_protected_or_verified_last(five: Path) -> None:
    ask("--store", five, "protect", name(0))
    text = ask("debug", "inspect", five / name(1) / "index.json.blob")["manifest"]
    state = {"state": "ok", "upid": f"UPID:here:00000001:00000001:00000001:{START:08X}:verify::root@pam:"}
    _write_manifest(five / name(1) / "index.json.blob", text | {"unprotected": {"verify_state": state}})
    document = ask("--store", five, "prune", "--keep-last", "1", "--keep-within", "1h", "--dry-run")
    assert all(item["keep"] for item in document["items"])
    document = ask("--store", five, "prune", "--keep-last", "1")
    assert document["removed"] == [name(2), name(3)]
    items = {item["snapshot"]: item for item in document["items"]}
    assert items[name(0)] == {
        "snapshot": name(0),
        "keep": True,
        "reason": "protected",
        "protected": True,
        "mark": "protected",
    }
    assert items[name(1)]["reason"] == "the newest that was verified and found good"


@pytest.mark.parametrize(
    "options",
    [
        ("--keep-last", "0"),
        ("--keep-last", "-1"),
        ("--keep-daily", "x"),
        ("--keep-within", "7w"),
        ("--keep-within", ""),
        (SNAPSHOT,),
        ("nonsense",),
    ],
)
def test_prune_options_that_make_no_sense(store: Path, options: tuple[str, ...]) -> None:
    assert call("--store", store, "prune", *options, "--json").error["code"] == "usage"
    assert snapshots(store) == [SNAPSHOT]


def test_prune_without_options_keeps_everything(five: Path) -> None:
    document = ask("--store", five, "prune")
    assert {item["reason"] for item in document["items"]} == {"no keep option is given"}
    assert document["removed"] == [] and len(snapshots(five)) == 5


def test_snapshot_that_is_read_is_skipped(five: Path) -> None:
    """By a restore in another process, which gets all of it."""
    held = f"import fcntl, os, sys; fd = os.open({str(five / name(0))!r}, 0); fcntl.flock(fd, fcntl.LOCK_SH);"
    held += "print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None and reader.stdout.readline() == "\n"
        done = call("--store", five, "prune", "--keep-last", "3", "--json")
        assert done.code == 14 and done.document["error"]["code"] == "skipped"
        assert done.document["removed"] == [name(1)]
        assert done.document["skipped"] == [{"snapshot": name(0), "reason": f"{name(0)} is in use by another process"}]
        done = call("--store", five, "prune", "--keep-last", "3")
        assert done.code == 14 and f"not removed: {name(0)} is in use" in done.err
        assert reader.stdin is not None
        reader.stdin.close()
    assert ask("--store", five, "prune", "--keep-last", "3")["removed"] == [name(0)]


# -- forget ----------------------------------------------------------------------------------------------------------


def test_forget(five: Path) -> None:
    document = ask("--store", five, "forget", name(1), name(3))
    assert document.keys() == DOCUMENT
    assert {item["snapshot"]: item["keep"] for item in document["items"]} == {name(1): False, name(3): False}
    assert document["removed"] == [name(1), name(3)]
    assert snapshots(five) == [name(0), name(2), name(4)]
    assert call("--store", five, "forget", name(1)).code == 10
    assert ask("--store", five, "forget", "latest")["removed"] == [name(4)]


def test_forget_removes_nothing_when_one_is_protected(five: Path) -> None:
    ask("--store", five, "protect", name(1))
    done = call("--store", five, "forget", name(0), name(1), "--json")
    assert done.code == 14 and done.document["removed"] == [] and done.document["error"]["code"] == "skipped"
    done = call("--store", five, "forget", name(0), name(1))
    assert done.code == 14 and f"nothing is removed, protected: {name(1)}" in done.err
    assert f"archiver protect --off {name(1)}" in done.err
    assert len(snapshots(five)) == 5


def test_forget_a_group(five: Path) -> None:
    assert call("--store", five, "forget", GROUP).code == 2
    assert call("--store", five, "forget", "--all", name(1)).code == 2
    ask("--store", five, "protect", name(1))
    done = call("--store", five, "forget", "--all", GROUP, "--json")
    assert done.code == 14 and len(done.document["removed"]) == 4 and done.document["removed_groups"] == []
    assert snapshots(five) == [name(1)]
    ask("--store", five, "protect", "--off", name(1))
    assert ask("--store", five, "forget", "--all", GROUP)["removed_groups"] == [GROUP]
    assert ask("--store", five, "groups")["items"] == []


@pytest.mark.parametrize(("answer", "code"), [("n", 130), ("y", 0)])
def test_a_person_is_asked_before_a_group_goes(five: Path, answer: str, code: int) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "archiver", "--store", str(five), "forget", "--all", GROUP]
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        _, errors = process.communicate()
    os.close(ours)
    assert process.returncode == code, errors
    assert b"forget all 5 snapshots of host/tester?" in errors
    assert len(snapshots(five)) == (5 if code else 0)


# -- with --gc -------------------------------------------------------------------------------------------------------


def test_space_is_freed_at_once(five: Path) -> None:
    document = ask("--store", five, "forget", "--all", GROUP, "--gc")
    assert document.keys() == DOCUMENT and len(document["removed"]) == 5
    collected = document["gc"]
    assert collected["mode"] == "immediate" and collected["complete"] and collected["removed_chunks"] == 2
    assert list((five / ".chunks").glob("*/*")) == []


def test_what_was_freed_is_told(five: Path) -> None:
    lines = call("--store", five, "prune", "--keep-last", "3", "--gc").lines
    assert lines[-4] == "removed 2 of 5 snapshots" and lines[-3] == "removed: 0 B in 0 chunks"
    assert lines[-2].startswith("kept: ")


@pytest.mark.parametrize("options", [("--dry-run",), ("--confirm", "another")])
def test_nothing_is_collected_when_nothing_is_removed(five: Path, options: tuple[str, ...]) -> None:
    done = call("--store", five, "prune", "--keep-last", "1", "--gc", *options, "--json")
    assert done.code == (0 if options == ("--dry-run",) else 30)
    assert done.document["removed"] == [] and done.document["gc"] is None and len(snapshots(five)) == 5
    assert not (five / ".gc-status").exists()


def test_snapshots_are_removed_when_space_cannot_be_freed(five: Path) -> None:
    with open(five / ".lock", "r+b") as lock:
        assert lock_range(lock.fileno(), 1, 0, exclusive=True)
        done = call("--store", five, "forget", name(0), "--gc")
        assert done.code == 11 and done.lines[-1] == "removed 1 of 1 snapshots"
        assert "another garbage collection" in done.err
        done = call("--store", five, "forget", name(1), "--gc", "--json")
    assert done.code == 11 and done.document["error"]["code"] == "locked"
    assert done.document["removed"] == [name(1)] and done.document["gc"] is None
    assert snapshots(five) == [name(2), name(3), name(4)]


def test_of_two_errors_the_worse_one_decides_and_both_are_told(five: Path) -> None:
    with open(five / ".lock", "r+b") as lock, DirectoryLock(str(five / name(0)), exclusive=False):
        assert lock_range(lock.fileno(), 1, 0, exclusive=True)
        done = call("--store", five, "prune", "--keep-last", "3", "--gc")
        assert done.code == 11 and "another garbage collection" in done.err
        assert f"{name(0)} is in use by another process" in done.err
        done = call("--store", five, "prune", "--keep-last", "3", "--gc", "--json")
    assert done.code == 11 and done.document["error"]["code"] == "locked" and len(done.document["skipped"]) == 1
    assert snapshots(five) == [name(0), name(2), name(3), name(4)]


# -- nobody reads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_it_is_done_whether_or_not_somebody_reads(five: Path, more: list[str]) -> None:
    """As with ``| head -1``. Without buffers, so that the first line finds nobody, as a long list does otherwise."""
    ours, theirs = os.pipe()
    os.close(ours)
    for code, left, command in (
        (30, 5, ["prune", "--keep-last", "1", "--gc"]),
        (0, 3, ["prune", "--keep-last", "3", "--gc"]),
        (0, 0, ["forget", "--all", GROUP, "--yes", "--gc"]),
    ):
        done = process("--store", five, *command, *more, stdout=theirs, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        assert (done.code, len(snapshots(five))) == (code, left), done.err
    os.close(theirs)
    assert list((five / ".chunks").glob("*/*")) == []


# -- the others ------------------------------------------------------------------------------------------------------


def test_protect(store: Path) -> None:
    assert ask("--store", store, "protect", "latest") == {"schema": 1, "snapshot": SNAPSHOT, "protected": True}
    assert ask("--store", store, "snapshots")["items"][0]["protected"] is True
    assert ask("--store", store, "protect", GROUP, "--off")["protected"] is False
    assert ask("--store", store, "snapshots")["items"][0]["protected"] is False
    assert call("--store", store, "protect", SNAPSHOT).lines == [f"{SNAPSHOT} is protected"]


def test_note(store: Path) -> None:
    assert ask("--store", store, "note", "latest") == {"schema": 1, "snapshot": SNAPSHOT, "note": None}
    assert ask("--store", store, "note", "latest", "one\ntwo")["note"] == "one\ntwo"
    assert call("--store", store, "note", "latest").lines == ["one", "two"]
    assert ask("--store", store, "snapshots")["items"][0]["note"] == "one\ntwo"
    assert ask("--store", store, "note", "latest", "")["note"] is None
    assert ask("--store", store, "note", "--group", GROUP, "all of it") == {
        "schema": 1,
        "group": GROUP,
        "note": "all of it",
    }
    assert ask("--store", store, "groups")["items"][0]["note"] == "all of it"
    assert "all of it" in call("--store", store, "groups").lines[1]
    assert call("--store", store, "note", "latest", "\udcff").code == 2
    assert call("--store", store, "ls", "latest").lines == ["below", "file", "link"]


def test_owner(store: Path) -> None:
    assert ask("--store", store, "owner", GROUP) == {"schema": 1, "group": GROUP, "owner": "root@pam"}
    assert ask("--store", store, "owner", GROUP, "joe@pbs")["owner"] == "joe@pbs"
    assert call("--store", store, "owner", GROUP).lines == ["joe@pbs"]
    assert ask("--store", store, "groups")["items"][0]["owner"] == "joe@pbs"
    assert call("--store", store, "owner", GROUP, "joe").code == 2
    assert call("--store", store, "owner", "ct/1").code == 10


def test_namespaces(store: Path, source: Path) -> None:
    assert ask("--store", store, "ns", "create", "a") == {"schema": 1, "ns": "a"}
    ask("--store", store, "ns", "create", "a/b")
    assert call("--store", store, "ns", "create", "x/y").code == 10
    ask("--store", store, "backup", f"tree.pxar:{source}", "--id", "tester", "--ns", "a", "--time", "1700000000")
    assert ask("--store", store, "ns", "list")["items"] == [
        {"ns": "", "groups": 1, "snapshots": 1},
        {"ns": "a", "groups": 1, "snapshots": 1},
        {"ns": "a/b", "groups": 0, "snapshots": 0},
    ]
    assert [item["ns"] for item in ask("--store", store, "ns", "list", "--max-depth", "1")["items"]] == ["", "a"]
    assert [item["ns"] for item in ask("--store", store, "ns", "list", "a")["items"]] == ["a", "a/b"]
    assert [line.split()[0] for line in call("--store", store, "ns", "list").lines] == ["namespace", "a", "a/b"]
    planned = ask("--store", store, "ns", "move", "a", "c", "--dry-run")
    assert planned.keys() == {"schema", "ns", "target", "dry_run", "items"}
    moved = {"group": "ns/a/host/tester", "target": "ns/c/host/tester", "snapshots": 1, "action": "move"}
    assert planned["items"] == [moved | {"problem": None}]
    assert ask("--store", store, "ns", "move", "a", "c")["items"] == planned["items"]
    assert snapshots(store) == [SNAPSHOT, f"ns/c/{SNAPSHOT}"]
    done = call("--store", store, "ns", "delete", "c", "--json")
    assert done.code == 2 and "has 1 groups" in done.error["message"]
    ask("--store", store, "protect", f"ns/c/{SNAPSHOT}")
    done = call("--store", store, "ns", "delete", "c", "--delete-groups", "--json")
    assert done.code == 14 and done.document["removed_namespaces"] == ["c/b"]
    ask("--store", store, "protect", "--off", f"ns/c/{SNAPSHOT}")
    assert ask("--store", store, "ns", "delete", "c", "--delete-groups", "--dry-run")["removed"] == []
    document = ask("--store", store, "ns", "delete", "c", "--delete-groups")
    assert document.keys() == DOCUMENT | {"removed_namespaces"}
    assert (document["removed"], document["removed_namespaces"]) == ([f"ns/c/{SNAPSHOT}"], ["c"])
    assert snapshots(store) == [SNAPSHOT]


def test_groups_that_cannot_be_merged_are_told(store: Path, source: Path) -> None:
    for namespace in ("a", "b"):
        ask("--store", store, "backup", f"tree.pxar:{source}", "--id", "x", "--ns", namespace, "--time", "1700000000")
    done = call("--store", store, "ns", "move", "a", "b", "--json")
    assert done.code == 14 and "not older" in done.document["items"][0]["problem"]
    assert done.document["error"]["code"] == "skipped"
    assert call("--store", store, "ns", "move", "a", "b").code == 14
    assert len(snapshots(store)) == 3


def test_quiet(five: Path) -> None:
    for arguments in (
        ("protect", "latest"),
        ("note", "latest", "x"),
        ("owner", GROUP, "joe@pbs"),
        ("ns", "create", "a"),
        ("ns", "delete", "a"),
        ("prune",),
    ):
        done = call("--store", five, *arguments, "-q")
        assert (done.code, done.raw, done.err) == (0, b"", ""), arguments
