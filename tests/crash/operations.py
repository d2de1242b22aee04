"""The operations whose every end is looked at: each entry of ``OPERATIONS`` prepares a scene in an empty directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.crash import keeping, making, writing
from tests.crash.checking import PlainScene, Scene

Prepare = Callable[[Path], Scene | PlainScene]

OPERATIONS: dict[str, Prepare] = {
    "first backup": writing.first_backup,
    "nightly backup": writing.nightly_backup,
    "encrypted backup": writing.encrypted_backup,
    "legacy backup": writing.legacy_backup,
    "resumed backup": writing.resumed_backup,
    "backup without database": writing.lost_database,
    "forget": keeping.forget,
    "forget a group": keeping.forget_group,
    "forget in place": keeping.forget_in_place,
    "prune": keeping.prune,
    "gc": keeping.gc,
    "gc beside writers": keeping.gc_beside_writers,
    "gc from files": keeping.gc_from_files,
    "forget and gc": keeping.forget_and_gc,
    "sync": writing.sync,
    "sync of changes": writing.sync_of_changes,
    "verify": keeping.verify_with_set_aside,
    "heal": keeping.heal_from_a_copy,
    "labels": keeping.labels,
    "ns create": keeping.create_namespaces,
    "ns move": keeping.move_namespace,
    "ns delete": keeping.delete_namespace,
    "db rebuild": keeping.rebuild_database,
    "init": making.init,
    "init --new-uuid": making.new_uuid,
    "key create": making.key_create,
    "key create-master-key": making.master_key,
    "key change-passphrase": making.key_change_passphrase,
}
