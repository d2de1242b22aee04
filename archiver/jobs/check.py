"""What a profile names that is not there at the moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

from archiver.backup.specification import check_source
from archiver.errors import ArchiverError
from archiver.jobs.keys import JobKey
from archiver.jobs.load import Loaded
from archiver.jobs.profile import Profile
from archiver.jobs.surroundings import Surroundings
from archiver.jobs.tables import Problem
from archiver.tape.state.place import TapePlace
from archiver.tape.state.pools import Pools


def check(loaded: Loaded, around: Surroundings) -> Loaded:
    """The same with notes about that. It is no mistake: it may be there tonight."""
    if loaded.profile is None:
        return loaded
    found = (*loaded.problems, *_notes(loaded, loaded.profile, around))
    problems = tuple(sorted(found, key=lambda problem: problem.line or 0))
    return replace(loaded, problems=problems)


def _notes(loaded: Loaded, profile: Profile, around: Surroundings) -> Iterator[Problem]:
    for spec in profile.sources.specs:
        try:
            check_source(spec)
        except ArchiverError as error:
            yield _problem(loaded, "sources", str(error))
    for store in profile.stores:
        if not os.path.isdir(os.path.join(store, ".chunks")):
            key = "store" if loaded.origins["store"].value is not None else "stores"
            text = f"there is no store in {store} now: its runs are deferred until its drive is there"
            yield _problem(loaded, key, text)
    for number, sync in enumerate(profile.syncs):
        if not os.path.isdir(os.path.join(sync.target, ".chunks")):
            text = f"there is no store in {sync.target} now: this is deferred until its drive is there"
            yield _problem(loaded, f"sync[{number}].target", text)
    for number, tape in enumerate(profile.tapes):
        try:
            Pools(TapePlace.default(around.environment)).get(tape.pool)
        except ArchiverError as error:
            yield _problem(loaded, f"tape[{number}].pool", str(error))
    job_key = JobKey(profile.key, around.environment, around.prompt)
    path = job_key.path
    if path is not None and not os.path.lexists(path):
        yield _problem(loaded, "key.file", f"there is no key file {path} now")
    if path is None and job_key.wanted_by is not None:
        named = ("crypt", "passphrase-file", "passphrase-command", "master-public")
        key = next(key for key in named if loaded.origins[f"key.{key}"].place == "file")
        yield _problem(loaded, f"key.{key}", f"{job_key.wanted_by}, and there is no key now")


def _problem(loaded: Loaded, key: str, text: str) -> Problem:
    origin = loaded.origins.get(key)
    return Problem(loaded.path, None if origin is None else origin.line, text, is_error=False)
