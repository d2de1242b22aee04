"""Archives that were made elsewhere become snapshots, byte for byte, and come out again."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from archiver.browse.snapshot import Snapshot
from archiver.store.store import Store
from tests.cli.command import Argument, Done, ask, call
from tests.compare import differences
from tests.golden_store import write_key
from tests.stores import make_store

GOLDEN = Path(__file__).parent.parent / "golden/pxar"
NAMES = ("features", "synth", "plain", "exclude", "empty-root")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store")


def imported(store: Path, *words: Argument) -> Done:
    return call("--store", store, "import", *words, "--json")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_key", [False, True], ids=["plain", "encrypted"])
def test_one_stream(store: Path, tmp_path: Path, name: str, with_key: bool) -> None:
    key: list[Argument] = ["--keyfile", write_key(tmp_path / "key", bytes(range(32)))] if with_key else []
    done = imported(store, GOLDEN / f"{name}.pxar", *key, "--chunk-size", "64")
    assert done.code == 0
    files = sorted(archive["name"] for archive in done.document["archives"])
    assert files == ["catalog.pcat1", f"{name}.pxar"]
    ask("--store", store, "restore", "latest", tmp_path / "out", "--format", "pxar", *key)
    assert (tmp_path / "out").read_bytes() == (GOLDEN / f"{name}.pxar").read_bytes()
    assert ask("--store", store, "verify", *key)["errors"] == []


@pytest.mark.parametrize("name", NAMES)
def test_pair(store: Path, tmp_path: Path, name: str) -> None:
    done = imported(store, GOLDEN / f"{name}.mpxar", "--name", "other", "--chunk-size", "64", "--id", "elsewhere")
    assert done.code == 0 and done.document["snapshot"].startswith("host/elsewhere/")
    with Store.open(store) as opened:
        snapshot = Snapshot(opened, opened.find("latest"))
        archive = snapshot.archive("other.pxar")
        for file, kind in zip(archive.files, ("mpxar", "ppxar"), strict=True):
            stream = b"".join(bytes(piece) for piece in snapshot.stream(file).pieces(0, file.size))
            assert stream == (GOLDEN / f"{name}.{kind}").read_bytes()
    listed = json.loads((GOLDEN / f"{name}.v2.json").read_text())
    assert done.document["files"]["total"] == sum(entry["kind"] == "file" for entry in listed)


def test_the_same_tree_from_both(store: Path, tmp_path: Path) -> None:
    for number, file in enumerate(("features.pxar", "features.mpxar")):
        assert imported(store, GOLDEN / file, "--id", f"group-{number}").code == 0
        done = call("--store", store, "restore", f"host/group-{number}", tmp_path / str(number), "--json")
        assert done.code in (0, 3)
    assert differences(tmp_path / "0", tmp_path / "1") == []


def test_goes_on_from_an_import(store: Path, tmp_path: Path) -> None:
    """The next backup of the group takes over what the import has stored."""
    assert imported(store, GOLDEN / "plain.mpxar", "--id", "laptop").code == 0
    ask("--store", store, "restore", "latest", tmp_path / "plain")
    again = ask("--store", store, "backup", f"plain.pxar:{tmp_path / 'plain'}", "--id", "laptop")
    assert again["files"]["reencoded"] == 0 and again["files"]["unchanged"] == again["files"]["total"] > 0


@pytest.mark.parametrize("file", ["features.pxar", "features.mpxar", "features.ppxar"])
@pytest.mark.parametrize("seed", range(8))
def test_damage(store: Path, tmp_path: Path, file: str, seed: int) -> None:
    """A damaged file is refused, or what it holds is still an archive that restores; no half snapshot is made."""
    rng = random.Random(f"{file} {seed}")
    for name in ("features.pxar", "features.mpxar", "features.ppxar"):
        data = bytearray((GOLDEN / name).read_bytes())
        if name == file:
            if seed % 2:
                del data[rng.randrange(len(data)) :]
            else:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / name).write_bytes(data)
    given = "features.mpxar" if file == "features.ppxar" else file
    done = imported(store, tmp_path / given)
    if done.code:
        assert done.code == 20 and given in done.error["message"]
        assert ask("--store", store, "snapshots")["items"] == []
    else:
        assert seed % 2 == 0 or file == "features.ppxar"
        assert call("--store", store, "restore", "latest", tmp_path / "out", "--json").code in (0, 3)


def test_wrong_files(store: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.mpxar"
    alone.write_bytes((GOLDEN / "plain.mpxar").read_bytes())
    (tmp_path / "text.pxar").write_text("no archive")
    (tmp_path / "empty.pxar").touch()
    cases: list[tuple[list[Argument], int, str]] = [
        ([alone], 2, "--payload"),
        ([GOLDEN / "plain.pxar", "--payload", GOLDEN / "plain.ppxar"], 2, "--payload"),
        ([GOLDEN / "plain.ppxar"], 20, "no pxar archive"),
        ([tmp_path / "text.pxar"], 20, "no pxar archive"),
        ([tmp_path / "empty.pxar"], 20, "no pxar archive"),
        ([tmp_path], 2, "not a file"),
        ([tmp_path / "none.pxar"], 2, "not a file"),
        ([GOLDEN / "plain.pxar", "--name", "a/b"], 2, "no name"),
    ]
    for words, code, text in cases:
        done = imported(store, *words)
        assert done.code == code, words
        assert text in done.error["message"] + (done.error["hint"] or ""), words
    assert ask("--store", store, "snapshots")["items"] == []
