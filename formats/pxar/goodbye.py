"""Goodbye tables: the last item of every directory, an index of its children by name hash (spec pxar.md 7).

Content: a record for each of the n children, then the tail; all fields u64.

    offset  child                                          tail
    0       SipHash-2-4 of the name                        0xef5eed5b753e1555
    8       goodbye start - child's FILENAME               goodbye start - directory's ENTRY
    16      size of the child                              size of this item, 16 + (n + 1) * 24

For the root the tail's distance is the one to position 0, whatever stands there. The size of a child is that of its
items; a regular file of version 2 that was written with its contents counts them too although they are in another
stream, one that refers to reused contents does not.

Order: sorted by hash, then laid out as a binary search tree without gaps, children of record i at 2i + 1 and 2i + 2.
Which sorted record comes to place i follows from the tree's shape: in a full tree of h + 1 levels the node j of level d
has the rank j * 2^(h-d+1) + 2^(h-d) - 1; each leaf that is missing on the right of the last level lowers the ranks behind
it by one.

The children of an open directory are kept as a flat ``array("Q")`` with three numbers each, so that a directory of a
million entries takes 24 MB. Big directories go through numpy, small ones do not: a call of it costs more than they do.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, pairwise

from siphashc import siphash

from formats.errors import FormatError
from formats.pxar.constants import GOODBYE, HEADER, HEADER_SIZE

HASH_KEY = struct.pack("<QQ", 0x83AC3F1CFBB450DB, 0xAA4F1B6879369FBD)
TAIL_MARKER = 0xEF5EED5B753E1555
RECORD = struct.Struct("<QQQ")
RECORD_SIZE = RECORD.size

Children = array  # of u64: three for each child

_NUMPY_FROM = 1024  # children


def name_hash(name: bytes) -> int:
    """The hash of a file name (without NUL), 64 bits."""
    value: int = siphash(HASH_KEY, name)
    return value


def table_size(count: int) -> int:
    """Bytes of the GOODBYE item of a directory with ``count`` children."""
    return HEADER_SIZE + (count + 1) * RECORD_SIZE
