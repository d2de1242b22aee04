"""heal"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, global_options
from archiver.cli.output import Output, size_text
from archiver.cli.verify import check_choice, chosen, fitting_key
from archiver.errors import EXIT_DAMAGED, EXIT_OK, UsageError

if TYPE_CHECKING:
    from archiver.heal.candidates import Candidates
    from archiver.heal.damage import Damage, HealResult, Place
    from archiver.heal.plan import HealPlan
    from formats.crypt import CryptConfig

_FILES_SHOWN = 20
_PLACES_SHOWN = 20


@click.command()
@click.argument("snapshot", required=False)
@click.option("--group", metavar="TYPE/ID", help="All snapshots of this group.")
@click.option("--from", "copies", metavar="STORE", multiple=True, help="Another store that may have the same; several.")
@click.option(
    "--from-tape",
    "media_set",
    metavar="MEDIA-SET",
    help="Media that may have lost chunks, named as for tape restore: only files that hold some are read.",
)
@click.option("--drive", metavar="NAME", help="The tape drive. Default: ARCHIVER_TAPE_DRIVE, else the only one.")
@click.option(
    "--source",
    "sources",
    metavar="[NAME.pxar:]PATH",
    multiple=True,
    help="Where the files of an archive are now: a directory, or the file of an image. Without a name: of any archive.",
)
@click.option(
    "--read-all",
    is_flag=True,
    help="Read every chunk first, as verify does. Otherwise missing chunks, those that a verification found"
    " damaged, and those not read since it failed.",
)
@click.option("--dry-run", is_flag=True, help="Only show what is damaged, and what could heal it.")
@click.option("--without-key", is_flag=True, help="Take no key, also where there is one: no passphrase is needed.")
@global_options
@click.pass_context
def heal(
    ctx: click.Context,
    context: Context,
    snapshot: str | None,
    group: str | None,
    copies: tuple[str, ...],
    media_set: str | None,
    drive: str | None,
    sources: tuple[str, ...],
    read_all: bool,
    dry_run: bool,
    without_key: bool,
) -> None:
    """Put back what is damaged or missing: in the whole store, a group, or one SNAPSHOT.

    Chunks come from copies that were set aside, from other stores (--from), from media (--from-tape), and from the live
    files (--source) where these still have the same contents; manifests, indexes and blobs from other stores that have
    the same snapshot. Whatever comes is checked. Without the key, encrypted chunks come from stores and media only.

    The exit code is 20 when damage remains, also in a dry run that finds any.
    """
    from archiver.heal.candidates import OtherStore
    from archiver.heal.identity import heal_identity
    from archiver.heal.plan import HealOptions, make_plan
    from archiver.heal.run import carry_out
    from archiver.heal.source import LivePlace
    from archiver.store.store import Store

    check_choice(context, snapshot, group, without_key)
    if "" in copies:  # most likely a variable of a script that is not set
        raise UsageError("--from is empty")
    if context.read_only and not dry_run:
        raise UsageError("--read-only writes nothing, so nothing can be healed", hint="see what could be: --dry-run")
    output = context.output
    live = [LivePlace.parse(text) for text in sources]
    identity = heal_identity(context.store_path(), dry_run=dry_run)
    if identity is not None and not identity.healed:
        _tell(ctx, output, None, None, identity)
        return
    with ExitStack() as opened:
        store = opened.enter_context(context.open_store(output))
        if not dry_run:
            store.check_writable()
        refs = chosen(store, context.namespace, snapshot, group)
        crypt = None if without_key else fitting_key(context, store, refs)
        others = [opened.enter_context(Store.open(path, listener=output.hear)) for path in copies]
        places: list[Candidates] = [OtherStore(store, other, crypt) for other in others]
        if media_set is not None:
            places.append(_media(opened, output, media_set, drive, crypt))
        options = HealOptions(places, live, read_all)
        plan = make_plan(store, refs, crypt, options, output.hear)
        result = None if dry_run else carry_out(store, plan, crypt, output.hear)
        _tell(ctx, output, plan, result, identity)


def _media(opened: ExitStack, output: Output, name: str, drive: str | None, crypt: CryptConfig | None) -> Candidates:
    from archiver.cli.tape.healing import MediaSetChunks

    return MediaSetChunks(opened, output, name, drive, crypt)


def _tell(
    ctx: click.Context, output: Output, plan: HealPlan | None, result: HealResult | None, identity: Damage | None
) -> None:
    damages = ([] if identity is None else [identity]) + ([] if plan is None else plan.damages)
    remaining = sum(not damage.healed for damage in damages)
    with output.read_or_not():
        _print(output, damages, plan, result)
    is_well = not remaining and (plan is None or plan.search.is_complete) and not (result is not None and result.failed)
    ctx.exit(EXIT_OK if is_well else EXIT_DAMAGED)


def _print(output: Output, damages: list[Damage], plan: HealPlan | None, result: HealResult | None) -> None:
    if output.as_json:
        remaining = sum(not damage.healed for damage in damages)
        document: dict[str, Any] = {
            "schema": 1,
            "dry_run": result is None,
            "snapshots": 0 if plan is None else len(plan.subjects),
            "unfinished": 0 if plan is None else plan.search.unfinished,
            "busy": [] if plan is None else plan.search.busy,
            "complete": plan is not None and plan.search.is_complete,
            "items": [damage.as_json() for damage in damages],
            "healed": len(damages) - remaining,
            "remaining": remaining,
            "removed_bad": 0 if result is None else result.removed_bad,
            "verify_states": {} if result is None else result.states,
            "failed": [] if result is None else result.failed,
            "duration_s": 0.0 if result is None else round(result.seconds, 3),
        }
        output.document(document)
    else:
        for damage in damages:
            _show(output, damage)
        _summarize(output, damages, plan, result)


def _show(output: Output, damage: Damage) -> None:
    what = damage.kind if damage.kind == damage.name else f"{damage.kind} {damage.name}"
    output.line(f"{what}: {damage.reason}")
    for place in damage.places[:_PLACES_SHOWN]:
        _show_place(output, damage, place)
    if damage.place_count > min(len(damage.places), _PLACES_SHOWN):
        output.line(f"  ... in {damage.place_count} places in all")
    if damage.healed:
        output.line(f"  healed from {damage.remedy}")
    elif damage.remedy is not None:
        output.line(f"  can be healed from {damage.remedy}")
    else:
        output.line("  nothing at hand can heal it")


def _show_place(output: Output, damage: Damage, place: Place) -> None:
    where = "" if damage.kind != "chunk" else f" {place.archive}, bytes {place.start} to {place.end}"
    output.line(f"  in {place.snapshot}{where}")
    for file in place.files[:_FILES_SHOWN]:
        output.line(f"    {file.path}" + ("" if file.start is None else f": bytes {file.start} to {file.end}"))
    if len(place.files) > _FILES_SHOWN:
        output.line(f"    ... and {len(place.files) - _FILES_SHOWN} more")


def _summarize(output: Output, damages: list[Damage], plan: HealPlan | None, result: HealResult | None) -> None:
    count = 0 if plan is None else len(plan.subjects)
    if not damages:
        output.summary(f"{count} snapshots: nothing is damaged, as far as is known")
    elif result is None:
        curable = [damage for damage in damages if damage.remedy is not None]
        size = size_text(sum(damage.size for damage in curable if damage.kind == "chunk"))
        output.summary(f"{count} snapshots: {len(damages)} things are damaged, {len(curable)} can be healed, {size}")
    else:
        healed = sum(damage.healed for damage in damages)
        output.summary(f"{count} snapshots: {len(damages)} things were damaged, {healed} are healed")
    if plan is not None and not plan.search.is_complete:
        output.summary("  so much is damaged that the search was ended: heal once more")
    if plan is not None and plan.search.unfinished:
        output.summary(f"  {plan.search.unfinished} unfinished snapshots were passed over")
    if plan is not None and plan.search.busy:
        output.summary(f"  {len(plan.search.busy)} snapshots were passed over, they are being removed")
    for name, state in (result.states if result is not None else {}).items():
        output.summary(f"  {name}: its verify state is {state} now")
