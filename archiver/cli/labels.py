"""protect, note, owner"""

from __future__ import annotations

import click

from archiver.cli.context import Context, global_options


@click.command()
@click.argument("snapshot")
@click.option("--off", is_flag=True, help="Allow it to be removed again.")
@global_options
def protect(context: Context, snapshot: str, off: bool) -> None:
    """Protect a SNAPSHOT: neither prune nor forget removes it."""
    from archiver.store.labels import protect as run

    output = context.output
    with context.open_store(output) as store:
        ref = store.find(snapshot, context.namespace)
        run(store, ref, on=not off)
    if output.as_json:
        output.document({"schema": 1, "snapshot": str(ref), "protected": not off})
    output.summary(f"{ref} is {'not protected any more' if off else 'protected'}")


@click.command()
@click.argument("snapshot")
@click.argument("text", required=False)
@click.option("--group", "of_group", is_flag=True, help="The note of a whole group (TYPE/ID).")
@global_options
def note(context: Context, snapshot: str, text: str | None, of_group: bool) -> None:
    """Show the note of a SNAPSHOT, or replace it by TEXT ("" removes it). Notes are not encrypted."""
    from archiver.store import labels

    output = context.output
    with context.open_store(output) as store:
        if of_group:
            group = store.find_group(snapshot, context.namespace)
            if text is not None:
                labels.set_group_note(store, group, text)
            name, kind, shown = str(group), "group", store.group_note(group) or ""
        else:
            ref = store.find(snapshot, context.namespace)
            if text is not None:
                labels.set_note(store, ref, text)
            name, kind, shown = str(ref), "snapshot", labels.note_of(store, ref)
    if output.as_json:
        output.document({"schema": 1, kind: name, "note": shown or None})
    elif text is None:
        for line in shown.splitlines():
            output.line(line)
    else:
        output.summary(f"{name} has {'a new' if shown else 'no'} note")


@click.command()
@click.argument("group")
@click.argument("owner", required=False)
@global_options
def owner(context: Context, group: str, owner: str | None) -> None:
    """Show the owner of a GROUP (TYPE/ID), or make it OWNER (USER@REALM), as a Proxmox Backup Server knows it."""
    from archiver.store.labels import set_owner

    output = context.output
    with context.open_store(output) as store:
        chosen = store.find_group(group, context.namespace)
        if owner is not None:
            set_owner(store, chosen, owner)
        now = store.owner(chosen)
    if output.as_json:
        output.document({"schema": 1, "group": str(chosen), "owner": now})
    elif owner is None:
        output.line(now or "")
    else:
        output.summary(f"{chosen} belongs to {now}")
