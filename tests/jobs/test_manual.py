"""Manual pages and completion: every command has them, and the programs that read them find nothing wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from archiver.cli.main import COMMANDS, cli
from archiver.cli.man_page import EXIT_CODES, man_page, page_name
from archiver.cli.manual import SHELLS, every_command
from archiver.errors import ArchiverError
from tests.cli.command import ROOT, ask, call
from tests.test_readme import documented, inner_members

CONTEXTS = list(every_command(cli))


def test_every_command_has_a_page(tmp_path: Path) -> None:
    document = ask("manpages", tmp_path / "man/man1")
    assert document.keys() - {"schema"} == documented()["manpages"].keys()
    assert inner_members(document["items"]) == documented()["manpages"]["items"]
    found = {item["command"]: Path(item["path"]).read_text() for item in document["items"]}
    assert found.keys() == {ctx.command_path for ctx in CONTEXTS}
    assert {name.split()[1] for name in found if " " in name} == COMMANDS.keys()
    assert sorted(path.name for path in (tmp_path / "man/man1").iterdir()) == sorted(map(page_name, found))
    for ctx in CONTEXTS:
        text = found[ctx.command_path].replace("\\-", "-")
        options = [param for param in ctx.command.params if isinstance(param, click.Option) and not param.hidden]
        assert all(name in text for option in options for name in option.opts + option.secondary_opts)
        for part in (".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", ".SH OPTIONS", ".SH EXIT STATUS"):
            assert f"{part}\n" in text
        assert re.search(r"\.SH NAME\narchiver\S* \\?- \S", text), ctx.command_path
    assert "wrote" in call("manpages", tmp_path / "man/man1").out  # over those that are there


def test_where_pages_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    done = call("manpages", tmp_path / "file" / "man", "--json")
    assert done.code == 1 and "man" in done.error["message"]
    assert call("manpages").code == 2


def test_exit_codes_are_those_of_the_program() -> None:
    kinds, found = [ArchiverError], set()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        found.add(kind.exit_code)
    assert found <= EXIT_CODES.keys()
    text = (ROOT / "README.md").read_text().partition("### Exit codes")[2].partition("###")[0]
    assert {int(code) for code in re.findall(r"(?:^|· )(\d+) ", text, re.MULTILINE)} == EXIT_CODES.keys()


def test_text_means_nothing_to_roff() -> None:
    @click.command(help=".TH is no macro here \\fB nor this, it's --plain\n\n'quoted\n\n\b\n.kept\n  as it is")
    def odd() -> None: ...

    page = man_page(click.Context(odd, info_name="archiver odd"))
    if shutil.which("groff") is None:
        pytest.skip("there is no groff")
    done = subprocess.run(
        ["groff", "-man", "-Tascii", "-P-c", "-P-b", "-P-u", "-ww"],
        input=page.encode(),
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    text = done.stdout.decode()
    for part in (".TH is no macro here \\fB nor this, it's --plain", "'quoted", ".kept\n", "  as it is\n"):
        assert part in text


@pytest.mark.skipif(shutil.which("groff") is None, reason="there is no groff")
def test_groff_finds_nothing_wrong(tmp_path: Path) -> None:
    pages = [page for ctx in CONTEXTS for page in man_page(ctx).splitlines(keepends=True)]
    (tmp_path / "all.1").write_text("".join(pages))
    done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", tmp_path / "all.1"], capture_output=True, check=True)
    assert done.stderr == b"" and len(done.stdout) > 10_000


@pytest.fixture
def path_with_program(tmp_path: Path) -> str:
    program = tmp_path / "bin/archiver"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m archiver "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


IN_SHELL = {
    "bash": "source {script}; COMP_WORDS=(archiver {before} {word}); COMP_CWORD={number};"
    ' _archiver_completion archiver; printf "%s\\n" "${{COMPREPLY[@]}}"',
    "fish": "source {script}; complete -C 'archiver {before} {word}'",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_completion(tmp_path: Path, path_with_program: str, shell: str) -> None:
    document = ask("completion", shell)
    assert document.keys() - {"schema"} == documented()["completion"].keys() and document["shell"] == shell
    script = tmp_path / "script"
    script.write_text(call("completion", shell).out)
    assert script.read_text().strip() == document["script"].strip() and "_ARCHIVER_COMPLETE" in document["script"]
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    subprocess.run([shell, "-n", script], check=True, capture_output=True)
    if shell not in IN_SHELL:
        return
    for before, word, wanted in (("", "rescue", "rescue-script"), ("backup", "--exclude-c", "--exclude-caches")):
        line = IN_SHELL[shell].format(script=script, before=before, word=word, number=2 if before else 1)
        done = subprocess.run(
            [shell, "-c", line],
            env=os.environ | {"PATH": path_with_program},
            capture_output=True,
            text=True,
            check=True,
        )
        assert [found.split("\t")[0] for found in done.stdout.split("\n") if found] == [wanted], done.stderr


def test_completion_of_another_shell() -> None:
    done = call("completion", "tcsh", "--json")
    assert done.code == 2 and done.error["code"] == "usage"


def test_a_shell_is_never_shown_an_error(path_with_program: str) -> None:
    done = subprocess.run(
        ["archiver"],
        env=os.environ | {"PATH": path_with_program, "_ARCHIVER_COMPLETE": "bash_complete", "COMP_WORDS": ""},
        capture_output=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (b"", b"")
