"""Whether the machine is on battery, and what a job makes of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from archiver.errors import Skipped
from archiver.jobs.power import Supply, is_metered, refusal, supply
from archiver.jobs.profile import Power
from tests.jobs.jobs import DAY, NIGHT, Job, states, write_supplies

MAINS, NO_MAINS = {"type": "Mains", "online": "1"}, {"type": "Mains", "online": "0"}
MOUSE = {"type": "Battery", "scope": "Device", "status": "Discharging", "capacity": "5"}


def battery(status: str, capacity: str = "80") -> dict[str, str]:
    return {"type": "Battery", "status": status, "capacity": capacity}


@pytest.mark.parametrize(
    ("supplies", "found"),
    [
        ([], Supply(False, None)),
        ([MAINS], Supply(False, None)),
        ([MAINS, battery("Charging")], Supply(False, 80)),
        ([NO_MAINS, battery("Discharging", "42")], Supply(True, 42)),
        ([battery("Discharging", "40"), battery("Unknown", "20")], Supply(True, 30)),
        ([MAINS, battery("Discharging")], Supply(False, 80)),  # it is drained on purpose
        ([{"type": "USB", "online": "1"}, battery("Full", "100")], Supply(False, 100)),
        ([NO_MAINS, MOUSE], Supply(False, None)),
        ([NO_MAINS, battery("Discharging", "?")], Supply(True, None)),
    ],
)
def test_supply(tmp_path: Path, supplies: list[dict[str, str]], found: Supply) -> None:
    assert supply(str(write_supplies(tmp_path / "sys", supplies))) == found


def test_a_machine_that_tells_nothing_has_mains(tmp_path: Path) -> None:
    assert supply(str(tmp_path / "absent")) == Supply(False, None)


@pytest.mark.parametrize(
    ("power", "metered", "reason"),
    [
        (Power("skip", 0, "run"), False, "the machine runs on battery"),
        (Power("run", 43, "run"), False, "the battery has 42 %, less than 43 %"),
        (Power("run", 42, "run"), True, None),
        (Power("run", 42, "skip"), True, "the network is metered"),
        (Power("run", 42, "skip"), False, None),
    ],
)
def test_refusal(tmp_path: Path, power: Power, metered: bool, reason: str | None) -> None:
    place = write_supplies(tmp_path / "sys", [NO_MAINS, battery("Discharging", "42")])
    assert refusal(power, str(place), lambda: metered) == reason


def test_a_job_on_battery_is_skipped_with_a_due_date(tmp_path: Path) -> None:
    job = Job(tmp_path, '[max-age]\nsnapshot = "2d"\n')
    job.run()
    job.clock.time += DAY
    place = str(write_supplies(tmp_path / "sys", [NO_MAINS, battery("Discharging")]))
    run = job.run(supplies=place)
    assert (run.exit_code, run.steps) == (Skipped.exit_code, ())
    assert (run.text, run.due) == ("skipped: the machine runs on battery", NIGHT + 2 * DAY)
    assert len(job.snapshots()) == 1
    assert states(job.run(supplies=place, any_power=True))["backup"] == "ok"


def program(place: Path, name: str, text: str) -> None:
    place.mkdir(exist_ok=True)
    (place / name).write_text(f"#!/bin/sh\n{text}\n")
    (place / name).chmod(0o755)


def test_no_sleep_while_a_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps the machine awake is there while the hooks run, and gone afterwards."""
    began, ended = tmp_path / "began", tmp_path / "ended"
    program(tmp_path / "bin", "systemd-inhibit", f'echo "$@" > {began}; cat; echo > {ended}')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    wait = f"for i in $(seq 500); do test -s {began} && break; sleep 0.01; done; test -s {began} && ! test -e {ended}"
    job = Job(tmp_path, f"[[hook]]\nwhen = 'before'\ncommand = '''{wait}'''\nrequired = true\n")
    assert job.run("backup", keep_awake=True).exit_code == 0
    assert "--what=sleep:idle" in began.read_text() and began.read_text().split()[-1] == "cat"
    assert ended.exists()


@pytest.mark.parametrize(("said", "metered"), [("no\n\nno", False), ("no\n\nyes (guessed)", True), ("yes", True)])
def test_metered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, metered: bool) -> None:
    program(tmp_path / "bin", "nmcli", f"printf '{said}\\n'")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    assert is_metered() is metered


def test_without_networkmanager_nothing_is_metered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not is_metered()
