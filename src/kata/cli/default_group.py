"""A group of commands one of which is meant if none is named: `kata logs SANDBOX` beside `kata logs parse FILE`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class ShowGroup(TyperGroup):
    """The command `show` may be left out, but for what is called as another command of the group is."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command's name in its place."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)
