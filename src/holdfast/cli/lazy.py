"""Groups of commands whose modules are imported only when one is called: `--help` and lists stay fast."""

import importlib
from typing import Any

import typer
from typer.core import TyperGroup


def lazy_group(commands: dict[str, str]) -> type[TyperGroup]:
    """A group class over `{command: module}`; a module has `command` or, for a group, `app`."""

    class LazyGroup(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return list(commands)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name not in commands:
                return None
            module = importlib.import_module(commands[cmd_name])
            if hasattr(module, "app"):
                found = typer.main.get_group(module.app)
            else:
                one = typer.Typer(add_completion=False, rich_markup_mode=None)
                epilog = getattr(module, "EXAMPLE", None)
                one.command(cmd_name, epilog=f"Example: {epilog}" if epilog else None)(module.command)
                found = typer.main.get_command(one)  # type: ignore[assignment]
            found.name = cmd_name
            return found

    return LazyGroup


def group(package: str, commands: str, summary: str) -> typer.Typer:
    """The app of a folder; `commands` are its files' names (a last `_` avoids a keyword, others mean `-`)."""
    modules = {name.rstrip("_").replace("_", "-"): f"{package}.{name}" for name in commands.split()}
    app = typer.Typer(
        cls=lazy_group(modules),
        help=summary,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def _group() -> None:
        pass

    _group.__doc__ = summary
    return app
