"""Pages: one HTML file each, with all that it needs inside it and no script."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from chip.errors import InputError


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("chip.pages"),
        autoescape=True,  # names and receipts come from files that anybody may have made
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """The page of `chip/pages/templates/<template>.html.j2`."""
    return _environment().get_template(f"{template}.html.j2").render(**values)


def check_page(file: Path) -> None:
    """Raise `InputError` where `write_page` could not write, before anything long is computed."""
    try:
        if not file.absolute().parent.is_dir():
            raise InputError(f"{file}: there is no folder {file.parent}; make it, or choose another")
        if file.is_dir():
            raise InputError(f"{file}: is a folder; give the name of a file")
    except OSError as error:  # a name too long, a folder one may not look into
        raise _refused(file, error) from error


def write_page(file: Path, page: str) -> None:
    """Write a page, over one that is there. Raises `InputError` where that cannot be."""
    check_page(file)
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise _refused(file, error) from error


def _refused(file: Path, error: OSError) -> InputError:
    return InputError(f"{file}: cannot be written ({error.strerror}); choose another")
