"""The hostile corpus: bytes that a reader has to refuse or to survive.

``corpus()`` has pxar archives; ``hostile_indexes()``, ``hostile_blobs()``, ``hostile_manifests()`` and
``hostile_catalogs()`` the other files of a datastore. All are built by hand, without ``formats``.
"""

from __future__ import annotations

from tests.hostile import entries, names, streams, tables
from tests.hostile.corpus import Corpus, HostileArchive
from tests.hostile.files import (
    KEY,
    HostileFile,
    hostile_blobs,
    hostile_catalogs,
    hostile_indexes,
    hostile_manifests,
)

__all__ = [
    "KEY",
    "Corpus",
    "HostileArchive",
    "HostileFile",
    "corpus",
    "hostile_blobs",
    "hostile_catalogs",
    "hostile_indexes",
    "hostile_manifests",
]


def corpus(outside: bytes = b"/tmp/evil") -> Corpus:
    """Every hostile archive, by name. ``outside`` is where their links point: a directory that a restore must leave
    alone."""
    archives = Corpus()
    names.names(archives, outside)
    names.duplicates(archives, outside)
    names.symlinks(archives, outside)
    names.hardlink_paths(archives, outside)
    names.hardlink_offsets(archives, outside)
    tables.tables(archives)
    tables.table_loops(archives)
    entries.bodies(archives)
    entries.values(archives)
    entries.attributes(archives)
    streams.heads(archives)
    streams.references(archives)
    streams.sizes(archives)
    streams.truncations(archives)
    return archives
