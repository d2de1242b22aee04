"""Where the golden data is, and the bytes behind its content generators (golden/README.md, "Content generators")."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"


def content(obj: Mapping[str, Any]) -> bytes:
    """The bytes that ``obj`` ({"gen": ..., ...}) stands for; KeyError for an unknown generator."""
    return _GENERATORS[obj["gen"]](obj)


def _concat(obj: Mapping[str, Any]) -> bytes:
    return b"".join(content(part) for part in obj["parts"])


def _hex(obj: Mapping[str, Any]) -> bytes:
    data = bytes.fromhex(obj["hex"])
    assert len(data) == obj["len"], obj
    return data


def _repeat(obj: Mapping[str, Any]) -> bytes:
    text: bytes = obj["text"].encode()
    length: int = obj["len"]
    return (text * (length // len(text) + 1))[:length]


def _sha256ctr(obj: Mapping[str, Any]) -> bytes:
    seed, length = obj["seed"].encode(), obj["len"]
    blocks = (hashlib.sha256(seed + i.to_bytes(8, "little")).digest() for i in range((length + 31) // 32))
    return b"".join(blocks)[:length]


def _u32le_counter(obj: Mapping[str, Any]) -> bytes:
    length: int = obj["len"]
    return np.arange((length + 3) // 4, dtype="<u4").tobytes()[:length]


_GENERATORS: dict[str, Callable[[Mapping[str, Any]], bytes]] = {
    "concat": _concat,
    "hex": _hex,
    "repeat": _repeat,
    "sha256ctr": _sha256ctr,
    "u32le-counter": _u32le_counter,
    "zero": lambda obj: bytes(obj["len"]),
}
