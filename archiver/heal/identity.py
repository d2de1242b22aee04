"""The file that says which store this is (``.archiver/store.json``). Without it nothing else can be opened, so it comes
before everything. Only the store's own database has the same: where that is not at hand the store gets a new identity,
and syncs to it have to be told that it is the right one (``sync --new-target``).
"""

from __future__ import annotations

import os
from uuid import UUID

import lmdb

from archiver.core.clock import Random, system_random
from archiver.core.disk import Disk
from archiver.errors import Damaged, NoSpace
from archiver.heal.damage import Damage
from archiver.store import creation
from archiver.store import layout as names
from archiver.store.database import environment, inspection, records
from archiver.store.layout import Layout

_THE_DATABASE = "the store's database"
_A_NEW_ONE = "a new identity"


def heal_identity(base: str, *, dry_run: bool, random: Random = system_random) -> Damage | None:
    """None when the store at ``base`` has an identity, or needs none. In a dry run nothing is written, and the store
    cannot be opened. Raises ArchiverError when it cannot be written."""
    layout = Layout(os.path.abspath(base))
    try:
        creation.read_identity(layout.base)
        return None
    except Damaged as error:
        reason = str(error)
    known = _recorded(os.path.join(layout.private, names.DATABASE))
    damage = Damage("identity", names.IDENTITY, 0, reason, _A_NEW_ONE if known is None else _THE_DATABASE)
    if not dry_run:
        creation.replace_identity(layout.base, known, Disk(random), random)
        damage.healed = True
    return damage


def _recorded(directory: str) -> str | None:
    """The identity that the database in ``directory`` was made for."""
    if not os.path.isfile(os.path.join(directory, inspection.DATA)):
        return None
    try:
        env = environment.attach(directory)
    except (environment.DatabaseDamaged, NoSpace, OSError, lmdb.Error, MemoryError):
        return None
    try:
        with env.read() as txn:
            value = txn.get(b"store", db=env.table(records.META))
        return str(UUID(bytes=value)) if value is not None and len(value) == 16 else None
    except (environment.DatabaseDamaged, NoSpace):
        return None
    finally:
        environment.release(env)
