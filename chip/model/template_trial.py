"""Whether a chat template comes to an end: it is rendered first in a process of its own, with little time and memory.

Templates are programs that come with a checkpoint. Jinja's sandbox keeps them from files and from Python, and not from
counting for ever, or from texts that double: neither can be stopped from within the process that renders.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 3
"""Of the processor; templates take thousandths."""
PATIENCE = 60.0
"""Seconds of the clock: the machine may have other things to do."""
MEMORY = 1 << 30
"""Bytes, Python's own among them."""
LONGEST = 1 << 20
"""Characters. A template writes some words around the question and the answer, and a page at the beginning at most."""

_NO_MEMORY, _TOO_LONG = 81, 82
"""Exit codes of the process."""


@lru_cache
def find_excess(conversations: str) -> str | None:
    """What a template does too much of; None where it comes to an end, with a text or with an error.

    Args:
        conversations: as JSON, a list of what is rendered one after the other: `template`, and what it is given.
    """
    given, command = conversations.encode(), [sys.executable, "-P", __file__]
    try:
        ended = subprocess.run(command, input=given, capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return f"it does not end within {PATIENCE:.0f} seconds"
    if ended.returncode == _NO_MEMORY:
        return f"it takes more than {MEMORY >> 20:,} MB of memory"
    if ended.returncode == _TOO_LONG:
        return f"it writes more than {LONGEST:,} characters"
    return f"it does not end within {SECONDS} seconds" if ended.returncode < 0 else None


class _Generation(Extension):
    """`{% generation %}`, which marks in training what the model has said."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers has it."""

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def _render_all(conversations: list[dict[str, Any]]) -> int:
    """The exit code. What the template raises ends the process, and is told by the one who renders next."""
    environment = _environment()
    for given in conversations:
        length = 0
        try:
            for part in environment.from_string(given.pop("template")).generate(given):
                length += len(part)
                if length > LONGEST:
                    return _TOO_LONG
        except MemoryError:
            return _NO_MEMORY
    return 0


if __name__ == "__main__":
    for limit, most in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # not every system has each of them
            resource.setrlimit(limit, (most, resource.getrlimit(limit)[1]))
    sys.exit(_render_all(json.load(sys.stdin)))
