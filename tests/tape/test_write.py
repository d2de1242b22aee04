"""What a backup puts onto media: byte for byte as the reference implementation did, and at the end of a medium."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from archiver.tape.write.plan import WriteOptions
from formats.tape.catalog import decode_catalog
from formats.tape.content import decode_uuid, read_content
from formats.tape.labels import MediaSetLabel
from tests.formats.tape.media import SETS, document, files, logs, reader
from tests.formats.tape.test_tape import described
from tests.golden_store import unpack
from tests.stores import SetClock
from tests.tape.restoring import snapshots_of
from tests.tape.writing import Library


def golden_store(name: str, place: Path) -> Path:
    """The golden store as it was when the golden media were written: chunk files in their order, times, owners."""
    store = unpack(place)
    (store / ".archiver").mkdir()
    identity = '{"schema": 1, "uuid": "00112233-4455-6677-8899-aabbccddeeff", "name": "golden"}'
    (store / ".archiver/store.json").write_text(identity)
    chunks = [chunk["digest"] for said in document(name)["dump"] for chunk in said.get("chunks", ())]
    kept = [(store / ".chunks" / digest[:4] / digest) for digest in chunks]
    fresh = [store / f".chunks/fresh-{number}" for number in range(len(kept))]
    for path in fresh:
        path.touch()
    for path, new in zip(kept, sorted(fresh, key=lambda path: path.stat().st_ino), strict=True):
        new.write_bytes(path.read_bytes())
        new.rename(path)
    for said in document(name)["dump"]:
        for entry in said.get("pxar", ())[1:]:
            path = store / said["header"]["snapshot"] / entry["path"].strip("/")
            os.chmod(path, entry["mode"] & 0o7777)
            os.chown(path, entry["uid"], entry["gid"])
            when = entry["mtime_secs"] * 10**9 + entry["mtime_nanos"]
            os.utime(path, ns=(when, when))
    return store


class Given:
    """Random bytes that are known: the uuids of the golden files, in the order in which they are made."""

    def __init__(self, uuids: list[str]) -> None:
        self._left = [decode_uuid(text, "uuid") for text in uuids]

    def __call__(self, count: int) -> bytes:
        if count != 16:
            return bytes(count)
        return self._left.pop(0)


@pytest.mark.parametrize("name", SETS)
def test_as_the_reference_wrote(name: str, tmp_path: Path) -> None:
    """The same store, uuids and times: the same bytes in every archive, the same catalogs."""
    store, said = golden_store(name, tmp_path), document(name)
    spec, dump = said["spec"], said["dump"]
    labels = list(dict.fromkeys(each["label"] for each in dump))
    media = [next(each["header"] for each in dump if each["label"] == label) for label in labels]
    (now,) = {each["ctime"] for each in dump}
    library = Library(tmp_path / "library", spec.get("max_size"), clock=SetClock(now))
    library.label(*labels, uuids=[decode_uuid(head["uuid"], "uuid") for head in media])
    library.random = Given([dump[1]["header"]["uuid"], *(each["uuid"] for each in dump if each["file"])])
    done = library.backup(
        store,
        options=WriteOptions(max_depth=None if spec.get("ns_magic") else 0),
        snapshots=snapshots_of(name),
    )
    assert done.result.errors == [] and done.result.media == labels and done.result.adopted == 0
    for label in labels:
        golden = [file.data for file in files(name) if file.label == label]
        written = library.files(label)
        assert [len(file) for file in written] == [len(file) for file in golden]
        assert list(map(without_padding, written[2:])) == list(map(without_padding, golden[2:]))
        assert set_label(written[1]) == set_label(golden[1])
    catalogs = {decode_catalog(data).media: described(decode_catalog(data)) for data in library.logs().values()}
    for data in logs(name).values():
        assert catalogs[decode_catalog(data).media] == described(decode_catalog(data))


def without_padding(data: bytes) -> object:
    """Records of catalogs have some, with rubbish in it."""
    stream = reader(data)
    content = read_content(stream.read)
    return data if content.kind != "catalog archive" else (content, described(decode_catalog(stream.read(1 << 30))))


def set_label(data: bytes) -> tuple[bytes, MediaSetLabel]:
    """But for its time."""
    content = read_content(reader(data).read)
    return content.uuid, replace(MediaSetLabel.decode(content), time=0, pool="")
