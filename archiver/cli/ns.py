"""ns create, list, delete, move"""

from __future__ import annotations

import click

from archiver.cli.context import Context, global_options
from archiver.cli.prune import ask, carry_out
from archiver.errors import Skipped


@click.group()
@global_options
def ns() -> None:
    """Namespaces: groups of groups, for example one for each machine."""


@ns.command()
@click.argument("namespace")
@global_options
def create(context: Context, namespace: str) -> None:
    """Make a NAMESPACE, for example a, or a/b when there is a."""
    from archiver.store import namespaces

    output = context.output
    name = namespaces.check_name(namespace)
    with context.open_store(output) as store:
        namespaces.create(store, name)
    if output.as_json:
        output.document({"schema": 1, "ns": name})
    output.summary(f"made the namespace {name}")


@ns.command("list")
@click.argument("namespace", default="")
@click.option("--max-depth", type=click.IntRange(0, 7), metavar="N", help="Only N levels below NAMESPACE.")
@global_options
def list_(context: Context, namespace: str, max_depth: int | None) -> None:
    """List the namespaces in NAMESPACE (default: the root)."""
    from archiver.store import namespaces

    output = context.output
    name = namespaces.check_name(namespace) if namespace.strip("/") else context.namespace
    with context.open_store(output) as store:
        items = []
        for level in store.namespaces(name):
            if max_depth is not None and _depth(level) - _depth(name) > max_depth:
                continue
            groups = store.groups(level)
            items.append(
                {"ns": level, "groups": len(groups), "snapshots": sum(len(store.times(group)) for group in groups)}
            )
    if output.as_json:
        output.document({"schema": 1, "items": items})
        return
    rows = [(str(item["ns"]), str(item["groups"]), str(item["snapshots"])) for item in items if item["ns"]]
    output.table(("namespace", ">groups", ">snapshots"), rows)


def _depth(namespace: str) -> int:
    return len(namespace.split("/")) if namespace else 0


@ns.command()
@click.argument("namespace")
@click.option("--delete-groups", is_flag=True, help="Forget the snapshots in it too.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask before groups are forgotten.")
@global_options
@click.pass_context
def delete(ctx: click.Context, context: Context, namespace: str, delete_groups: bool, dry_run: bool, yes: bool) -> None:
    """Remove a NAMESPACE and those in it. Protected snapshots stay, and what they are in."""
    from archiver.store import namespaces

    output = context.output
    name = namespaces.check_name(namespace)
    with context.open_store(output) as store:
        plan = namespaces.plan_delete(store, name, with_groups=delete_groups)
        if plan.removed:
            ask(output, f"forget all {len(plan.removed)} snapshots in {name}?", dry_run or yes)
        carry_out(ctx, output, store, plan, dry_run=dry_run, namespace=name)


@ns.command()
@click.argument("namespace")
@click.argument("target")
@click.option("--dry-run", is_flag=True, help="Only show what would be moved.")
@global_options
@click.pass_context
def move(ctx: click.Context, context: Context, namespace: str, target: str, dry_run: bool) -> None:
    """Move a NAMESPACE with all in it, so that its name is TARGET then.

    A group that TARGET has already is continued when its owner is the same and all its snapshots are older.
    """
    from archiver.store import namespaces

    output = context.output
    source, target = namespaces.check_name(namespace), namespaces.check_name(target)
    with context.open_store(output) as store:
        plan = namespaces.plan_move(store, source, target)
        moves = list(plan.moves) if dry_run else namespaces.move(store, plan)
    left = [each for each in moves if each.problem is not None]
    error = None
    if left and not dry_run:
        reasons = "; ".join(f"{each.group}: {each.problem}" for each in left)
        error = Skipped(f"{len(left)} groups stay where they are: {reasons}")
    if output.as_json:
        document = {"schema": 1, "ns": source, "target": target, "dry_run": dry_run}
        document |= {"items": [each.as_json() for each in moves]}
        output.document(document if error is None else document | {"error": error.as_json()})
        if error is not None:
            ctx.exit(error.exit_code)
        return
    with output.read_or_not():
        for each in moves:
            output.line(f"{each.group} -> {each.target}" + (f" (stays: {each.problem})" if each.problem else ""))
    if error is not None:
        raise error
    output.summary(f"{'would move' if dry_run else 'moved'} {len(moves) - len(left)} groups from {source} to {target}")
