"""The digests of an index, sorted and numbered: millions of them, in little memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_COMPARED_AT_ONCE = 1 << 16  # rows
_PART = 4096  # rows

_T = TypeVar("_T", bound=np.generic)

Digests = NDArray[np.uint8]
Prefixes = NDArray[np.uint64]  # the first 8 bytes of digests


class DistinctDigests:
    """The distinct rows among ``digests``, an (n, 32) array which may be a part of a wider one, in their order.

    ``positions`` (n,): where each row is among them; ``len``: how many there are. Takes 25 bytes of memory a row while
    it is made, 48 where some begin alike, and 12 then.
    """

    def __init__(self, digests: Digests) -> None:
        order, begins = _sorted(digests)
        ranks = np.cumsum(begins, dtype=np.uint32)
        ranks -= 1
        self.positions = np.empty(len(order), np.uint32)
        self.positions[order] = ranks
        self._digests = digests
        self._places = order[begins]

    def __len__(self) -> int:
        return len(self._places)

    def parts(self) -> Iterator[Digests]:
        """The distinct rows, some thousands at a time."""
        return _parts(self._digests, self._places)

    def one_of(self, values: NDArray[_T]) -> NDArray[_T]:
        """Of the ``values`` (n,) of all rows one for each distinct row, the last."""
        chosen = np.empty(len(self), values.dtype)
        chosen[self.positions] = values
        return chosen

    def parts_with(self, column: NDArray[_T]) -> Iterator[tuple[Digests, NDArray[_T]]]:
        """As ``parts``, with what ``column`` has for each distinct row."""
        done = 0
        for digests in self.parts():
            yield digests, column[done : done + len(digests)]
            done += len(digests)


def distinct_parts(digests: Digests) -> Iterator[Digests]:
    """The distinct rows, sorted, some thousands at a time."""
    order, begins = _sorted(digests)
    return _parts(digests, order[begins])


def distinct_digests(digests: Digests) -> Digests:
    """The distinct rows, sorted."""
    order, begins = _sorted(digests)
    return digests[order[begins]]


def prefixes_of(digests: Digests) -> Prefixes:
    """The first 8 bytes of each row of an (n, 32) array as numbers in the same order."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8").ravel().astype(np.uint64)


def _parts(digests: Digests, places: NDArray[np.intp]) -> Iterator[Digests]:
    for start in range(0, len(places), _PART):
        yield digests[places[start : start + _PART]]


def _sorted(digests: Digests) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """(order of the rows, which of them, in that order, are not as the one before)."""
    # By their first 8 bytes, which no two digests have in common but by somebody's intent.
    order = np.argsort(prefixes_of(digests))
    begins = _differing(digests, order)
    if begins is None:
        del order
        # Of equal length, so the zeros that such strings may end in matter; twice as fast as raw bytes.
        order = np.argsort(np.ascontiguousarray(digests).view("S32").ravel())
        begins = _differing(digests, order, by_start=False)
    assert begins is not None
    return order, begins


def _differing(digests: Digests, order: NDArray[np.intp], *, by_start: bool = True) -> NDArray[np.bool_] | None:
    """Which rows are not as the one before. None when some are, but begin as it does, and that is their order."""
    differing = np.ones(len(order), np.bool_)
    for start in range(1, len(order), _COMPARED_AT_ONCE):
        words = digests[order[start - 1 : start + _COMPARED_AT_ONCE]].view(np.uint64)
        here = differing[start : start + _COMPARED_AT_ONCE]
        here[:] = (words[1:] != words[:-1]).any(axis=1)
        if by_start and (here & (words[1:, 0] == words[:-1, 0])).any():
            return None
    return differing
