"""snapshots, groups, files"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, global_options
from archiver.cli.output import size_text

if TYPE_CHECKING:
    from archiver.store.snapshots import SnapshotInfo


@click.command()
@click.argument("group", required=False)
@global_options
def snapshots(context: Context, group: str | None) -> None:
    """List the snapshots of the store, or of one GROUP (TYPE/ID)."""
    from archiver.errors import UsageError
    from archiver.store.layout import SnapshotRef, parse_reference

    output = context.output
    with context.open_store(output) as store:
        chosen = None
        if group is not None:
            chosen = parse_reference(store.qualified(group, context.namespace))
            if isinstance(chosen, SnapshotRef):
                raise UsageError(f"{group!r} is one snapshot, not a group", hint=f"try: archiver files {group}")
        infos = [
            info
            for namespace in store.namespaces(context.namespace)
            for found in store.groups(namespace)
            if chosen is None or found == chosen
            for info in store.infos(found)
        ]
    if output.as_json:
        output.document({"schema": 1, "items": [_snapshot_json(info) for info in infos]})
        return
    signed = {info.ref.group for info in infos if info.signature == "signed"}
    output.table(
        ("snapshot", ">size", "files", "note"),
        [
            (
                str(info.ref),
                "" if info.size is None else size_text(info.size),
                _file_names(info),
                " ".join(filter(None, (_note(info).split("\n", 1)[0], *_marks(info, info.ref.group in signed)))),
            )
            for info in infos
        ],
    )


def _file_names(info: SnapshotInfo) -> str:
    if info.manifest is None:
        return str(info.problem) if info.problem is not None else "(unfinished)"
    return " ".join(sorted(file.filename.rsplit(".", 1)[0] for file in info.manifest.files))


def _note(info: SnapshotInfo) -> str:
    note = info.manifest.unprotected.get("notes") if info.manifest is not None else None
    return note if isinstance(note, str) else ""


def _marks(info: SnapshotInfo, among_signed: bool) -> Iterator[str]:
    if info.protected:
        yield "[protected]"
    if info.signature == "unsigned" and among_signed:
        yield "[unsigned]"
    if info.signature == "lost":
        yield "[signature lost]"
    state = info.verify_state
    if state is not None:
        yield "[verified]" if state["state"] == "ok" else "[verify failed]"


def _snapshot_json(info: SnapshotInfo) -> dict[str, Any]:
    from formats.crypt import format_fingerprint

    manifest, ref = info.manifest, info.ref
    fingerprint = manifest.fingerprint if manifest is not None else None
    return {
        "snapshot": str(ref),
        "type": ref.group.type,
        "id": ref.group.id,
        "time": ref.time,
        "ns": ref.group.namespace,
        "files": []
        if manifest is None
        else [{"filename": file.filename, "crypt_mode": file.crypt_mode, "size": file.size} for file in manifest.files],
        "size": info.size,
        "protected": info.protected,
        "owner": info.owner,
        "note": _note(info) or None,
        "verify": info.verify_state,
        "key_fingerprint": None if fingerprint is None else format_fingerprint(fingerprint),
        "signature": info.signature,
        "finished": info.finished,
        "problem": None if info.problem is None else str(info.problem),
    }


@click.command()
@global_options
def groups(context: Context) -> None:
    """List the groups of the store."""
    from archiver.store.layout import SnapshotRef
    from formats.naming import format_time

    output = context.output
    items = []
    with context.open_store(output) as store:
        for namespace in store.namespaces(context.namespace):
            for group in store.groups(namespace):
                newest = store.newest(group)
                info = store.info(newest) if newest is not None else None
                manifest = info.manifest if info is not None else None
                items.append(
                    {
                        "group": str(group),
                        "type": group.type,
                        "id": group.id,
                        "ns": group.namespace,
                        "owner": store.owner(group),
                        "count": len(store.times(group)),
                        "last": newest.time if isinstance(newest, SnapshotRef) else None,
                        "files": [file.filename for file in manifest.files] if manifest is not None else [],
                        "note": store.group_note(group),
                    }
                )
    if output.as_json:
        output.document({"schema": 1, "items": items})
        return
    output.table(
        ("group", ">snapshots", "last", "owner", "note"),
        [
            (
                str(item["group"]),
                str(item["count"]),
                format_time(item["last"]) if isinstance(item["last"], int) else "",
                str(item["owner"] or ""),
                str(item["note"] or "").split("\n", 1)[0],
            )
            for item in items
        ],
    )


@click.command()
@click.argument("snapshot")
@global_options
def files(context: Context, snapshot: str) -> None:
    """List the files that a SNAPSHOT consists of."""
    from archiver.store import layout

    output = context.output
    with context.open_store(output) as store:
        ref = store.find(snapshot, context.namespace)
        manifest = store.manifest(ref)
        items = [
            {"filename": file.filename, "crypt_mode": file.crypt_mode, "size": file.size, "csum": file.csum.hex()}
            for file in manifest.files
        ]
        listed = {file.filename for file in manifest.files}
        for extra in (layout.MANIFEST, layout.CLIENT_LOG):
            path = os.path.join(store.layout.snapshot(ref), extra)
            if extra not in listed and os.path.lexists(path):
                items.append({"filename": extra, "crypt_mode": "", "size": os.lstat(path).st_size, "csum": ""})
    if output.as_json:
        output.document({"schema": 1, "snapshot": str(ref), "items": items})
        return
    output.table(
        ("file", "crypt mode", ">size"),
        [(str(item["filename"]), str(item["crypt_mode"]), size_text(int(str(item["size"])))) for item in items],
    )
