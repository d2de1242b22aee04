"""mount"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from archiver.cli.context import Context, allow_unsigned_option, global_options
from archiver.cli.output import Output
from archiver.errors import KeyProblem, UsageError

if TYPE_CHECKING:
    from archiver.browse.mounted.directories import Inner
    from archiver.browse.mounted.view import View
    from archiver.browse.snapshot import Snapshot
    from archiver.store.layout import SnapshotRef
    from archiver.store.store import Store
    from formats.crypt import CryptConfig


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="[SNAPSHOT] MOUNTPOINT")
@click.option("--archive", "archive_name", metavar="NAME", help="Show what is in this archive, for example home.pxar.")
@click.option("--allow-other", is_flag=True, help="Let other users look, as far as the saved permissions let them.")
@allow_unsigned_option
@global_options
def mount(
    context: Context, places: tuple[str, ...], archive_name: str | None, allow_other: bool, allow_unsigned: bool
) -> None:
    """Show a SNAPSHOT, or without one the whole store, as a read-only file system at MOUNTPOINT.

    Archives are directories, images and small files are files. It lasts until Ctrl-C, SIGTERM or `umount MOUNTPOINT`.
    A snapshot that is in use cannot be removed.
    """
    if len(places) > 2:
        raise UsageError("too many arguments", hint="archiver mount [SNAPSHOT] MOUNTPOINT")
    if archive_name is not None and len(places) != 2:
        raise UsageError("--archive is about one snapshot", hint="name it: archiver mount SNAPSHOT MOUNTPOINT")
    from archiver.browse.mounted.directories import Namespace, SnapshotDirectory, stored
    from archiver.browse.mounted.mount import mounted
    from archiver.browse.mounted.view import View

    output = context.output
    mountpoint = places[-1]
    with context.open_store(output) as store:
        if len(places) == 1:
            namespace = context.namespace
            _ = store.namespaces(namespace)  # there is one
            name, crypt = namespace or store.layout.base, _key_at_hand(context, output)
            opener = _Opener(context, store, crypt, allow_unsigned)
            view = View(store, lambda view: Namespace(view, namespace), opener, crypt)
        else:
            opened = context.open_snapshot(store, places[0], allow_unsigned=allow_unsigned)
            for archive in opened.archives():
                if archive_name is None or archive.name == opened.archive(archive_name).name:
                    opened.require_key(archive.files[0])
            ref, name = opened.ref, str(opened.ref)

            def top(view: View) -> Inner:
                if archive_name is None:
                    return SnapshotDirectory(view, ref)
                archive = opened.archive(archive_name)
                if archive.kind != "tree":
                    raise UsageError(f"{archive.name} is not a directory tree", hint="mount without --archive")
                return stored(view, ref, archive)

            view = View(store, top, lambda ref: opened, opened.crypt)
        try:
            with mounted(view, mountpoint, name=name, allow_other=allow_other) as serving:
                _say_ready(output, mountpoint, None if len(places) == 1 else name, archive_name)
                serving.wait()
        except KeyboardInterrupt:  # the usual end
            pass


def _say_ready(output: Output, mountpoint: str, snapshot: str | None, archive: str | None) -> None:
    if output.as_json:
        place = os.path.abspath(mountpoint)
        output.document({"schema": 1, "mountpoint": place, "snapshot": snapshot, "archive": archive})
    output.summary(f"{snapshot or 'the store'} is mounted at {mountpoint}; Ctrl-C or umount ends it")
    sys.stdout.flush()


def _key_at_hand(context: Context, output: Output) -> CryptConfig | None:
    """Of a whole store only what needs the key stays closed without it."""
    try:
        return context.key()
    except KeyProblem as error:
        if context.chosen_keyfile() is not None:
            raise
        output.message(f"what is encrypted stays closed: {error}")
        return None


class _Opener:
    """Opens the snapshots of a store as they are looked at."""

    def __init__(self, context: Context, store: Store, crypt: CryptConfig | None, allow_unsigned: bool) -> None:
        self._store = store
        self._crypt = crypt
        self._allow_unsigned = allow_unsigned
        self._key_in_use = context.key_path() is not None

    def __call__(self, ref: SnapshotRef) -> Snapshot:
        from archiver.browse.snapshot import Snapshot

        snapshot = Snapshot(self._store, ref, allow_unsigned=self._allow_unsigned)
        snapshot.key_in_use = self._key_in_use
        if self._crypt is not None and snapshot.made_with_key:
            try:
                snapshot.unlock(self._crypt)
            except KeyProblem:
                pass  # of another key: what is in it cannot be opened, its archives can be listed
        return snapshot
