"""What is left of a store gives back what it can: index files and chunks, without a manifest."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from archiver.browse.snapshot import Snapshot
from archiver.store.store import Store
from formats.crypt import CryptConfig
from tests.cli.command import call
from tests.golden_store import write_key
from tests.hostile.build import hostile_indexes
from tests.stores import KEY, chunk_files, command, make_store, save


def saved(tmp_path: Path, crypt: CryptConfig | None) -> tuple[Path, Path, bytes]:
    """(store, a copy of the payload's index, the payload stream); nothing else is left of the snapshot."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(random.Random(1).randbytes(900_000))
    path = make_store(tmp_path / "store")
    ref = save(path, source, crypt=crypt).snapshot
    with Store.open(path) as store:
        snapshot = Snapshot(store, ref, crypt)
        file = snapshot.archive(None).files[1]
        stream = b"".join(bytes(piece) for piece in snapshot.stream(file).pieces(0, file.size))
        index = Path(store.layout.snapshot(ref)) / file.filename
        kept = tmp_path / "kept.didx"
        kept.write_bytes(index.read_bytes())
        for other in index.parent.iterdir():
            other.unlink()
    return path, kept, stream


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
def test_index(tmp_path: Path, crypt: CryptConfig | None) -> None:
    path, index, stream = saved(tmp_path, crypt)
    key: list[str | Path] = ["--keyfile", write_key(tmp_path / "key", bytes(range(32)))] if crypt else []
    words: list[str | Path] = ["debug", "recover", index, tmp_path / "out", "--chunks", path / ".chunks", "--json"]
    if crypt:
        refused = call(*words)
        assert refused.code == 12 and not (tmp_path / "out").exists()
        other = write_key(tmp_path / "other", bytes(range(1, 33)))
        for fill in ((), ("--zero-fill",)):  # which would make zeros of it all
            refused = call(*words, "--keyfile", other, *fill)
            assert refused.code == 12 and not (tmp_path / "out").exists()
    done = call(*words, *key)
    assert (done.code, done.document["size"], done.document["items"]) == (0, len(stream), [])
    assert (tmp_path / "out").read_bytes() == stream
    taken = call(*words, *key)
    assert taken.code == 2 and "exists already" in taken.error["message"]


def test_lost_chunks(tmp_path: Path) -> None:
    path, index, stream = saved(tmp_path, None)
    shown = json.loads(call("debug", "inspect", index, "--json").out)
    chunks = shown["chunks"]
    missing, damaged = chunks[1]["digest"], chunks[3]["digest"]
    files = {file.name: file for file in chunk_files(path)}
    files[missing].unlink()
    files[damaged].write_bytes(files[damaged].read_bytes()[:-5])
    words: list[str | Path] = ["--store", path, "debug", "recover", index, tmp_path / "out", "--json"]
    refused = call(*words)
    assert refused.code == 20 and missing in refused.error["message"] and not (tmp_path / "out").exists()
    done = call(*words, "--zero-fill")
    assert done.code == 20 and done.document["lost_chunks"] == 2
    expected = bytearray(stream)
    for gap, digest in zip(done.document["items"], (missing, damaged), strict=True):
        assert gap["chunk"] == digest
        expected[gap["start"] : gap["end"]] = bytes(gap["end"] - gap["start"])
    assert done.document["lost_bytes"] == sum(gap["end"] - gap["start"] for gap in done.document["items"])
    assert (tmp_path / "out").read_bytes() == expected
    piped = subprocess.run(
        command("--store", path, "debug", "recover", index, "-", "--zero-fill"), capture_output=True, check=False
    )
    assert piped.returncode == 20 and piped.stdout == expected


def test_chunks(tmp_path: Path) -> None:
    path, index, stream = saved(tmp_path, None)
    digests = [chunk["digest"] for chunk in json.loads(call("debug", "inspect", index, "--json").out)["chunks"]]
    done = call("--store", path, "debug", "recover-chunks", *digests, tmp_path / "out", "--json")
    assert done.code == 0 and (tmp_path / "out").read_bytes() == stream
    for wrong, code in ((["0" * 64], 20), (["text"], 2), ([digests[0][:-2]], 2)):
        done = call("--store", path, "debug", "recover-chunks", *wrong, tmp_path / "none", "--json")
        assert done.code == code and not (tmp_path / "none").exists()
    other = next(file for file in chunk_files(path) if file.name == digests[0])
    os.replace(next(file for file in chunk_files(path) if file.name == digests[1]), other)
    done = call("--store", path, "debug", "recover-chunks", digests[0], tmp_path / "none", "--json")
    assert done.code == 20 and "another digest" in done.error["message"]


def test_wrong_places(tmp_path: Path) -> None:
    path, index, _ = saved(tmp_path, None)
    (tmp_path / "no").mkdir()
    done = call("debug", "recover", index, tmp_path / "out", "--chunks", tmp_path / "no", "--json")
    assert done.code == 2 and ".chunks" in done.error["hint"]
    done = call("--store", path, "debug", "recover", chunk_files(path)[0], tmp_path / "out", "--json")
    assert done.code == 20 and "didx" in done.error["hint"]
    done = call("--store", path, "debug", "recover", index, "-", "--json")
    assert done.code == 2


def test_hostile_indexes(tmp_path: Path) -> None:
    """Also one whose chunks would be larger than any: no exabytes of zeros, and no bug."""
    path = make_store(tmp_path / "store")
    index, target = tmp_path / "x.didx", tmp_path / "out"
    names = ("didx one chunk of 2^64-1 bytes", "didx one chunk of 2^63 bytes", "fidx size and chunk size 2^63")
    for name in names:
        index.write_bytes(hostile_indexes()[name].data)
        done = call("--store", path, "debug", "recover", index, target, "--zero-fill", "--json")
        assert done.code == 20 and "larger than chunks can be" in done.error["message"], name
        assert not target.exists()
