"""What is wrong with a profile beyond its own words: what it names is not there, or this program cannot do it."""

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


def check(loaded: Loaded, around: Surroundings) -> Loaded:
    """The same with these problems too. A source, drive or key that is not there is none: it may be, tonight."""
    if loaded.profile is None:
        return loaded
    found = (*loaded.problems, *_errors(loaded, loaded.profile, around), *_notes(loaded, loaded.profile, around))
    problems = tuple(sorted(found, key=lambda problem: problem.line or 0))
    wrong = any(problem.is_error for problem in problems)
    return replace(loaded, problems=problems, profile=None if wrong else loaded.profile)


def _errors(loaded: Loaded, profile: Profile, around: Surroundings) -> Iterator[Problem]:
    if profile.tapes and around.tape is None:
        text = "tape[0]: this version of archiver has no tape command; only stores are allowed, with [[sync]]"
        yield _problem(loaded, "tape[0].pool", text, is_error=True)


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
    path = JobKey(profile.key, around.environment, around.prompt).path
    if path is not None and not os.path.lexists(path):
        yield _problem(loaded, "key.file", f"there is no key file {path} now")
    if path is None and profile.key.crypt in ("encrypt", "sign-only"):
        yield _problem(loaded, "key.crypt", f'crypt is "{profile.key.crypt}", and there is no key now')


def _problem(loaded: Loaded, key: str, text: str, *, is_error: bool = False) -> Problem:
    origin = loaded.origins.get(key)
    return Problem(loaded.path, None if origin is None else origin.line, text, is_error)
