"""Renders a chat template in a process of its own, with little time and memory, and never in this one.

Templates are programs that come with a checkpoint. Jinja's sandbox keeps them from files and from Python, and not from
counting for ever, or from texts that double: neither can be stopped from within the process that renders. One word of
one record may be enough to start it.
"""

from __future__ import annotations

import json
import math
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import IO, Any, NoReturn

from jinja2 import Environment, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

SECONDS = 3
"""Of the processor, for a text; templates take thousandths."""
SECONDS_EACH = 0.01
"""Of the processor, for each text on average, beside `SECONDS` for all."""
PATIENCE = 60.0
"""Seconds of the clock, for a text: the machine may have other things to do."""
MEMORY = 1 << 30
"""Bytes, Python's own among them."""
LONGEST = 1 << 20
"""Characters beside those that are given. A template writes some words around the question and the answer, and a page
at the beginning at most."""
_LONGEST_REASON = 200  # characters


class TemplateRenderError(Exception):
    """The template raises, or does too much; its text goes behind "the chat template: "."""


class TemplateRenderer:
    """One template, and the process that renders it."""

    def __init__(self, template: str, given: str) -> None:
        """
        Args:
            given: as JSON, an object: what the template is given beside each conversation.
        """
        self._first_line = f"{json.dumps([template, json.loads(given)])}\n".encode()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # batches are made ahead in a thread

    def render(self, **conversation: Any) -> str:
        """The text of a conversation.

        Raises:
            TemplateRenderError: the template raises, or takes too much time or memory.
        """
        line = f"{json.dumps(conversation)}\n".encode()
        with self._lock:
            try:
                answer = self._answer(line)
            except OSError:  # it ended before it had read all
                answer = b""
            ended = self._end() if not answer.endswith(b"\n") else None
        if ended is not None:
            raise TemplateRenderError(ended)
        result = json.loads(answer)
        if "text" not in result:
            raise TemplateRenderError(result["failure"])
        return str(result["text"])

    def _answer(self, line: bytes) -> bytes:
        """What the process writes, up to the end of the line; less where it ends, or takes longer than there is."""
        if self._process is None:
            command, pipe = [sys.executable, "-P", __file__], subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=0)
            weakref.finalize(self, _stop, self._process)
            line = self._first_line + line
        given, written = _pipes(self._process)
        sent = memoryview(line)
        while sent:
            sent = sent[given.write(sent) :]
        answer, end = bytearray(), time.monotonic() + PATIENCE
        ready = select.poll()
        ready.register(written, select.POLLIN)
        while not answer.endswith(b"\n") and ready.poll(1000 * max(0.0, end - time.monotonic())):
            if not (part := written.read(1 << 20)):
                break
            answer += part
        return bytes(answer)

    def _end(self) -> str:
        """Stop the process, if it has not stopped by itself; why it gave no answer."""
        assert self._process is not None
        process, self._process = self._process, None
        with suppress(subprocess.TimeoutExpired):  # it has closed its end, and may take a moment
            process.wait(0.5 if process.poll() is None else 0)
        code = process.returncode
        _stop(process)
        if code is None:
            return f"it does not end within {PATIENCE:.0f} seconds"
        if code == -signal.SIGXCPU:
            return f"it does not end within {SECONDS} seconds, or takes over {1000 * SECONDS_EACH:.0f} ms a text"
        if code < 0:
            return f"it ends the process that renders it, by signal {-code}"
        return f"it takes more than {MEMORY >> 20:,} MB of memory"


@lru_cache(maxsize=2)
def template_renderer(template: str, given: str) -> TemplateRenderer:
    """One for all models of a run that have the same template."""
    return TemplateRenderer(template, given)


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in _pipes(process):
        with suppress(BrokenPipeError):
            pipe.close()


class _Generation(Extension):
    """`{% generation %}`, which marks in training what the model has said."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _Namespace(Namespace):
    """Without names that begin with `_`."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that a name may be `self`
        self, *given = args
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no name such as {name!r}")


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers has it."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    made.globals["namespace"] = _Namespace
    return made


def _render(template: str, given: dict[str, Any], conversation: dict[str, Any], longest: int) -> dict[str, str]:
    """The answer to one line. Whatever a template raises is told as what it says."""
    parts, length = [], 0
    try:
        values = {"tools": None, "documents": None, **conversation, **given}
        for part in _compiled(template).generate(values):
            parts.append(part)
            length += len(part)
            if length > longest:
                return {"failure": f"it writes more than {LONGEST:,} characters"}
    except MemoryError:
        return {"failure": f"it takes more than {MEMORY >> 20:,} MB of memory"}
    except Exception as error:  # noqa: BLE001 - a template may raise anything
        said = " ".join(str(error).split())[:_LONGEST_REASON]
        return {"failure": f"it cannot be rendered ({said or type(error).__name__})"}
    return {"text": "".join(parts)}


@lru_cache(maxsize=1)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


def _limit(what: int, most: float) -> None:
    with suppress(ValueError, OSError):  # not every system has each of them
        resource.setrlimit(what, (math.ceil(most), resource.getrlimit(what)[1]))


def _serve() -> None:
    """Answer each line of stdin with one. Where the time is over the system ends the process, and nothing is said."""
    _limit(resource.RLIMIT_AS, MEMORY)
    _limit(resource.RLIMIT_CORE, 0)
    template, given = json.loads(sys.stdin.readline())
    start = time.process_time()
    for number, line in enumerate(iter(sys.stdin.readline, ""), start=1):
        together = start + SECONDS + SECONDS_EACH * number
        _limit(resource.RLIMIT_CPU, min(time.process_time() + SECONDS, together))
        answer = _render(template, given, json.loads(line), LONGEST + len(line))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
