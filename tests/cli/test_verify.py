"""The command verify: what it is asked, its document, its exit codes, what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ask, call
from tests.random_trees import build_plain
from tests.stores import chunk_files

pytestmark = pytest.mark.in_memory


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two groups, a snapshot each, one in a namespace too."""
    path, source = tmp_path / "store", tmp_path / "source"
    build_plain(source, 1, files=20, max_size=60_000)
    ask("init", path)
    for name in ("a", "b"):
        ask("--store", path, "backup", f"tree.pxar:{source}", "--id", name, "--chunk-size", "64")
    ask("--store", path, "ns", "create", "deep")
    ask("--store", path, "--ns", "deep", "backup", f"tree.pxar:{source}", "--id", "c", "--chunk-size", "64")
    return path


def states(store: Path) -> dict[str, Any]:
    """By group."""
    found = {}
    for namespace in ((), ("--ns", "deep")):
        for item in ask("--store", store, *namespace, "snapshots")["items"]:
            found[item["id"]] = item["verify"] and item["verify"]["state"]
    return found


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        ((), {"a", "b", "c"}),
        (("--ns", "deep"), {"c"}),
        (("--group", "host/a"), {"a"}),
        (("--group", "host/c", "--ns", "deep"), {"c"}),
        (("--group", "ns/deep/host/c"), {"c"}),
        (("host/b",), {"b"}),
        (("--budget", "1h"), {"a", "b", "c"}),
        (("--group", "host/a", "--budget", "1GiB"), {"a"}),
        (("--read-only",), set()),
    ],
)
def test_what_is_verified(store: Path, arguments: tuple[str, ...], chosen: set[str]) -> None:
    document = ask("--store", store, "verify", *arguments)
    assert document["errors"] == []
    assert states(store) == {name: "ok" if name in chosen else None for name in "abc"}
    assert document["snapshots"] == (len(chosen) or 3)


@pytest.mark.parametrize(
    "arguments",
    [
        ("host/a", "--group", "host/a"),
        ("host/a", "--budget", "1h"),
        ("--budget", "much"),
        ("--outdated-after", "-1"),
        ("--group", "host/a/2020-01-01T00:00:00Z"),
    ],
)
def test_usage(store: Path, arguments: tuple[str, ...]) -> None:
    done = call("--store", store, "verify", *arguments)
    assert done.code == 2 and "Traceback" not in done.err


def test_group_that_is_not_there(store: Path) -> None:
    assert call("--store", store, "verify", "--group", "host/x").code == 10


def test_document(store: Path) -> None:
    document = ask("--store", store, "verify", "--budget", "1B")
    assert document.keys() == {
        "schema", "snapshots", "chunks", "bytes", "without_key", "without_sum", "signatures", "unfinished", "skipped",
        "skipped_failed", "busy", "set_aside", "state_not_written", "not_proven", "budget", "error_count", "errors",
    }  # fmt: skip
    budget = document["budget"]
    assert budget.keys() == {"reached_chunks", "reached_bytes", "not_reached_chunks", "not_reached_bytes", "cycle"}
    assert budget["cycle"].keys() == {"began", "left_chunks", "left_bytes", "oldest_verified"}
    assert budget["reached_chunks"] == 1
    assert budget["cycle"]["left_chunks"] == budget["not_reached_chunks"] == len(chunk_files(store)) - 1
    assert ask("--store", store, "verify")["budget"] is None


def test_what_a_budget_did_not_reach_is_told(store: Path) -> None:
    count = len(chunk_files(store))
    said = call("--store", store, "verify", "--budget", "1B")
    assert said.code == 0
    assert "the budget was enough for 1 chunks" in said.out and f"{count - 1}, " in said.out
    assert (
        f"{count - 1} of these" in said.out
        and "left of the cycle" in said.out
        and "the oldest was verified" in said.out
    )
    assert "enough for every chunk" in call("--store", store, "verify", "--budget", "1h").out


def test_damage_is_set_aside_and_mended(store: Path) -> None:
    bad = chunk_files(store)[0]
    bad.write_bytes(b"rot")
    kept = call("--store", store, "verify", "--keep-bad")
    assert kept.code == 20 and bad.exists() and "set aside" not in kept.out
    assert states(store) == dict.fromkeys("abc", "failed")
    assert call("--store", store, "snapshots").out.count("[verify failed]") == 3
    assert call("--store", store, "verify", "--read-only").code == 20 and bad.exists()
    done = call("--store", store, "verify")
    assert done.code == 20 and "1 damaged chunks were set aside" in done.out
    assert not bad.exists() and bad.with_name(f"{bad.name}.0.bad").exists()
    skipped = call("--store", store, "verify", "--skip-verified")
    assert (
        skipped.code == 0
        and "3 snapshots were passed over, they were verified before, 3 of them with damage" in skipped.out
    )
    ask("--store", store, "backup", f"tree.pxar:{store.parent / 'source'}", "--id", "a", "--chunk-size", "64")
    assert call("--store", store, "verify").code == 0
    assert states(store) == dict.fromkeys("abc", "ok")
    assert call("--store", store, "snapshots").out.count("[verified]") == 4


def test_nothing_is_written_to_a_store_that_is_read_only(store: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for path in store.rglob("*")
            if path.is_file() and "db" not in path.relative_to(store).parts
        }

    chunk_files(store)[0].write_bytes(b"rot")
    before = contents()
    assert call("--store", store, "--read-only", "verify").code == 20
    assert call("--store", store, "--read-only", "verify", "--budget", "1h").code == 20
    assert contents() == before


def test_state_in_prune(store: Path) -> None:
    """The newest snapshot that was good is kept, whatever the options say."""
    source = store.parent / "source"
    ask("--store", store, "verify", "--group", "host/a")
    for number in range(2):
        (source / "new").write_bytes(bytes([number]) * 70_000)
        ask("--store", store, "backup", f"tree.pxar:{source}", "--id", "a", "--chunk-size", "64")
    items = ask("--store", store, "prune", "host/a", "--keep-last", "1", "--dry-run")["items"]
    assert [item["keep"] for item in items] == [True, False, True]
    assert "verified" in items[2]["reason"]
