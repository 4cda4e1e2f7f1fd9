"""Options that are the fields of a class: those that several commands share, and a method's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

_GIVEN = "chip.settings"


def command(function: Callable[..., None]) -> Callable[..., None]:
    """The function as Typer takes it: in place of a parameter that is a dataclass, an option for each of its fields.

    So a list of options that several commands have stands once, as that class.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, type[Any]] = {name: kind for name, kind in hints.items() if _is_group(kind)}

    def run(**values: Any) -> None:
        made = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        function(**values, **made)

    parameters = list(_expanded(function, hints))
    setattr(run, "__signature__", Signature(parameters))  # noqa: B010
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    return run


def _is_group(kind: Any) -> bool:
    return is_dataclass(kind)


def _expanded(function: Callable[..., None], hints: Mapping[str, Any]) -> Iterator[Parameter]:
    for name, parameter in signature(function).parameters.items():
        if _is_group(hints[name]):
            yield from _expanded(hints[name], get_type_hints(hints[name], include_extras=True))
        else:
            yield parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name])


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
