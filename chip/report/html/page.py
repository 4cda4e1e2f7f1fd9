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
from chip.errors import printable
from chip.report import formatting
from chip.report.files import check_place, not_written

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
        *(formatting.figure, formatting.interval, formatting.with_interval, formatting.measured_on, formatting.percent),
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
    check_place(file, "page", _is_page, *checkpoints)


def write_page(file: Path, page: str) -> None:
    """Write a page, over one that is there. Raises `InputError` where that cannot be."""
    check_page(file)
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise not_written(file, error) from error


def _is_page(file: Path) -> bool:
    """Whether chip has written the file, or nobody anything into it."""
    with file.open("rb") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(max(0, size - _FOOTER))
        return size == 0 or b"Written by chip " in content.read()
