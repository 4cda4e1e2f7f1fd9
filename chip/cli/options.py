"""Options of `chip edit` that methods bring along: one for each setting, made from the fields of the method's class."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, Signature
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

_GIVEN = "chip.settings"


class CommandsWithMethodSettings(TyperGroup):
    """The commands; `edit` gets the methods' options when it is called, since methods bring torch."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and command.name == "edit":
            known = {parameter.name for parameter in command.params}
            command.params.extend(option for option in _method_options() if option.name not in known)
        return name, command, rest


def given_settings(context: typer.Context) -> dict[str, float | str]:
    """The settings of methods that stand on the command line."""
    settings: dict[str, float | str] = context.meta.get(_GIVEN, {})
    return settings


def _method_options() -> list[Any]:
    """One option for each setting, as Typer makes them of a function's parameters."""

    def settings(**_: Any) -> None: ...

    setattr(settings, "__signature__", Signature(list(_parameters().values())))  # noqa: B010
    holder = typer.Typer(add_completion=False)
    holder.command()(settings)
    options = [option for option in typer.main.get_command(holder).params if option.name != "help"]
    for option in options:
        option.expose_value, option.callback = False, _remember
    return options


def _parameters() -> Mapping[str, Parameter]:
    from chip.methods import find_methods
    from chip.methods.settings import settings_of

    parameters: dict[str, Parameter] = {}
    for method in find_methods().values():
        for name, (field, meaning) in settings_of(method).items():
            kind = str if meaning.words else float
            option = typer.Option(
                f"--{name.replace('_', '-')}",
                help=meaning.help,
                metavar="|".join(("FLOAT", *meaning.words)),
                show_default=False if field.default is None else f"{field.default}",
                rich_help_panel=f"Settings of --method {method.name}",
            )
            parameters.setdefault(
                name, Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])
            )
    return parameters


def _remember(context: Any, parameter: Any, value: float | str | None) -> None:
    if value is not None:
        context.meta.setdefault(_GIVEN, {})[parameter.name] = _number(value)


def _number(value: float | str) -> float | str:
    """A number where it is one; words are for the method to know."""
    try:
        return float(value)
    except ValueError:
        return value
