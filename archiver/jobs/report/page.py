"""The pages: HTML with its style in it and nothing from elsewhere, good in light and dark and on paper."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from archiver import __version__
from archiver.jobs.history import Run, StepResult
from archiver.jobs.report import charts
from archiver.jobs.report.data import Overview, RunReport, StoreFacts
from archiver.jobs.report.grown import Grown
from archiver.jobs.report.text import age_text, bytes_text, plain, time_text
from archiver.jobs.standing import Age, Trouble
from archiver.store.coverage import DAYS

_RUNS = 30
# The browser itself is told to load nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_NO_CHARTS = "Charts are drawn where pygal is installed: pip install 'archiver[report]'"
_TONE = {
    "ok": "good",
    "partial": "fair",
    "deferred": "fair",
    "skipped": "fair",
    "held": "bad",
    "failed": "bad",
    "interrupted": "bad",
}


def overview_page(found: Overview) -> str:
    standing = found.standing
    saved = all(age.newest is not None for age in standing.ages if age.step == "backup")
    tone = "bad" if standing.troubles or standing.is_stale else "good" if saved else "fair"
    word = {"bad": "needs attention", "good": "all is well", "fair": "not saved yet"}[tone]
    head = _head(f"Backup job {found.job}", found.host, found.now, word, tone)
    return _page(
        f"{found.job} on {found.host}",
        [
            *head,
            *_troubles(standing.troubles),
            *_ages(standing.ages, found.now),
            *_sizes(found.stores),
            *_added(found.runs),
            *_coverages(found.stores),
            *(line for store in found.stores for line in _what_grew(store.grown, store.path)),
            *_space(found.stores),
            *_runs(found.runs),
        ],
    )


def run_page(found: RunReport) -> str:
    run = found.run
    word, tone = _result(run)
    head = _head(f"Run {run.number} of the job {found.job}", found.host, run.began, word, tone)
    took = f" It took {age_text(run.ended - run.began)}." if run.ended is not None else ""
    text = f" {run.text}." if run.text else ""
    return _page(
        f"run {run.number} of {found.job}",
        [
            *head,
            f"<p>Exit code {run.exit_code if run.exit_code is not None else 'unknown'}.{_safe(took + text)}</p>",
            *_steps(run.steps),
            *(line for each in found.grown for line in _what_grew(each, None)),
        ],
    )


def _page(title: str, lines: Sequence[str]) -> str:
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{_safe(title)}</title>",
            f"<style>{_style()}</style>",
            "</head>",
            "<body>",
            "<main>",
            *lines,
            "</main>",
            f"<footer>archiver {__version__}</footer>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _style() -> str:
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def _head(title: str, host: str, when: int, word: str, tone: str) -> Iterator[str]:
    yield f'<header><h1>{_safe(title)}</h1><p class="state {tone}">{_safe(word)}</p></header>'
    yield f'<p class="faint">{_safe(host)}, {time_text(when)}</p>'


def _troubles(troubles: Sequence[Trouble]) -> Iterator[str]:
    if troubles:
        yield "<ul class=troubles>"
        for trouble in troubles:
            yield f"<li><b>{_safe(trouble.kind)}</b> since {time_text(trouble.since)}: {_safe(trouble.text)}</li>"
        yield "</ul>"


def _ages(ages: Sequence[Age], now: int) -> Iterator[str]:
    """How much of the time that is allowed is over, as a bar: full is too old."""
    yield "<h2>Age of each copy</h2>"
    rows = []
    for age in ages:
        last = "never" if age.newest is None else f"{age_text(max(now - age.newest, 0))} ago"
        share = "" if age.max_age is None else _meter((now - age.since) / age.max_age, age.is_stale)
        allowed = "any" if age.max_age is None else age_text(age.max_age)
        rows.append([_safe(age.step), _safe(age.target), _safe(last), share, allowed])
    yield from _table(("what", "where", "last done well", "", ">allowed age"), rows)


def _meter(share: float, is_stale: bool) -> str:
    width = min(max(share, 0.0), 1.0) * 100
    return f'<span class="meter {"bad" if is_stale else "good"}"><i style="width:{width:.0f}%"></i></span>'


def _sizes(stores: Sequence[StoreFacts]) -> Iterator[str]:
    yield "<h2>Size of the snapshots</h2>"
    series = [
        (store.path, [(snapshot.time, snapshot.size) for snapshot in store.snapshots])
        for store in stores
        if store.snapshots
    ]
    for store in stores:
        if store.absent is not None:
            yield f"<p>{_safe(store.path)} is not there now: {_safe(store.absent)}.</p>"
        elif not store.snapshots:
            yield f"<p>{_safe(store.path)} has no snapshot of this job.</p>"
        else:
            newest = store.snapshots[-1]
            count = f"{len(store.snapshots)} snapshots, the newest" if len(store.snapshots) > 1 else "one snapshot, it"
            yield f"<p>{_safe(store.path)}: {count} has {bytes_text(newest.size)}.</p>"
    if series:
        yield from _chart(lambda: charts.size_lines(series, "Size of each snapshot"))


def _added(runs: Sequence[Run]) -> Iterator[str]:
    points: dict[int, int] = {}
    for run in runs:
        for step in run.steps_named("backup"):
            if isinstance(size := step.figures.get("stored_bytes"), int):
                points[step.began] = points.get(step.began, 0) + size
    yield "<h2>Stored by each run</h2>"
    if not points:
        yield "<p>No run has stored anything yet.</p>"
        return
    yield from _chart(lambda: charts.size_bars("stored", sorted(points.items()), "Bytes stored by each run"))


def _coverages(stores: Sequence[StoreFacts]) -> Iterator[str]:
    known = [(store.path, store.coverage) for store in stores if store.coverage is not None and store.coverage.bytes]
    yield "<h2>Coverage of verify</h2>"
    for store in stores:
        states = [snapshot.verify for snapshot in store.snapshots]
        if states:
            good, bad, left = (states.count(state) for state in ("ok", "failed", None))
            counts = f"{good} of {len(states)} snapshots verified as a whole, {left} not yet, {bad} failed"
            damaged = store.coverage.damaged_chunks if store.coverage is not None else 0
            more = f" <b>{damaged} chunks are missing or damaged.</b>" if damaged else ""
            yield f"<p>{_safe(store.path)}: {counts}.{more}</p>"
    if not known:
        yield "<p>When the data were read and found good is not known here.</p>"
        return
    labels = [*(f"last {days} days" for days in DAYS), "longer ago", "never"]
    columns = [[*each.within, each.longer, each.never] for _, each in known]
    parts = [(label, [column[number] for column in columns]) for number, label in enumerate(labels)]
    yield from _chart(lambda: charts.shares([path for path, _ in known], parts, "Stored bytes by their last check"))
    rows = [
        [_safe(path), *(bytes_text(size) for size in column)] for (path, _), column in zip(known, columns, strict=True)
    ]
    yield from _table(("last checked or stored", *(f">{label}" for label in labels)), rows)


def _what_grew(grown: Grown | None, store: str | None) -> Iterator[str]:
    if grown is None:
        return
    yield "<h2>What grew</h2>"
    where = f" in {_safe(store)}" if store is not None else ""
    yield f'<p class="faint">From {_safe(grown.before)} to {_safe(grown.after)}{where}</p>'
    if grown.is_secret:
        yield "<p>The snapshots are encrypted, and so are the names in them. With the key: archiver diff --sizes.</p>"
        return
    if not grown.rows:
        yield "<p>Nothing did.</p>"
        return
    rows = [
        [
            _safe(f"{row.archive} {_path(row.path)}".strip()),
            f"+{bytes_text(row.added)}" if row.added else "",
            f"-{bytes_text(row.removed)}" if row.removed else "",
        ]
        for row in grown.rows
    ]
    yield from _table(("archive and directory", ">came", ">went"), rows)


def _space(stores: Sequence[StoreFacts]) -> Iterator[str]:
    there = [store for store in stores if store.absent is None and store.total]
    if there:
        yield "<h2>Room</h2>"
        rows = [
            [
                _safe(store.path),
                _meter(1 - store.available / store.total, store.available < store.total // 20),
                f"{bytes_text(store.available)} of {bytes_text(store.total)} free",
            ]
            for store in there
        ]
        yield from _table(("store", "", ">room"), rows)


def _runs(runs: Sequence[Run]) -> Iterator[str]:
    yield "<h2>Runs</h2>"
    if not runs:
        yield "<p>None yet.</p>"
        return
    rows = []
    for run in runs[:_RUNS]:
        word, tone = _result(run)
        took = age_text(run.ended - run.began) if run.ended is not None else ""
        steps = " ".join(
            f'<span class="step {_TONE[step.state]}" title="{_safe(f"{step.target}: {step.state}")}">'
            f"{_safe(step.name)}</span>"
            for step in run.steps
        )
        rows.append([str(run.number), time_text(run.began), f'<span class="{tone}">{_safe(word)}</span>', took, steps])
    yield from _table((">run", "began", "result", ">took", "steps"), rows)
    if len(runs) > _RUNS:
        yield f'<p class="faint">And {len(runs) - _RUNS} before.</p>'


def _steps(steps: Sequence[StepResult]) -> Iterator[str]:
    if not steps:
        return
    yield "<h2>Steps</h2>"
    rows = [
        [
            _safe(step.name),
            _safe(step.target),
            f'<span class="{_TONE[step.state]}">{_safe(step.state)}</span>',
            age_text(step.seconds),
            _safe(step.text),
        ]
        for step in steps
    ]
    yield from _table(("step", "where", "result", ">took", ""), rows)
    yield from _chart(
        lambda: charts.durations([(f"{step.name} {step.target}", step.seconds) for step in steps], "Time of each step")
    )


def _result(run: Run) -> tuple[str, str]:
    if run.state == "crashed":
        return "crashed", "bad"
    if run.state == "running":
        return "running", "fair"
    states = [step.state for step in run.steps]
    worst = max((_TONE[state] for state in states), key=("good", "fair", "bad").index, default="fair")
    if run.exit_code == 0:
        return "done", "good"
    return (f"exit code {run.exit_code}", worst if worst != "good" else "fair")


def _chart(draw: charts.Draw) -> Iterator[str]:
    yield f"<figure>{draw()}</figure>" if charts.has_charts() else f'<p class="faint">{_safe(_NO_CHARTS)}</p>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Cells are HTML; a header that starts with ``>`` aligns its column to the right."""
    marks = [' class="number"' if name.startswith(">") else "" for name in header]
    heads = "".join(f"<th{mark}>{_safe(name.lstrip('>'))}</th>" for mark, name in zip(marks, header, strict=True))
    yield f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>'
    for row in rows:
        yield "<tr>" + "".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, row, strict=True)) + "</tr>"
    yield "</tbody></table></div>"


def _path(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _safe(text: str) -> str:
    """Whatever a name is made of, it is text."""
    return html.escape(plain(text))
