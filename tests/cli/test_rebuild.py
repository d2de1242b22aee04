"""What keeps house says the same before and after the database was made anew (DESIGN.md 2, P3)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from archiver.store.layout import GroupRef
from tests.cli.command import ask, call
from tests.random_trees import build_plain, mutate
from tests.stores import KEY, chunk_files, make_store, save

VOLATILE = {"duration_s", "all_shards", "reason", "estimate"}
SEEN_BY_LISTING = {"kept_chunks", "kept_bytes", "missing_chunks"}  # gc looks at files that it keeps when it must


def settled(document: Any) -> Any:
    """Without times, and how the answer was found."""
    if isinstance(document, dict):
        return {name: settled(value) for name, value in document.items() if name not in VOLATILE | SEEN_BY_LISTING}
    return [settled(item) for item in document] if isinstance(document, list) else document


@pytest.mark.parametrize("how", ["rebuild", "lost"])
def test_the_same_answers(tmp_path: Path, how: str) -> None:
    path, other, tree = make_store(tmp_path / "store"), make_store(tmp_path / "other"), tmp_path / "tree"
    build_plain(tree, 1, files=40, max_size=150_000)
    for night in range(6):
        group = GroupRef("", "host", ("one", "two")[night % 2])
        crypt = KEY if night % 3 == 2 else None
        save(path, tree, group=group, time=1_700_000_000 + night * 86_400, mode="metadata", crypt=crypt)
        mutate(tree, night, 6)
    ask("--store", path, "forget", "host/one/2023-11-16T22:13:20Z")  # its chunks are used by nobody
    ask("sync", path, other, "--group", "group:host/two")
    missing, bad = sorted(chunk_files(path))[3:5]
    missing.unlink()
    bad.write_bytes(bad.read_bytes()[:-1] + b"\0")

    def answers() -> list[tuple[int, Any]]:
        questions: list[tuple[str | Path, ...]] = [
            ("--store", path, "verify", "--read-only"),
            ("--store", path, "prune", "--keep-last", "2", "--dry-run"),
            ("--store", path, "gc", "--dry-run", "--immediate"),
            ("sync", path, other, "--dry-run"),
            ("sync", path, other, "--check"),
            ("--store", path, "snapshots"),
        ]
        found = [call(*question, "--json") for question in questions]
        return [(done.code, settled(done.document)) for done in found]

    answers()  # some of what a verification finds is known afterwards
    before = answers()
    assert {code for code, _ in before} >= {0, 20} and before[0][1]["errors"]
    assert before[2][1]["removed_chunks"] > 0 and before[1][1]["items"]
    if how == "rebuild":
        ask("--store", path, "db", "rebuild")
    else:
        shutil.rmtree(path / ".archiver/db")
    for (code, now), (code_then, then) in zip(answers(), before, strict=True):
        assert {name: value for name, value in now.items() if value != then[name]} == {}
        assert code == code_then
