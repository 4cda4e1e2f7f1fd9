"""How a page is made from its template, and written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from chip._version import __version__
from chip.errors import InputError, one_line, printable
from chip.report import formatting

_FOOTER = 200  # bytes at a page's end, among them those that say who wrote it


@cache
def environment() -> Environment:
    """The templates, with the formats of numbers as filters."""
    templates = Environment(
        loader=PackageLoader("chip.report.html"),
        autoescape=True,  # names and receipts come from files that anybody may have made
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (
        *(formatting.share, formatting.number, formatting.p_value, formatting.points, formatting.excess_points),
        *(formatting.figure, formatting.interval, formatting.with_interval, formatting.percent),
        *(formatting.shape, formatting.ranges, formatting.count, _listed),
    )
    templates.filters.update({function.__name__.lstrip("_"): function for function in formats})
    return templates


def render(template: str, **values: Any) -> str:
    """The page of `templates/<template>.html.j2`."""
    return environment().get_template(f"{template}.html.j2").render(version=__version__, **values)


def _visible(value: object) -> object:
    """What no browser shows, or takes for an order such as to write backwards, is shown as its code."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _listed(words: Iterable[str]) -> Markup:
    """`a, b and c`, also of words that are already escaped."""
    *first, last = (escape(_visible(word)) for word in words)
    return Markup(", ").join(first) + " and " + last if first else last


def check_page(file: Path, *checkpoints: Path) -> None:
    """Raise `InputError` where `write_page` could not write, before anything long is computed: there is no folder, a
    file is there that is no page of chip's, or the place is in one of the checkpoints that the page is about."""
    try:
        if not file.absolute().parent.is_dir():
            raise InputError(f"{file}: there is no folder {file.parent}; make it, or choose another")
        if file.is_dir():
            raise InputError(f"{file}: is a folder; give the name of a file")
        if any(file.resolve().is_relative_to(folder.resolve()) for folder in checkpoints):
            raise InputError(f"{file}: lies in a checkpoint, which stays as it is; choose a place beside it")
        if file.exists() and not _is_page(file):
            raise InputError(f"{file}: is there already, and no page that chip has written; choose another")
    except (OSError, RuntimeError) as error:  # a name too long, a folder one may not look into, a circle of links
        raise _refused(file, error) from error


def write_page(file: Path, page: str) -> None:
    """Write a page, over one that is there. Raises `InputError` where that cannot be."""
    check_page(file)
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise _refused(file, error) from error


def _is_page(file: Path) -> bool:
    """Whether chip has written the file, or nobody anything into it."""
    if not file.is_file():
        return False
    with file.open("rb") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(max(0, size - _FOOTER))
        return size == 0 or b"Written by chip " in content.read()


def _refused(file: Path, error: OSError | RuntimeError) -> InputError:
    return InputError(f"{file}: cannot be written ({one_line(error)}); choose another")
