"""Groups of commands whose modules are imported when a command is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class Commands(click.Group):
    """``table``: of each command its module in ``archiver.cli`` and the function there."""

    def __init__(self, *arguments: Any, table: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self._table.get(cmd_name)
        if place is None:
            return None
        command = getattr(importlib.import_module(f"archiver.cli.{place[0]}"), place[1])
        assert isinstance(command, click.Command)
        return command
