"""The LMDB file under the media-set catalogs: no fact is in it, and nothing fails because it cannot be used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import lmdb

from archiver.core.events import Listener, Notice
from archiver.errors import NoSpace
from archiver.store.database import environment
from archiver.store.database.environment import DatabaseDamaged, Environment
from archiver.tape.media_sets import records

T = TypeVar("T")


class Unusable(Exception):
    """There is no database, or not any more."""


class Tables:
    """The tables of ``records`` for the tape state in ``place``."""

    def __init__(self, place: str, listener: Listener, environment_variables: Mapping[str, str]) -> None:
        self.directory = _directory(environment_variables)
        self._place = place
        self._listener = listener
        self._env: Environment | None = None
        self._open()

    def close(self) -> None:
        if self._env is not None:
            environment.release(self._env)
            self._env = None

    def _open(self) -> None:
        """Without one when there can be none, which is said."""
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            self._env = environment.attach(self.directory, records.TABLES)
        except (DatabaseDamaged, NoSpace, OSError, lmdb.Error, MemoryError) as error:
            self._give_up(str(error))
            return
        if self._env.recreated is not None:
            reason, self._env.recreated = self._env.recreated, None
            self._tell(f"the database of tapes was not usable ({reason}); it is built again from the catalogs")
        try:
            if not self.ask(self._fits):
                self.change(self._reset)
        except Unusable:
            pass

    def _fits(self, txn: Any) -> bool:
        meta = self.table(records.META)
        schema, place = txn.get(b"schema", db=meta), txn.get(b"place", db=meta)
        return bool(schema == records.U32.pack(records.SCHEMA) and place == os.fsencode(self._place))

    def _reset(self, txn: Any) -> None:
        for name in records.TABLES:
            txn.drop(self.table(name), delete=False)
        meta = self.table(records.META)
        txn.put(b"schema", records.U32.pack(records.SCHEMA), db=meta)
        txn.put(b"place", os.fsencode(self._place), db=meta)

    def _tell(self, text: str) -> None:
        self._listener(Notice(text, "warning"))

    def _give_up(self, reason: str) -> None:
        self._tell(f"the database of tapes in {self.directory} cannot be used ({reason}); going on without it")

    def table(self, name: bytes) -> Any:
        """The handle of a table, for a transaction."""
        assert self._env is not None
        return self._env.table(name)

    def ask(self, work: Callable[[Any], T]) -> T:
        """Run ``work`` in a read transaction. Raises Unusable."""
        if self._env is None:
            raise Unusable
        try:
            with self._env.read() as txn:
                return work(txn)
        except (DatabaseDamaged, NoSpace, lmdb.Error) as error:
            self._lost(str(error))
        except records.DAMAGED as error:
            self._env.condemn()
            self._lost(f"a record in it is damaged: {error}")
        raise Unusable

    def change(self, work: Callable[[Any], T]) -> T:
        """Run ``work`` in a write transaction, again when the map was too small. Raises Unusable."""
        if self._env is None:
            raise Unusable
        try:
            return self._env.write(work)
        except (DatabaseDamaged, NoSpace, lmdb.Error) as error:
            self._lost(str(error))
        except records.DAMAGED as error:
            self._env.condemn()
            self._lost(f"a record in it is damaged: {error}")
        raise Unusable

    def _lost(self, reason: str) -> None:
        self.close()
        self._give_up(reason)


def _directory(environment_variables: Mapping[str, str]) -> str:
    """It is no fact, so it belongs to the cache; ``ARCHIVER_DB_DIR`` as for stores."""
    chosen = environment_variables.get("ARCHIVER_DB_DIR")
    if chosen:
        return os.path.join(os.path.abspath(chosen), "tape")
    cache = environment_variables.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "archiver", "tape")
