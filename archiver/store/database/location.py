"""Where a store's database lies (DESIGN.md 3).

In the store when that is on the same device as the user's cache, else in the cache: an unplugged drive under a memory
map kills a process, and a lost drive should carry no index. One in a store that must not be written cannot be used:
without a place in its table of readers a process may see pages that a writer is using again. So such a store has one in
the cache too, which is also always up to date. ``ARCHIVER_DB_DIR`` names another place for the databases of all stores.
"""

from __future__ import annotations

import os

from archiver.store.layout import DATABASE, Layout


def database_directory(layout: Layout, store: str, *, writable: bool) -> str:
    """``writable``: whether it may be in the store."""
    chosen = os.environ.get("ARCHIVER_DB_DIR")
    if chosen:
        return os.path.join(os.path.abspath(chosen), store)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    own = os.path.join(layout.private, DATABASE)
    led_away = os.path.islink(layout.private) or os.path.islink(own)  # where it would write over what is not ours
    if writable and not led_away and _device(cache) == os.stat(layout.base).st_dev:
        return own
    return os.path.join(cache, "archiver", store)


def _device(path: str) -> int:
    """The device that ``path`` is or would be on."""
    while not os.path.exists(path):
        path = os.path.dirname(path) or "/"
    return os.stat(path).st_dev
