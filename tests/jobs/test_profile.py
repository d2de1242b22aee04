"""Profiles: every kind of mistake, and where values come from."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from archiver.browse.verify_result import Budget
from archiver.errors import NotFound, UsageError
from archiver.jobs.load import ProfileProblem, load, read
from archiver.jobs.places import find, profiles
from archiver.jobs.profile import Channel, Schedule
from archiver.jobs.tables import Origin
from tests.cli.command import ROOT, ask, call
from tests.jobs.jobs import Job

GOOD = 'store = "/mnt/backup"\nsources = ["/home", "etc.pxar:/etc"]\n'

# What is written below GOOD, and the one sentence about it.
WRONG = {
    'sto = "/x"': "3: sto is unknown; is store meant?",
    "frobnicate = 1": "3: frobnicate is unknown; here are allowed: store, stores,",
    'stores = ["/a", "/b"]': "3: store and stores are both given; one of them is allowed",
    'type = "laptop"': "3: type is 'laptop'; host or ct or vm is allowed",
    'id = "my laptop"': "3: id is 'my laptop': ",
    "id = 7": "3: id is 7; a text is allowed",
    'namespace = "a//b"': "3: namespace is 'a//b': ",
    'owner = "me"': "3: owner is 'me': ",
    'mode = "fast"': "3: mode is 'fast'; metadata or data or legacy is allowed",
    "audit = 101": "3: audit is 101; a number from 0 to 100 is allowed",
    'exclude-caches = "yes"': "3: exclude-caches is 'yes'; true or false is allowed",
    'exclude = ["a", ""]': "3: exclude[1] is ''; a text is allowed",
    "all-file-systems = true\ninclude-dev = '/mnt'": "4: include-dev and all-file-systems are both given",
    "keep = 7": "3: keep is 7; a table is allowed: [keep]",
    "[keep]\ndaily = 0": "4: keep.daily is 0; a whole number from 1 to 1000000 is allowed",
    "[keep]\ndaily = true": "4: keep.daily is true; a whole number from 1 to 1000000 is allowed",
    "[keep]\nwithin = '3 days'": "4: keep.within: '3 days' is no duration; write years, months, days and hours",
    "[keep]\ndayly = 7": "4: keep.dayly is unknown; is daily meant?",
    "[gc]\nevery = '1 week'": "4: gc.every is '1 week'; a time span such as 90s, 10m, 36h, 2d, 1w or 1d12h is allowed",
    "[gc]\nevery = '1d1d'": "4: gc.every is '1d1d'; a time span",
    "[verify]\nbudget = 'much'": "4: verify.budget: 'much' is no size; write a time, 10m or 2h",
    "[max-age]\nsnapshot = 'soon'": "4: max-age.snapshot is 'soon'; a time span such as 90s, 10m,",
    "[sync]\ntarget = '/x'": "3: sync is one of several: write [[sync]] above each of them",
    "[[sync]]\nevery = '1d'": "3: sync[0].target is missing: the directory of the store to copy to",
    "[[sync]]\ntarget = 'usb'": "4: sync[0].target: 'usb' is relative; a path from / or ~ is allowed",
    "[[sync]]\ntarget = '/mnt/backup'": "4: sync[0].target is the store itself; another store is allowed",
    "[[sync]]\ntarget = '/x'\nrate = 'fast'": "5: sync[0].rate: 'fast' is no size; write bytes a second",
    "[[sync]]\ntarget = '/x'\ngroups = ['laptop']": "5: sync[0].groups[0]: 'laptop' is no group filter",
    "[[tape]]\ndrive = 'a'": "3: tape[0].pool is missing: the pool of media to copy to",
    "[drill]\nfiles = 0": "4: drill.files is 0; a whole number from 1 to 10000 is allowed",
    "[[hook]]\ncommand = 'true'": "3: hook[0].when is missing: before, after, on-failure or finally",
    "[[hook]]\nwhen = 'never'\ncommand = 'true'": "4: hook[0].when is 'never'; before or after or on-failure",
    "[[hook]]\nwhen = 'after'": "3: hook[0].command is missing: what a shell is to run",
    "[[hook]]\nwhen = 'after'\ncommand = ' '": "5: hook[0].command is ' '; a text is allowed",
    "[schedule]\ndelay = '1h'": '3: schedule.at is missing: a time of day such as at = "02:00"',
    "[schedule]\nat = '24:00'": "4: schedule.at is '24:00'; a time of day such as 02:00 or 21:30 is allowed",
    "[schedule]\nat = '02:00'\ndays = ['mon', 'xyz']": "5: schedule.days[1] is 'xyz'; mon or tue or",
    "[power]\non-battery = 'maybe'": "4: power.on-battery is 'maybe'; skip or run is allowed",
    "[power]\nmin-charge = 101": "4: power.min-charge is 101; a whole number from 0 to 100 is allowed",
    "[guard]\nshare = 'half'": "4: guard.share is 'half'; a number from 0 to 100 is allowed",
    "[[notify]]\nto = 'me'": "3: notify[0].kind is missing: desktop or mail or webhook or command or heartbeat",
    "[[notify]]\nkind = 'pager'": "4: notify[0].kind is 'pager'; desktop or mail or webhook or command or heartbeat",
    "[[notify]]\nkind = 'mail'": "3: notify[0].to is missing: the address to write to",
    "[[notify]]\nkind = 'webhook'\nto = 'example.org'": "5: notify[0].to is no URL: one with https:// or http://",
    "[[notify]]\nkind = 'desktop'\nto = 'me'": "5: notify[0].to",
    "[[notify]]\nkind = 'desktop'\non = 'always'": "5: notify[0].on is 'always'; failure or overdue or recovery",
    "[key]\ncrypt = 'aes'": "4: key.crypt is 'aes'; none or encrypt or sign-only is allowed",
    "[key]\nfile = '/k'\ncrypt = 'none'": '5: crypt is "none", but a key file is named',
    "[key]\npassphrase-file = '/p'\npassphrase-command = 'x'": "5: a passphrase file and a command are both given",
    "[stdin-from-command]\n'db.pxar' = 'dump'": "4: 'db.pxar' is no name of an image",
    "[stdin-from-command]\n'db.img' = 3": "4: stdin-from-command.db.img is 3; a text is allowed",
    "[max-age]\nsnapshot = '999999w'": "4: max-age.snapshot is '999999w'; a time span of at most a hundred years",
    "[schedule]\nat = []": "4: schedule.at is empty; at least one time of day is allowed",
    "[[notify]]\nkind = 'desktop'\non = []": "5: notify[0].on is empty; at least one of failure, overdue,",
    "id = 0x" + "f" * 9000: "3: id is a very large number; a text is allowed",
    "[keep]\ndaily = 0x" + "f" * 9000: "4: keep.daily is a very large number; a whole number from 1 to",
    "id = 1\nnote = " + "9" * 5000: "4: this is no TOML: a number has thousands of digits",
    "id." + "a." * 50 + "a = 1": "3: id is {'a': {'a': ",
    "id." + "a." * 5000 + "a = 1": "3: its arrays or tables are nested too deeply",
    "x" * 5000 + " = 1": f"3: {'x' * 57}... is unknown; here are allowed: store,",
    "x = ": "3: this is no TOML: ",
    "[keep]\n[keep]": "4: this is no TOML: ",
    "x = 1\nx = 1": "4: this is no TOML: ",
    'x = "\\': "3: this is no TOML: ",
}

# Whole files.
WRONG_FILES = {
    "sources = ['/home']": "store is missing: the directory of the store to back up into",
    "store = 'x'\nsources = ['/home']": "1: store: 'x' is relative; a path from / or ~ is allowed",
    "stores = ['/a', '/a']\nsources = ['/home']": "1: stores names one of them twice",
    "store = '/x'": "sources is missing: what is to be saved",
    "store = '/x'\nsources = []": "2: sources is empty; at least one source is allowed",
    "stores = []\nsources = ['/home']": "1: stores is empty; at least one store is allowed",
    "store = '/x'\nsources = ['home']": "2: sources[0]: 'home' is relative; a path from / or ~ is allowed",
    "store = '/x'\nsources = ['a.img:-']": "2: sources[0]: 'a.img:-' is standard input, which no job has",
    "store = '/x'\nsources = ['a b.pxar:/x']": "2: sources[0]: 'a b.pxar:/x' is ",
    "store = '/x'\nsources = [\n'/a/x',\n'/b/x']": "2: sources: /a/x and /b/x would both be x.pxar; give one",
    "store = '/x'\nsources = ['job.conf:/x']": "2: sources: job.conf is the copy of this profile in each snapshot",
    "store = '/x'\nsources = ['/home', 3]": "2: sources[1] is 3; a text is allowed",
    "store = '/x'\nsources = '\udcff'": "2: this is no UTF-8 text",
    "x = " + "[" * 5000: "its arrays or tables are nested too deeply",
}


def told(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "x.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    loaded = read("x", str(path))
    assert loaded.profile is None
    return [str(problem).removeprefix(f"{path}:").strip() for problem in loaded.problems]


@pytest.mark.parametrize("text", WRONG)
def test_each_mistake_is_one_sentence(tmp_path: Path, text: str) -> None:
    (found,) = told(tmp_path, GOOD + text)
    assert found.startswith(WRONG[text])


@pytest.mark.parametrize("text", WRONG_FILES)
def test_each_mistake_of_a_whole_file(tmp_path: Path, text: str) -> None:
    (found,) = told(tmp_path, text)
    assert found.startswith(WRONG_FILES[text])


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    found = told(tmp_path, GOOD + "mode = 'x'\n[keep]\ndaily = 0\n[[sync]]\nx = 1\n[[notify]]\nkind = 'mail'\n")
    assert [line.split(":")[0] for line in found] == ["3", "5", "6", "7", "8"]


@pytest.mark.parametrize("text", ["mode = 'x'", "[[hook]]", "x"])
def test_nothing_is_done_with_a_wrong_profile(tmp_path: Path, text: str) -> None:
    job = Job(tmp_path, text)
    done = call("job", "run", "nightly", "--json")
    assert done.code == 2
    assert done.error["code"] == "profile" and str(job.path) in done.error["message"]
    assert job.snapshots() == [] and not Path(job.history.directory).exists()
    assert call("job", "run", "nightly").code == call("job", "check", "nightly").code == 2
    assert call("job", "show", "nightly").code == call("job", "ack", "nightly").code == 2
    assert call("job", "status").code == 2 and call("job", "list").code == 0


def test_who_may_write_it(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(GOOD)
    assert load("x", str(path)).stores == ("/mnt/backup",)
    path.chmod(0o666)
    with pytest.raises(ProfileProblem, match="everybody may write it"):
        load("x", str(path))
    path.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
        with pytest.raises(ProfileProblem, match="belongs to somebody else"):
            load("x", str(path))


def test_files_that_are_no_profiles(tmp_path: Path) -> None:
    (tmp_path / "dir.toml").mkdir()
    os.mkfifo(tmp_path / "fifo.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (2 << 20))
    for name in ("dir", "fifo", "large"):
        with pytest.raises(UsageError):
            load(name, str(tmp_path / f"{name}.toml"))


def test_where_profiles_are(tmp_path: Path) -> None:
    own, system = tmp_path / "own", tmp_path / "system"
    for place, names in ((own, ("a.toml", "encryption-key.json", "b c.toml")), (system, ("a.toml", "z.toml"))):
        place.mkdir()
        for name in names:
            (place / name).write_text(GOOD)
    places = (str(own), str(system), str(tmp_path / "absent"))
    assert profiles(places) == {"a": f"{own}/a.toml", "z": f"{system}/z.toml"}
    assert find("z", places) == f"{system}/z.toml"
    with pytest.raises(NotFound):
        find("y", places)
    for name in ("../a", "", "a.toml", "-a"):
        with pytest.raises(UsageError):
            find(name, places)


def test_values_and_their_origins(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(
        GOOD + "[verify]\nbudget = 'all'\n[schedule]\nat = ['21:30', '02:00']\ndays = ['Fri', 'mon']\n"
        "[[notify]]\nkind = 'mail'\nto = 'me@example.org'\n[stdin-from-command]\n'db.img' = 'dump'\n"
        "[max-age]\ndrill = 'never'\n[key]\nfile = '~/k.json'\n"
    )
    loaded = read("x", str(path))
    profile = loaded.profile
    assert profile is not None
    assert [spec.archive for spec in profile.sources.specs] == ["home.pxar", "etc.pxar", "db.img"]
    assert profile.sources.specs[2].command == "dump"
    assert profile.verify is not None and profile.verify.budget is None
    assert profile.schedule == Schedule(((2, 0), (21, 30)), ("mon", "fri"), 1800, False)
    assert profile.channels == (Channel("mail", "me@example.org", ("failure", "overdue", "recovery")),)
    assert profile.max_age.drill is None and profile.max_age.snapshot == 3 * 86400
    assert profile.key.file == os.path.expanduser("~/k.json")
    assert loaded.origins["verify.budget"] == Origin("all", "file", 4)
    assert loaded.origins["max-age.snapshot"] == Origin("3d", "default")
    assert loaded.origins["id"].place == "machine"
    path.write_text(GOOD)
    again = load("x", str(path))
    assert again.verify is not None and again.verify.budget == Budget(seconds=600)


def test_check_show_and_list(tmp_path: Path) -> None:
    job = Job(tmp_path, "[[sync]]\ntarget = '/nowhere'\n[key]\ncrypt = 'encrypt'\n")
    document = ask("job", "check", "nightly")
    assert document.keys() == {"schema", "jobs", "good", "items"} and document["good"]
    assert [(item["line"], item["level"]) for item in document["items"]] == [(4, "note"), (6, "note")]
    assert document["items"][0].keys() == {"job", "file", "line", "text", "level"}
    shown = ask("job", "show", "nightly", "--origin")
    assert shown.keys() == {"schema", "job", "profile", "items"}
    items = {item["key"]: item for item in shown["items"]}
    assert items["store"] == {"key": "store", "value": str(job.store), "from": "file", "file": str(job.path), "line": 1}
    assert f"{job.path}:4" in call("job", "show", "nightly", "--origin").out
    assert str(job.path) not in call("job", "show", "nightly").out
    listed = ask("job", "list")
    assert listed["items"] == [{"job": "nightly", "profile": str(job.path), "last_run": None, "state": "never run"}]
    assert call("job", "check", "absent").code == call("job", "run", "absent").code == 10
    assert call("job", "check", "../x").code == 2


FULL = """
store = "/s"
sources = ["/home"]
exclude = ["x"]
exclude-caches = true
all-file-systems = false
include-dev = ["/mnt"]
mode = "data"
audit = 1
namespace = "a"
type = "host"
id = "laptop"
owner = "me@pam"
note = "n"
[stdin-from-command]
"db.img" = "dump"
[key]
file = "/k"
crypt = "encrypt"
passphrase-file = "/p"
master-public = "/m"
[keep]
last = 1
hourly = 1
daily = 1
weekly = 1
monthly = 1
yearly = 1
within = "1d"
[gc]
every = "1d"
enabled = true
[verify]
every = "1d"
budget = "1h"
enabled = true
[[sync]]
target = "/t"
every = "1d"
max-age = "never"
to-namespace = "b"
groups = ["type:host"]
transfer-last = 1
verified-only = true
remove-vanished = true
rate = "1M"
[[tape]]
pool = "p"
drive = "d"
every = "1d"
max-age = "1d"
[drill]
every = "1d"
files = 1
mebibytes = 1
scratch = "/x"
[[hook]]
when = "before"
command = "true"
required = true
timeout = "1m"
[max-age]
snapshot = "1d"
verify = "1d"
drill = "1d"
[power]
on-battery = "run"
min-charge = 1
metered = "skip"
[schedule]
at = "02:00"
days = "mon"
delay = "1m"
on-plug = true
[guard]
enabled = true
share = 1
[report]
directory = "/r"
[[notify]]
kind = "mail"
to = "me"
on = "failure"
"""


def test_readme_has_every_key(tmp_path: Path) -> None:
    """And every one that it has can be written."""
    path = tmp_path / "x.toml"
    path.write_text(FULL)
    loaded = read("x", str(path))
    assert loaded.profile is not None, loaded.problems
    keys = {key.replace("[0]", "") for key in loaded.origins}
    assert {key for key, origin in loaded.origins.items() if origin.place != "file"} == {
        "stores",
        "key.passphrase-command",
    }
    text = (ROOT / "README.md").read_text()
    section = text[text.index("| Key | Value |") :]
    found: set[str] = set()
    for first, second in re.findall(r"^\| (`.*?) \| (.*) \|$", section[: section.index("\n\n")], re.MULTILINE):
        names = re.findall(r"`([^`]*)`", first)
        if names[0].startswith("["):
            table = names[0].strip("[]")
            found |= {f"{table}.{name}" for name in re.findall(r"`([a-z-]+)`", second) if name != "prune"}
        else:
            found |= set(names)
    assert found == keys - {"stdin-from-command.db.img"}


def test_a_file_that_cannot_be_read_is_a_wrong_profile(tmp_path: Path) -> None:
    job = Job(tmp_path)
    reasons = {
        "loop": "this cannot be read: too many levels of symbolic links",
        "gone": "this cannot be read: no such file or directory",
        "zero": "this is not a regular file",
        "large": "this is larger than 1 MiB, which no profile is",
    }
    for name, target in (("loop", "loop.toml"), ("gone", "/nowhere/at/all"), ("zero", "/dev/zero")):
        (job.directory / f"{name}.toml").symlink_to(target)
    (job.directory / "large.toml").write_bytes(b"#" * ((1 << 20) + 1))
    for name, reason in reasons.items():
        for command in ("run", "check", "show", "status", "report", "ack"):
            done = call("job", command, name)
            assert done.code == 2
            assert f"{name}.toml: {reason}" in done.out + done.err
    checked = call("job", "check", "--json").document
    assert {item["job"]: item["text"] for item in checked["items"]} == reasons
    assert {item["job"]: item["state"] for item in ask("job", "list")["items"]} == {
        **dict.fromkeys(reasons, "profile wrong"),
        "nightly": "never run",
    }
    assert job.snapshots() == []


@pytest.mark.parametrize("name", ["XDG_CONFIG_HOME", "XDG_STATE_HOME"])
def test_a_home_that_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As that of a user without a home directory, whose ~ is one of the working directory's files."""
    Job(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, os.path.relpath(os.environ[name]))
    for command in ("run", "status", "report", "ack"):
        done = call("job", command, "nightly", "--json")
        text = done.error["message"] if command != "status" or "error" in done.document else done.out
        assert done.code == 2 and "is relative, and a nightly run starts anywhere" in text
