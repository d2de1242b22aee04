"""Reports: what they tell, that they load nothing, that nothing in them is taken for markup, and how they look."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from archiver.jobs.history import Run, StepResult, state_directory
from archiver.jobs.report import charts
from archiver.jobs.report.charts import duration_ticks, size_ticks, time_ticks
from archiver.jobs.report.data import Overview, RunReport, SnapshotFacts, StoreFacts
from archiver.jobs.report.grown import Grown, Row, _telling
from archiver.jobs.report.page import overview_page, run_page
from archiver.jobs.report.text import age_text, bytes_text
from archiver.jobs.standing import Age, Standing, Trouble
from archiver.store.coverage import Coverage
from tests.cli.command import ask, call
from tests.test_readme import documented, inner_members

pytestmark = pytest.mark.in_memory

NOW = 1_790_000_000
DAY = 86400
HOSTILE = "</title><script>alert(1)</script>\x1b[31m\udcff\u202e'\"&"
VOID = {"meta", "br", "hr"}


def overview_of(count: int, path: str = "/srv/store") -> Overview:
    """A job with so many snapshots, each made by a run."""
    moments = [NOW - DAY * (count - 1 - number) for number in range(count)]
    snapshots = tuple(SnapshotFacts(when, 10**11 + when % 10**9, "ok") for when in moments)
    runs = tuple(
        Run(
            "home",
            number + 1,
            when,
            "done",
            when + 60,
            0,
            "",
            None,
            (StepResult("backup", path, "ok", 0, path, when, 42.0, {"stored_bytes": when % 10**8}),),
        )
        for number, when in enumerate(moments)
    )[::-1]
    ages = (
        Age("backup", path, moments[-1] if count else None, NOW - DAY, 3 * DAY, NOW),
        Age("sync", path, None, NOW - 30 * DAY, 7 * DAY, NOW),
        Age("drill", path, None, NOW - DAY, None, NOW),
    )
    troubles = (Trouble("overdue sync", "overdue", f"too old is the newest copy in {path}", NOW),)
    odd = path.encode("utf-8", "replace")
    rows = (Row("a.pxar", b"/big", 10**9, 5), Row("a.pxar", odd, 7, 0))
    grown = Grown("host/x/1", "host/x/2", False, rows)
    coverage = Coverage((5 * 10**9, 10**9, 0), 10**8, 10**7, 0, NOW - 100 * DAY)
    store = StoreFacts(path, None, snapshots, coverage if count else None, grown if count > 1 else None, 2**40, 2**39)
    absent = StoreFacts("/media/drive", "there is no store in /media/drive")
    standing = Standing("home", runs[0] if runs else None, False, ages, troubles)
    return Overview("home", path, NOW, standing, (store, absent), runs)


def run_of(path: str = "/srv/store") -> RunReport:
    found = overview_of(3, path)
    assert found.stores[0].grown is not None
    return RunReport("home", path, NOW, found.runs[0], (found.stores[0].grown,))


class Checked(HTMLParser):
    """Everything that would load something or run is an error, and so is a tag that is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "image", "iframe", "object", "embed", "base", "form", "use", "a")
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on") and name not in ("src", "href", "xlink:href", "srcset", "action", "data")
            assert "url(" not in (value or "") and "javascript:" not in (value or "")
            if "://" in (value or ""):
                assert name.startswith("xmlns") and value == "http://www.w3.org/2000/svg"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            assert "url(" not in data and "@import" not in data and "//" not in data
        else:
            self.text += data


@pytest.mark.parametrize("count", [0, 1, 2, 400])
def test_overview(count: int) -> None:
    page = overview_page(overview_of(count))
    found = Checked(page)
    assert "default-src 'none'" in page
    assert found.tags.count("svg") == (0 if count == 0 else 3)
    assert "too old is the newest copy" in found.text and "needs attention" in found.text
    assert "/media/drive is not there now" in found.text
    expected = {
        0: ["has no snapshot of this job", "No run has stored anything yet", "None yet."],
        1: ["one snapshot, it has 93.9 GiB"],
        2: ["2 snapshots, the newest has", "+954 MiB", "2 of 2 snapshots verified as a whole, 0 not yet"],
        400: ["400 snapshots, the newest has", "And 370 before."],
    }
    for text in expected[count]:
        assert text in found.text
    assert len(page) < 300_000


def test_run() -> None:
    found = Checked(run_page(run_of()))
    for text in ("Run 3 of the job home", "done", "Exit code 0. It took 60 seconds.", "42 seconds", "What grew"):
        assert text in found.text
    crashed = run_of()
    page = run_page(RunReport("home", "x", NOW, Run("home", 9, NOW, "crashed", text="it ended without a word"), ()))
    assert "crashed" in Checked(page).text and crashed.run.number == 3


def test_names_are_text() -> None:
    for page in (overview_page(overview_of(2, HOSTILE)), run_page(run_of(HOSTILE))):
        found = Checked(page)
        assert "<script>alert(1)</script>" in found.text.replace("\N{REPLACEMENT CHARACTER}", "")
        assert "\x1b" not in page and "\u202e" not in page
        page.encode()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygal", None)
    found = Checked(overview_page(overview_of(5)))
    assert "svg" not in found.tags and "pip install" in found.text and "5 snapshots" in found.text


def test_points_have_titles_without_scripts() -> None:
    svg = charts.size_lines([("a", [(NOW, 10**9), (NOW + DAY, 2 * 10**9)])], "Size")
    assert svg.startswith("<svg") and "954 MiB" in svg and svg.count("<title>") == 2


def test_bars_are_wide_enough_to_be_seen() -> None:
    """Also those of runs that follow each other in seconds."""
    svg = charts.size_bars("stored", [(NOW, 5), (NOW + 3000, 7), (NOW + 3001, 9)], "Stored")
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([0-9.]+)"[^>]*class="rect reactive', svg)]
    assert len(widths) == 3 and min(widths) > 2


@given(some.integers(min_value=0, max_value=1 << 62))
def test_size_ticks(most: int) -> None:
    ticks = size_ticks(most)
    assert ticks[0] == 0 and ticks[-1] >= most and 2 <= len(ticks) <= 12
    assert len(set(ticks)) == len(ticks)


@given(some.floats(min_value=0, max_value=1e6))
def test_duration_ticks(most: float) -> None:
    ticks = duration_ticks(most)
    assert ticks[0] == 0 and ticks[-1] >= most and 2 <= len(ticks) <= 14


@given(some.integers(0, 2**31), some.integers(0, 2**31))
def test_time_ticks(first: int, length: int) -> None:
    ticks = time_ticks(first, first + length)
    assert ticks[0] == first and ticks[-1] == first + length and len(ticks) <= 9 and ticks == sorted(set(ticks))


def test_figures_in_words() -> None:
    sizes = [0, 999, 1000, 10**6, 123456789, 10**12]
    assert list(map(bytes_text, sizes)) == ["0 B", "999 B", "0.98 KiB", "977 KiB", "118 MiB", "931 GiB"]
    assert bytes_text(512 << 20, like=2 << 30) == "0.5 GiB"
    ages = [0, 0.25, 1, 59, 121, 7200, 3 * DAY, 800 * DAY]
    assert list(map(age_text, ages)) == [
        "0 seconds",
        "0.2 seconds",
        "1 second",
        "59 seconds",
        "2 minutes",
        "2 hours",
        "3 days",
        "2 years",
    ]


def test_directories_that_tell_nothing_more_are_left_out() -> None:
    rows = [Row("a", b"/", 9, 1), Row("a", b"/x", 9, 1), Row("a", b"/x/y", 5, 1), Row("a", b"/x/z", 4, 0)]
    assert [row.path for row in _telling(rows)] == [b"/x", b"/x/y", b"/x/z"]
    assert _telling([Row("a", b"/", 0, 0)]) == []


# -- of a real job ---------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job that was run twice; what is below ``files`` is saved."""
    (tmp_path / "files/deep/down").mkdir(parents=True)
    (tmp_path / "files/deep/down/first").write_bytes(b"first")
    ask("init", tmp_path / "store")
    profile = tmp_path / ".xdg/config/archiver/home.toml"
    profile.parent.mkdir(parents=True)
    profile.write_text(f'store = "{tmp_path}/store"\nsources = ["{tmp_path}/files"]\n[keep]\nlast = 9\n')
    assert call("job", "run", "home").code == 0
    (tmp_path / "files/deep/down/second").write_bytes(bytes(100_000))
    assert call("job", "run", "home").code == 0
    return tmp_path


def test_documents(job: Path) -> None:
    document = ask("job", "report", "home")
    assert document.keys() == {"schema", "job", "host", "time", "standing", "stores", "items", "path"}
    assert [item["run"] for item in document["items"]] == [2, 1] and document["path"] is None
    (store,) = document["stores"]
    assert store.keys() == {"path", "absent", "total", "available", "snapshots", "coverage", "grown"}
    assert len(store["snapshots"]) == 2 and store["snapshots"][0].keys() == {"time", "size", "verify"}
    assert store["coverage"].keys() == {
        "within_7_days",
        "within_30_days",
        "within_90_days",
        "longer",
        "never",
        "damaged_chunks",
        "oldest",
    }
    assert store["coverage"]["within_7_days"] > 0 == store["coverage"]["never"]
    assert store["grown"]["items"][0] == {
        "archive": "files.pxar",
        "path": "/deep/down",
        "bytes_added": 100_000,
        "bytes_removed": 0,
    }
    one = ask("job", "report", "home", job / "page.html", "--run", "last")
    assert one.keys() == {"schema", "job", "host", "time", "run", "items", "path"}
    assert one["run"]["run"] == 2 and one["items"][0]["items"][0]["path"] == "/deep/down"
    assert ask("job", "report", "home", "--run", "1")["items"] == []  # nothing before it to compare with
    assert "Run 2 of the job home" in Checked((job / "page.html").read_text()).text


def test_readme_tells_the_members(job: Path) -> None:
    table = documented()
    for name, arguments in {"job report": (), "job report --run": ("last",)}.items():
        document = ask("job", "report", "home", *name.split()[2:], *arguments)
        assert document.keys() - {"schema"} == table[name].keys()
        for member, inner in table[name].items():
            if inner:
                assert inner_members(document[member]) == inner, (name, member)


def test_written_after_each_run(job: Path) -> None:
    """Where the profile says so; pages of runs that are not remembered go, and no other file."""
    place, profile = job / "pages", job / ".xdg/config/archiver/home.toml"
    profile.write_text(profile.read_text() + f'[report]\ndirectory = "{place}"\n')
    place.mkdir()
    for name in ("home-00000900.html", "home-mine.html", "other-00000001.html"):
        (place / name).write_text("x")
    assert call("job", "run", "home", "--any-power").code == 0
    names = ["home-00000003.html", "home-mine.html", "home.html", "other-00000001.html"]
    assert sorted(path.name for path in place.iterdir()) == names
    assert "Run 3 of the job home" in Checked((place / names[0]).read_text()).text
    assert "Backup job home" in Checked((place / "home.html").read_text()).text
    shutil.rmtree(place)
    place.write_text("in the way")
    done = call("job", "run", "home", "--any-power", "--json")
    assert done.code == 0 and "the report of the run is missing" in done.err


def test_pages(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(job)
    assert call("job", "report", "home").out == "wrote home.html\n"
    page = Checked((job / "home.html").read_text())
    assert "all is well" in page.text and "/deep/down" in page.text and page.tags.count("svg") == 3
    assert (job / "home.html").stat().st_mode & 0o777 == 0o600
    assert "Backup job home" in Checked(call("job", "report", "home", "-").out).text


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("absent",), 10),
        (("../home",), 2),
        (("home", "--run", "7"), 10),
        (("home", "--run", "x"), 2),
        (("home", "-"), 2),
        (("home", "{job}/absent/page.html"), 1),
    ],
)
def test_refused(job: Path, arguments: tuple[str, ...], code: int) -> None:
    done = call("job", "report", *(text.format(job=job) for text in arguments), "--json")
    assert done.code == code and done.error["message"]


def test_no_run_yet_and_no_store(job: Path) -> None:
    shutil.rmtree(job / "store")
    shutil.rmtree(state_directory({"XDG_STATE_HOME": str(job / ".xdg/state")}, "home"))
    document = ask("job", "report", "home", job / "page.html")
    assert document["items"] == [] and "there is no directory" in document["stores"][0]["absent"]
    assert "not saved yet" in Checked((job / "page.html").read_text()).text
    done = call("job", "report", "home", "--run", "last")
    assert done.code == 10 and "no run yet" in done.err


def test_history_that_is_damaged(job: Path) -> None:
    runs = sorted((job / ".xdg/state/archiver/jobs/home/runs").iterdir())
    runs[0].write_bytes(b"\xff{")
    assert [item["run"] for item in ask("job", "report", "home")["items"]] == [2]


def test_looking_writes_nothing(job: Path) -> None:
    def everything() -> dict[str, tuple[int, int]]:
        places = [path for place in ("store", ".xdg/state") for path in (job / place).rglob("*")]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in places if "/db" not in str(path)}

    before = everything()
    ask("job", "report", "home")
    assert everything() == before


# -- as a picture ----------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def first_pixel(png: Path) -> bytes:
    """Of a PNG with eight bits a colour: whatever the filter of its first line is, that pixel is as it is stored."""
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[24] == 8 and data[25] in (2, 6)
    parts, place = b"", 8
    while place < len(data):
        length = int.from_bytes(data[place : place + 4])
        if data[place + 4 : place + 8] == b"IDAT":
            parts += data[place + 8 : place + 8 + length]
        place += length + 12
    return zlib.decompress(parts)[1:4]


@pytest.mark.skipif(BROWSER is None, reason="there is no browser")
@pytest.mark.parametrize(("scheme", "color"), [("1", "fbfbfc"), ("0", "14161a")], ids=["light", "dark"])
def test_rendered(tmp_path: Path, scheme: str, color: str) -> None:
    (tmp_path / "page.html").write_text(overview_page(overview_of(400)))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}/browser"]
    options += [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1000,2400"]
    assert BROWSER is not None
    subprocess.run(
        [BROWSER, *options, f"--screenshot={tmp_path}/page.png", str(tmp_path / "page.html")],
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert first_pixel(tmp_path / "page.png").hex() == color
    assert (tmp_path / "page.png").stat().st_size > 40_000  # more than an empty page


@pytest.mark.parametrize("moments", [(1000, 1001, 1003), (1000, 1001), (1000, 1001, 1002, 1000 + 30 * 86400), (1000,)])
def test_bars_can_be_seen_whatever_is_between_them(moments: tuple[int, ...]) -> None:
    drawn = charts.size_bars("stored", [(moment, 5_000_000) for moment in moments], "x")
    widths = re.findall(r'<rect [^>]*width="([0-9.]+)"[^>]*class="rect reactive', drawn)
    assert len(widths) == len(moments) and all(float(width) >= 1 for width in widths)
