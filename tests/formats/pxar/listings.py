"""The listings of golden/pxar: what readers must give, what the encoder is fed with; streams in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from formats.pxar.accessor import Accessor
from formats.pxar.decoder import Decoder, LeaveDirectory
from formats.pxar.encoder import Encoder
from formats.pxar.items import Entry
from formats.pxar.metadata import ACL_UNSET, NO_ACL, Acl, DefaultAcl, Metadata, Stat
from tests.golden_data import GOLDEN, content

Listed = dict[str, Any]

TREES = ("empty-root", "exclude", "features", "plain", "synth")
MOST_AT_ONCE = 20 << 20  # no reader may ask for more in one go, whatever the archive says


class Memory:
    """A stream for the Decoder."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def read(self, length: int, /) -> bytes:
        assert 0 <= length <= MOST_AT_ONCE
        piece = self.data[self.position : self.position + length]
        self.position += len(piece)
        return piece

    def skip(self, length: int, /) -> None:
        assert 0 <= length < 2**64
        self.position += length


def accessor(archive: bytes, payload: bytes | None = None) -> Accessor:
    def reader(data: bytes) -> Any:
        def read_at(offset: int, length: int) -> bytes:
            assert offset >= 0 and 0 < length <= MOST_AT_ONCE and offset + length <= len(data)
            return data[offset : offset + length]

        return read_at

    if payload is None:
        return Accessor(reader(archive), len(archive))
    return Accessor(reader(archive), len(archive), reader(payload), len(payload))


def load(name: str) -> tuple[bytes, bytes | None, list[Listed]]:
    """(archive, payload stream, listing) of ``features.v1`` and the like."""
    tree, version = name.rsplit(".", 1)
    directory = GOLDEN / "pxar"
    listing = json.loads((directory / f"{name}.json").read_text())
    if version == "v1":
        return (directory / f"{tree}.pxar").read_bytes(), None, listing
    return (directory / f"{tree}.mpxar").read_bytes(), (directory / f"{tree}.ppxar").read_bytes(), listing


def golden_names(*, legacy: bool = False) -> list[str]:
    names = [f"{tree}.{version}" for tree in TREES for version in ("v1", "v2")]
    return [*names, "legacy-entry-v1.v1"] if legacy else names


def entries_only(listing: Iterable[Listed]) -> list[Listed]:
    """The listing without version and prelude, contents replaced by nothing (their sha256 stays)."""
    return [
        {key: value for key, value in item.items() if key != "content"}
        for item in listing
        if item["kind"] not in ("version", "prelude")
    ]


def prelude_of(listing: Iterable[Listed]) -> bytes | None:
    for item in listing:
        if item["kind"] == "prelude":
            return bytes(item["data"].encode())
    return None


# -- what readers give, as listings ------------------------------------------------------------------------------------


def decoded(archive: bytes, payload: bytes | None, *, piece: int = 1 << 20, fresh: bool = True) -> list[Listed]:
    """The listing by sequential reading, contents read ``piece`` bytes at a time.

    ``fresh``: contents of version 2 count in ``entry_end``, as in the goodbye table of an archive without reuse.
    """
    decoder = Decoder(Memory(archive), None if payload is None else Memory(payload))
    listing: list[Listed] = []
    open_directories: list[tuple[Listed, bytes]] = []
    for event in decoder:
        if isinstance(event, LeaveDirectory):
            item, _ = open_directories.pop()
            if item["path"] != "/":
                item["entry_end"] = decoder.position
            continue
        parent = open_directories[-1][1] if open_directories else b""
        path = parent.rstrip(b"/") + b"/" + event.name
        item = describe(event, path)
        if event.kind == "file":
            data = b""
            while more := decoder.read_content(piece):
                assert len(more) <= piece
                data += more
            assert decoder.read_content(1) == b""
            assert len(data) == event.size
            item["sha256"] = hashlib.sha256(data).hexdigest()
            if event.payload_offset is not None:
                item["offset"] = event.entry_end - 16
                item["entry_end"] += event.size if fresh else 0
        if event.kind == "dir":
            open_directories.append((item, path))
        else:
            assert decoder.position == event.entry_end
        assert event.depth == (0 if path == b"/" else path.count(b"/"))
        listing.append(item)
    assert not open_directories
    return listing


def accessed(archive: bytes, payload: bytes | None) -> list[Listed]:
    """The listing through the goodbye tables."""
    access = accessor(archive, payload)
    streams = {"archive": archive, "payload": payload}
    listing = []
    stack: list[tuple[bytes, Iterator[Entry]]] = [(b"", iter([access.root]))]
    while stack:
        parent, nodes = stack[-1]
        node = next(nodes, None)
        if node is None:
            stack.pop()
            continue
        path = parent + b"/" + node.name
        item = describe(node, path)
        if node.kind == "file":
            name, offset, size = access.content(node)
            stream = streams[name]
            assert stream is not None
            item["sha256"] = hashlib.sha256(stream[offset : offset + size]).hexdigest()
            if node.payload_offset is not None:
                true_end = archive.index(node.payload_offset.to_bytes(8, "little"), node.entry_start + 56)
                item["offset"] = true_end
        if node.kind == "dir":
            stack.append((path.rstrip(b"/"), access.entries(node)))
        listing.append(item)
    return listing


def describe(entry: Entry, path: bytes) -> Listed:
    """An entry in the form of the listings."""
    item: Listed = {"kind": entry.kind, **_text("path", path)}
    if path != b"/":
        item |= {
            "filename_offset": entry.filename_offset,
            "entry_start": entry.entry_start,
            "entry_end": entry.entry_end,
        }
    if entry.kind == "hardlink":
        assert entry.metadata is None
        return item | _text("target", entry.target) | {"link_offset": entry.link_offset}
    assert entry.metadata is not None
    item |= _describe_metadata(entry.metadata)
    if entry.kind == "symlink":
        item |= _text("target", entry.target)
    elif entry.kind in ("char", "block"):
        item |= {"major": entry.major, "minor": entry.minor}
    elif entry.kind == "file":
        item |= {"size": entry.size, "payload_offset": entry.payload_offset, "offset": entry.content_offset}
    return item


def _describe_metadata(metadata: Metadata) -> Listed:
    item: Listed = dict(metadata.stat._asdict())
    if metadata.xattrs:
        item["xattrs"] = [{"name": name.decode(), "value_hex": value.hex()} for name, value in metadata.xattrs]
    acl = metadata.acl
    if acl != NO_ACL:
        lists = {key: getattr(acl, key) for key in ("users", "groups", "default_users", "default_groups")}
        item["acl"] = {key: [list(pair) for pair in pairs] for key, pairs in lists.items() if pairs}
        if acl.group_obj is not None:
            item["acl"]["group_obj"] = acl.group_obj
        if acl.default is not None:
            base = acl.default._asdict()
            item["acl"]["default"] = {key: None if value == ACL_UNSET else value for key, value in base.items()}
    if metadata.fcaps is not None:
        item["fcaps_hex"] = metadata.fcaps.hex()
    if metadata.quota_project_id is not None:
        item["quota_project_id"] = metadata.quota_project_id
    return item


def _text(key: str, value: bytes) -> Listed:
    try:
        return {key: value.decode()}
    except UnicodeDecodeError:
        return {f"{key}_hex": value.hex()}


# -- listings into archives --------------------------------------------------------------------------------------------


def bytes_of(item: Mapping[str, Any], key: str) -> bytes:
    return item[key].encode() if key in item else bytes.fromhex(item[f"{key}_hex"])


def metadata_of(item: Mapping[str, Any]) -> Metadata:
    acl = NO_ACL
    if "acl" in item:
        parts = item["acl"]
        base = parts.get("default")
        acl = Acl(
            users=_pairs(parts, "users"),
            groups=_pairs(parts, "groups"),
            group_obj=parts.get("group_obj"),
            default=base and DefaultAcl(**{key: ACL_UNSET if v is None else v for key, v in base.items()}),
            default_users=_pairs(parts, "default_users"),
            default_groups=_pairs(parts, "default_groups"),
        )
    return Metadata(
        Stat(*(item[key] for key in Stat._fields)),
        tuple((x["name"].encode(), bytes.fromhex(x["value_hex"])) for x in item.get("xattrs", ())),
        acl,
        bytes.fromhex(item["fcaps_hex"]) if "fcaps_hex" in item else None,
        item.get("quota_project_id"),
    )


def _pairs(parts: Mapping[str, Any], key: str) -> tuple[tuple[int, int], ...]:
    return tuple((owner, permissions) for owner, permissions in parts.get(key, ()))


def encode(listing: Iterable[Listed], *, split: bool) -> tuple[bytes, bytes | None]:
    """The archive (and payload stream) of a listing's entries, contents from their generators.

    A version 2 file whose ``entry_end`` does not count its contents becomes a reference into injected data of zeros.
    """
    listing = list(listing)
    archive, payload = bytearray(), bytearray()
    encoder = Encoder(archive.extend, payload.extend if split else None, prelude=prelude_of(listing))
    positions: dict[bytes, int] = {}
    depth = 0
    for item in listing:
        if item["kind"] in ("version", "prelude"):
            continue
        path = bytes_of(item, "path")
        if path == b"/":
            encoder.start_root(metadata_of(item))
            continue
        parent, name = path.rsplit(b"/", 1)
        while depth > parent.count(b"/"):
            encoder.end_directory()
            depth -= 1
        if item["kind"] == "dir":
            depth += 1
            positions[path[1:]] = encoder.start_directory(name, metadata_of(item))
        elif item["kind"] == "file":
            add = _add_split if split else _add_whole
            positions[path[1:]] = add(encoder, name, item, payload if split else archive)
        else:
            positions[path[1:]] = _add_other(encoder, name, item, positions)
    while depth >= 0:
        encoder.end_directory()
        depth -= 1
    encoder.finish()
    assert encoder.position == len(archive) and encoder.payload_position == len(payload)
    return bytes(archive), bytes(payload) if split else None


def _add_whole(encoder: Encoder, name: bytes, item: Listed, stream: bytearray) -> int:
    place = encoder.start_file(name, metadata_of(item), item["size"])
    stream += content(item["content"])
    encoder.advance(item["size"])
    return place


def _add_split(encoder: Encoder, name: bytes, item: Listed, stream: bytearray) -> int:
    size, reference = item["size"], item["payload_offset"]
    gap = reference - encoder.payload_position
    if gap:
        stream += bytes(gap)
        encoder.inject(gap)
    if size and item["entry_end"] - 16 == item["offset"]:
        place = encoder.add_reference(name, metadata_of(item), size, reference)
        stream += bytes(16 + size)
        encoder.inject(16 + size)
        return place
    assert encoder.start_payload(size) == reference
    stream += content(item["content"])
    encoder.advance(size // 2)
    encoder.advance(size - size // 2)
    return encoder.add_file(name, metadata_of(item), size, reference)


def _add_other(encoder: Encoder, name: bytes, item: Listed, positions: Mapping[bytes, int]) -> int:
    if item["kind"] == "hardlink":
        target = bytes_of(item, "target")
        return encoder.add_hardlink(name, target, positions[target])
    metadata = metadata_of(item)
    if item["kind"] == "symlink":
        return encoder.add_symlink(name, metadata, bytes_of(item, "target"))
    if item["kind"] in ("char", "block"):
        return encoder.add_device(name, metadata, item["major"], item["minor"])
    return encoder.add_special(name, metadata)
