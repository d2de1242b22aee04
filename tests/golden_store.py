"""The golden datastore for tests: unpacked, its key, and what each of its archives holds (golden/README.md)."""

from __future__ import annotations

import base64
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from formats.crypt import CryptConfig
from tests.attributes import GROUP, GROUP_OBJ, MASK, NO_ID, OTHER, USER, USER_OBJ, acl_value
from tests.formats.pxar.listings import Listed, bytes_of
from tests.golden_data import GOLDEN

DATASTORE = json.loads((GOLDEN / "datastore.json").read_text())
KEY = CryptConfig(bytes.fromhex(DATASTORE["key"]))
FINGERPRINT = KEY.fingerprint.hex(":")
PLAIN = (
    "host/alpha/2023-11-14T22:13:20Z",
    "host/alpha/2023-11-15T22:13:20Z",
    "host/alpha/2023-11-16T22:13:20Z",
    "host/features/2023-11-14T22:13:31Z",
    "host/signed/2023-11-14T22:13:29Z",
    "vm/100/2023-11-14T22:13:25Z",
)
ENCRYPTED = ("ns/one/ct/200/2023-11-14T22:13:27Z", "ns/one/ns/two/ct/200/2023-11-14T22:25:00Z")
TREES: dict[str, str] = {
    name.rsplit("/", 1)[0]: name for name in DATASTORE["archives"]
}  # snapshot -> index of its tree

# chattr bits that archives keep and a restore sets: bit in the archive -> bit of the kernel
_CHATTR = {0x10000: 0x20, 0x20000: 0x80, 0x200000: 0x10000, 0x400000: 0x10, 0x800000: 0x8}


def unpack(directory: Path) -> Path:
    """A fresh copy of the datastore."""
    with tarfile.open(GOLDEN / "datastore.tar") as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(directory, filter="data")
        else:  # Python 3.11.2
            tar.extractall(directory)
    return directory / "datastore"


def write_key(path: Path, key: bytes = bytes.fromhex(DATASTORE["key"])) -> Path:
    """A key file without a passphrase."""
    when = "2023-11-14T22:13:20+00:00"
    fields = {"kdf": None, "created": when, "modified": when, "data": base64.b64encode(key).decode()}
    path.write_text(json.dumps(fields))
    return path


def listing(snapshot: str) -> list[Listed]:
    """What the tree of ``snapshot`` holds, in stream order."""
    found = DATASTORE["archives"][TREES[snapshot]]
    if isinstance(found, str):
        found = json.loads((GOLDEN / found.removeprefix("same entries and contents as ")).read_text())
    items: list[Listed] = found
    return [item for item in items if item["kind"] not in ("version", "prelude")]


def expected(items: Iterable[Listed]) -> dict[str, dict[str, Any]]:
    """A listing as tests.compare describes a directory tree, without what a listing does not tell."""
    tree: dict[str, dict[str, Any]] = {}
    for item in items:
        key = bytes_of(item, "path")[1:].hex()
        if item["kind"] == "hardlink":
            target = bytes_of(item, "target").hex()
            tree[key] = tree[target]
            tree[target]["link"] = target
            continue
        has_target = "target" in item or "target_hex" in item
        flags = sum(kernel for bit, kernel in _CHATTR.items() if item["flags"] & bit)
        tree[key] = {
            "mode": item["mode"],
            "uid": item["uid"],
            "gid": item["gid"],
            "mtime_ns": item["mtime_secs"] * 1_000_000_000 + item["mtime_nanos"],
            "target": bytes_of(item, "target").hex() if has_target else None,
            "rdev": [item["major"], item["minor"]] if "major" in item else None,
            "xattrs": _xattrs(item),
            "flags": flags,
            "link": None,
        }
    return tree


def _xattrs(item: Listed) -> dict[str, str]:
    values = {entry["name"]: entry["value_hex"] for entry in item.get("xattrs", ())}
    if "fcaps_hex" in item:
        values["security.capability"] = item["fcaps_hex"]
    acl = item.get("acl", {})
    if "group_obj" in acl:
        mode = item["mode"]
        base = {"user_obj": mode >> 6 & 7, "group_obj": acl["group_obj"], "mask": mode >> 3 & 7, "other": mode & 7}
        values["system.posix_acl_access"] = _acl(base, acl.get("users", ()), acl.get("groups", ()))
    if "default" in acl:
        lists = acl.get("default_users", ()), acl.get("default_groups", ())
        values["system.posix_acl_default"] = _acl(acl["default"], *lists)
    return {name.encode().hex(): value for name, value in values.items()}


def _acl(base: dict[str, Any], users: Iterable[list[int]], groups: Iterable[list[int]]) -> str:
    entries = [(USER_OBJ, base["user_obj"], NO_ID)]
    entries += [(USER, permissions, number) for number, permissions in users]
    entries += [(GROUP_OBJ, base["group_obj"], NO_ID)]
    entries += [(GROUP, permissions, number) for number, permissions in groups]
    if base["mask"] is not None:
        entries += [(MASK, base["mask"], NO_ID)]
    return acl_value(*entries, (OTHER, base["other"], NO_ID)).hex()
