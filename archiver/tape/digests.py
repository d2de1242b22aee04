"""Sets of digests as arrays: what media hold is asked for thousands of chunks at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from formats.tape.catalog import Digests


def keys(digests: Digests) -> Any:
    """One element a digest, as numpy compares them."""
    return np.ascontiguousarray(digests).view("V32").ravel()


def without(digests: Digests, others: Digests) -> Digests:
    """``digests`` but for those among ``others``."""
    if not len(digests) or not len(others):
        return digests
    return digests[~np.isin(keys(digests), keys(others))]
