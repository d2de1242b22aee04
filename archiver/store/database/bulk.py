"""Many records of a table at once, as arrays: a fraction of a microsecond each, and no object of each is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1 << 14  # records

# Keys and values of records.py; of fixed length, so the zeros that such strings may end in count.
U32_KEYS = np.dtype(">u4")
DIGEST_KEYS = np.dtype("S32")
DIGEST_VALUES = np.dtype([("number", "<u4"), ("stored", "<u4")])
CHUNK_VALUES = np.dtype([("digest", "S32"), ("blake3", "S32"), ("size", "<u4"), ("verified", "<u4")])

Records = NDArray[Any]
Numbers = NDArray[np.uint32]  # of chunks


def scan(txn: Any, table: Any, key: np.dtype[Any], value: np.dtype[Any]) -> Iterator[tuple[Records, Records]]:
    """Keys and values of a whole table in the order of its keys, some thousands at a time.

    Raises ValueError for records of another length than ``key`` and ``value`` have.
    """
    keys = txn.cursor(db=table).iternext(values=False)
    values = txn.cursor(db=table).iternext(keys=False)
    while part := list(islice(keys, _AT_ONCE)):
        yield _array(part, key), _array(list(islice(values, _AT_ONCE)), value)


def values(txn: Any, table: Any, value: np.dtype[Any]) -> Iterator[Records]:
    """The same without the keys."""
    found = txn.cursor(db=table).iternext(keys=False)
    while part := list(islice(found, _AT_ONCE)):
        yield _array(part, value)


def fetch(txn: Any, table: Any, keys: Records, value: np.dtype[Any], missing: bytes) -> Records:
    """The value of each of ``keys``, best in their order; ``missing`` where there is none. ValueError as above."""
    get = partial(txn.get, default=missing, db=table)
    plain = keys.view(f"V{keys.itemsize}")  # bytes that end in zeros are cut in any other form
    found = np.empty(len(keys), value)
    for start in range(0, len(keys), _AT_ONCE):
        part = plain[start : start + _AT_ONCE].tolist()
        found[start : start + len(part)] = _array(list(map(get, part)), value)
    return found


def _array(parts: Sequence[bytes], kind: np.dtype[Any]) -> Records:
    data = b"".join(parts)
    if len(data) != len(parts) * kind.itemsize:
        raise ValueError("records of another length than was written")
    return np.frombuffer(data, kind)
