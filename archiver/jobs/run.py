"""One run of a job, from the question whether this is the moment to the record of how it ended.

A step that fails does not keep the others from being done. The record is written before the first step and after each
one: a crash leaves what was done until then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from archiver.core.disk import explain
from archiver.core.events import Notice
from archiver.errors import (
    EXIT_BUG,
    EXIT_DAMAGED,
    EXIT_DIFFERENT,
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    ArchiverError,
    Held,
    NoSpace,
    NotFound,
    Skipped,
    TargetAbsent,
    worst,
)
from archiver.jobs.history import History, Run, StepResult
from archiver.jobs.hooks import run_hook
from archiver.jobs.plan import PlannedStep, check_steps, plan_run
from archiver.jobs.power import awake, refusal
from archiver.jobs.profile import Hook, Profile
from archiver.jobs.standing import all_ages
from archiver.jobs.steps import Done, Steps
from archiver.jobs.surroundings import Surroundings

STALE = 31

_HELD_SINCE = "held since run"

# What is deferred is no error: it counts last but for what was done in part.
_ORDER = (
    EXIT_INTERRUPTED,
    EXIT_BUG,
    *(1, 2, 10, 11, 12, 14, 40, 50),
    *(EXIT_DAMAGED, EXIT_DIFFERENT, Held.exit_code, STALE, TargetAbsent.exit_code, EXIT_PARTIAL),
)


def run_job(
    profile: Profile,
    history: History,
    around: Surroundings,
    *,
    only: Sequence[str] = (),
    whatever_the_power: bool = False,
) -> Run:
    """``only``: the names of steps, which are done whether or not they are due.

    Raises UsageError for a step that the profile does not have, Locked when it is running already, ArchiverError when
    there can be no record; KeyboardInterrupt, and what is a bug of ours, once that is recorded.
    """
    check_steps(profile, only)
    history.lock()
    try:
        return _JobRun(profile, history, around, only).run(whatever_the_power)
    finally:
        history.close()


class _JobRun:
    def __init__(self, profile: Profile, history: History, around: Surroundings, only: Sequence[str]) -> None:
        self._profile, self._history, self._around = profile, history, around
        self._only = only
        self._steps = Steps(profile, around)
        self._before = history.settled()
        self._bug: Exception | None = None
        self._record = Run(profile.name, 0, 0)

    def run(self, whatever_the_power: bool) -> Run:
        profile, around = self._profile, self._around
        refused = None if whatever_the_power else refusal(profile.power, around.supplies, around.metered)
        self._record = self._history.begin()
        self._save()
        if refused is not None:
            return self._skip(refused)
        keeps_awake = awake(profile.name, around.listener) if around.keep_awake else nullcontext()
        interrupt: KeyboardInterrupt | None = None
        with keeps_awake:
            try:
                self._work()
            except KeyboardInterrupt as error:
                interrupt = error
            try:
                self._hooks("finally")
            except KeyboardInterrupt as error:
                interrupt = interrupt or error
            finally:
                codes = [step.exit_code for step in self._record.steps if self._counts(step)]
                code = EXIT_INTERRUPTED if interrupt is not None else worst(codes, _ORDER)
                self._end(code)
        if interrupt is not None:
            raise interrupt
        if self._bug is not None:
            raise self._bug
        return self._record

    def _skip(self, reason: str) -> Run:
        ages = all_ages(self._profile, self._before, self._around.clock.now())
        due = min((age.due for age in ages if age.step == "backup" and age.due is not None), default=None)
        self._record = replace(self._record, text=f"skipped: {reason}", due=due)
        return self._end(Skipped.exit_code)

    def _end(self, code: int) -> Run:
        self._record = replace(self._record, state="done", ended=self._around.clock.now(), exit_code=code)
        self._save()
        return self._record

    def _counts(self, step: StepResult) -> bool:
        return step.name != "hook" or step.figures.get("required") is True

    # -- the work ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        planned = plan_run(self._profile, self._before, self._around.clock.now())
        ready = self._hooks("before")
        for step in planned:
            if not self._is_wanted(step):
                continue
            if ready:
                self._do(step)
            else:
                self._note(step.name, step.target, Done("a hook that is required has failed", {}, "skipped"))
        failed = any(step.state == "failed" and self._counts(step) for step in self._record.steps)
        self._hooks("on-failure" if failed else "after")

    def _is_wanted(self, step: PlannedStep) -> bool:
        """A store that is full is swept whether or not that is due: what prune has let go is the room of tomorrow."""
        if self._only:
            return step.name in self._only
        if step.name == "gc" and self._profile.gc_every is not None:
            made = self._record.steps_named("backup", step.target)
            return step.is_due or any(each.exit_code == NoSpace.exit_code for each in made)
        return step.is_due

    def _do(self, step: PlannedStep) -> None:
        target, profile = step.target, self._profile
        if step.name == "backup":
            self._step(step, lambda: self._steps.backup(target))
        elif step.name == "guard":
            self._guard(step)
        elif step.name == "prune":
            accepted = self._accepted(step.name, target)
            self._unless_held(step, lambda: self._steps.prune(target, accepted=accepted))
        elif step.name == "gc":
            self._unless_held(step, lambda: self._steps.gc(target))
        elif step.name == "verify":
            budget = profile.verify
            assert budget is not None
            self._step(step, lambda: self._steps.verify(target, budget))
        elif step.name == "sync":
            sync, accepted = profile.syncs[step.number], self._accepted(step.name, target)
            self._step(step, lambda: self._steps.sync(self._source(), sync, accepted=accepted))
        elif step.name == "tape":
            tape = profile.tapes[step.number]
            self._step(step, lambda: self._steps.tape(self._source(), tape))
        elif step.name == "drill":
            drill = profile.drill
            assert drill is not None
            turn = sum(1 for run in self._before for each in run.steps_named("drill", target) if each.state == "ok")
            self._step(step, lambda: self._steps.drill(target, drill, turn))

    def _source(self) -> str:
        """The store that is copied: the first one that is there."""
        for path in self._profile.stores:
            if os.path.isdir(os.path.join(path, ".chunks")):
                return path
        return self._profile.stores[0]

    def _step(self, step: PlannedStep, work: Callable[[], Done]) -> None:
        clock = self._around.clock
        began, steady = clock.now(), clock.steady()

        def note(done: Done) -> None:
            self._note(step.name, step.target, done, began, clock.steady() - steady)

        try:
            done = work()
        except KeyboardInterrupt:
            note(Done("interrupted", {}, "interrupted", EXIT_INTERRUPTED))
            raise
        except TargetAbsent as error:
            done = self._deferred(step, error)
        except NotFound as error:
            done = self._deferred(step, error) if self._was_there(step) else _failed(error)
        except Held as error:
            done = Done(_sentence(error), {}, "held", error.exit_code)
        except ArchiverError as error:
            done = _failed(error)
        except OSError as error:
            done = _failed(explain(error, "do", f"the {step.name}"))
        except Exception as error:  # a bug of ours, which is told when all else is done
            self._bug = self._bug or error
            done = Done(f"a bug of archiver's: {type(error).__name__}", {}, "failed", EXIT_BUG)
        note(done)

    def _was_there(self, step: PlannedStep) -> bool:
        """A place without a store where there was one is one whose drive is not mounted; one with a part of it is
        damaged."""
        if os.path.lexists(os.path.join(step.target, ".archiver")):
            return False
        return any(each.is_good for run in self._before for each in run.steps_named(step.name, step.target))

    def _deferred(self, step: PlannedStep, error: ArchiverError) -> Done:
        """No error, until it is overdue."""
        now = self._around.clock.now()
        ages = all_ages(self._profile, [self._record, *self._before], now)
        if any(age.is_stale for age in ages if (age.step, age.target) == (step.name, step.target)):
            return Done(f"overdue: {error}", {}, "deferred", STALE)
        return Done(f"deferred: {error}", {}, "deferred", TargetAbsent.exit_code)

    # -- the guard ---------------------------------------------------------------------------------------------------

    def _guard(self, step: PlannedStep) -> None:
        made = next((each for each in self._record.steps_named("backup", step.target) if each.is_good), None)
        open_hold = self._open_hold(step.target)
        if open_hold is not None:
            number, first = open_hold
            text = first.text if first.text.startswith(_HELD_SINCE) else f"{_HELD_SINCE} {number}: {first.text}"
            held = Done(text, first.figures, "held", Held.exit_code)
            self._step(step, lambda: held)
        elif made is None:
            return
        else:
            self._step(step, lambda: self._judged(step.target, made.figures))

    def _judged(self, target: str, figures: Mapping[str, Any]) -> Done:
        """Compared is with the newest backup that was judged. If that is not the last one, as after a crash or a run of
        the backup alone, the counters do not tell what has changed since."""
        found = self._backups(target)
        if not found:
            return Done("there is no earlier run to compare with")
        run, before = next(((run, each) for run, each in found if _is_judged(run, target)), found[0])
        is_last = run.number == self._before[0].number
        return self._steps.judge(target, figures, before, self._past(target), only_counted=is_last)

    def _open_hold(self, target: str) -> tuple[int, StepResult] | None:
        """The run whose mass change nobody has accepted yet. Its own record may be gone or damaged meanwhile: those of
        later runs say that they are still held."""
        found = None
        for run in self._before:
            if run.number <= self._history.acknowledged:
                break
            for each in run.steps_named("guard", target):
                if each.state == "held":
                    found = (run.number, each)
        return found

    def _backups(self, target: str) -> list[tuple[Run, Mapping[str, Any]]]:
        """The figures of those whose snapshots are still there, up to the newest that was judged."""
        found = []
        for run in self._before:
            for each in run.steps_named("backup", target):
                if each.is_good and "snapshot" in each.figures and self._steps.still_there(target, each.figures):
                    found.append((run, each.figures))
            if found and _is_judged(found[-1][0], target):
                break
        return found

    def _past(self, target: str) -> list[Mapping[str, Any]]:
        """What was recorded of nights that were right, or that a person has called so."""
        return [
            each.figures
            for run in self._before
            for each in run.steps_named("guard", target)
            if each.figures and (each.state == "ok" or run.number <= self._history.acknowledged)
        ]

    def _unless_held(self, step: PlannedStep, work: Callable[[], Done]) -> None:
        """What removes for good waits for a person when the guard has seen a mass change."""
        judged = self._record.steps_named("guard", step.target)
        is_open = self._profile.guard.enabled and not judged and self._open_hold(step.target) is not None
        if is_open or any(each.state != "ok" for each in judged):
            self._note(step.name, step.target, Done("held by the guard", {}, "skipped", Held.exit_code))
        else:
            self._step(step, work)

    def _accepted(self, name: str, target: str) -> bool:
        """Whether the last one was held, by its own doubts or by the guard, and a person has accepted that since."""
        for run in self._before:
            for each in run.steps_named(name, target):
                if each.state != "deferred":
                    return each.exit_code == Held.exit_code and run.number <= self._history.acknowledged
        return False

    # -- hooks -------------------------------------------------------------------------------------------------------

    def _hooks(self, when: str) -> bool:
        """Run those of this moment, all of them; False when one has failed that is required."""
        ready = True
        for number, hook in enumerate((hook for hook in self._profile.hooks if hook.when == when), 1):
            result = self._hook(hook, f"{when} {number}")
            ready = ready and (result.state != "failed" or not hook.required)
        return ready

    def _hook(self, hook: Hook, target: str) -> StepResult:
        code = worst((step.exit_code for step in self._record.steps if self._counts(step)), _ORDER)
        facts = {
            "JOB": self._profile.name,
            "RUN": str(self._record.number),
            "STORE": self._profile.stores[0],
            "EXIT_CODE": str(code),
        }

        def work() -> Done:
            run_hook(hook, self._around.environment, facts)
            return Done("done")

        self._step(PlannedStep("hook", target, True, ""), work)
        result = replace(self._record.steps[-1], figures={"required": hook.required})
        self._record = replace(self._record, steps=(*self._record.steps[:-1], result))
        self._save()
        return result

    # -- the record --------------------------------------------------------------------------------------------------

    def _note(self, name: str, target: str, done: Done, began: int | None = None, seconds: float = 0.0) -> None:
        began = self._around.clock.now() if began is None else began
        result = StepResult(name, target, done.state, done.exit_code, done.text, began, round(seconds, 3), done.figures)
        self._record = replace(self._record, steps=(*self._record.steps, result))
        self._save()
        text = f"{name} of {target}: {done.text}"
        self._around.listener(Notice(text) if result.is_good else Notice(text, "warning"))

    def _save(self) -> None:
        """A disk that is full must not keep prune and gc from making room: the run goes on."""
        try:
            self._history.put(self._record)
        except ArchiverError as error:
            self._around.listener(Notice(f"the run cannot be recorded: {error}", "warning"))


def _is_judged(run: Run, target: str) -> bool:
    return any(each.state in ("ok", "held") for each in run.steps_named("guard", target))


def _failed(error: ArchiverError) -> Done:
    return Done(_sentence(error), {}, "failed", error.exit_code)


def _sentence(error: ArchiverError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)
