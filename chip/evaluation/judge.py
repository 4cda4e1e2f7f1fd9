"""A language model as the judge of answers: it is sent questions and answers, and asked only where a user names one.

No message holds the key, a password or any of a reply: a server may send back what it was sent.
"""

from __future__ import annotations

import http.client
import json
import queue
import re
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from email.message import Message
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from chip.errors import InputError, RunError

_ORDER = (
    "You compare a given answer with the correct answer to a question. Reply with one word: yes if the given answer "
    "says the same as the correct one, whatever its wording, else no."
)
_LONGEST_REPLY = 1 << 20  # bytes; a word with what surrounds it takes a thousand
_BLOCK = 1 << 16


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: records and the key go to the address that the user named, and to no other."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True)
class Judge:
    """A model behind an address that speaks OpenAI's chat completions.

    Raises:
        InputError: the address is not http or https, or has a password or a query in it; no header can carry the key.
    """

    address: str
    """What comes before `/chat/completions`, such as `http://localhost:8000/v1`."""
    model: str
    """Its name there."""
    key: str | None = field(default=None, repr=False)
    """Sent as a bearer token; space around it is not its own."""
    timeout: float = 60.0
    """Seconds for one answer, from the first step to the last byte."""

    def __post_init__(self) -> None:
        if problem := _problem(self.address):
            raise InputError(problem, argument="judge", value=_without_secrets(self.address))
        if self.key is not None:
            object.__setattr__(self, "key", self.key.strip())
            if not _is_plain(self.key):
                raise InputError("the judge's key holds a character that no header can carry; set CHIP_JUDGE_KEY again")

    def is_correct(self, question: str, answer: str, prediction: str) -> bool:
        """Whether `prediction` says what `answer` says. Nothing else of the record is sent, and no image.

        Raises:
            RunError: there is no reply, it comes too late, is too long, a redirect, or neither yes nor no.
        """
        reply = self._reply(f"Question: {question}\nCorrect answer: {answer}\nGiven answer: {prediction}")
        verdict = reply.strip().strip("\"'.*").casefold()
        for word, correct in (("yes", True), ("no", False)):
            if verdict == word or verdict.startswith((f"{word},", f"{word}.", f"{word} ", f"{word}\n")):
                return correct
        raise self._error("said neither yes nor no; take another model")

    def _reply(self, question: str) -> str:
        body = {
            "model": self.model,
            "temperature": 0,
            "messages": [{"role": "system", "content": _ORDER}, {"role": "user", "content": question}],
        }
        request = urllib.request.Request(
            f"{self.address.rstrip('/')}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})},
        )
        text = self._in_time(request)
        try:
            return str(json.loads(text)["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise self._error("does not answer as chat completions do") from None

    def _in_time(self, request: urllib.request.Request) -> bytes:
        """The reply. A thread waits for it, as a socket's own limit begins anew with every byte."""
        replies: queue.SimpleQueue[bytes | RunError] = queue.SimpleQueue()
        threading.Thread(target=lambda: replies.put(self._fetch(request)), daemon=True).start()
        try:
            reply = replies.get(timeout=self.timeout)
        except queue.Empty:
            raise self._error(self._late) from None
        if isinstance(reply, RunError):
            raise reply
        return reply

    def _fetch(self, request: urllib.request.Request) -> bytes | RunError:
        """The reply's bytes, or why there are none."""
        text, deadline = b"", time.monotonic() + self.timeout
        try:
            with _OPENER.open(request, timeout=self.timeout) as reply:
                while block := reply.read1(_BLOCK):
                    text += block
                    if len(text) > _LONGEST_REPLY:
                        return self._error(f"answers with more than {_LONGEST_REPLY:,} bytes; take another model")
                    if time.monotonic() > deadline:
                        return self._error(self._late)
        except HTTPError as error:
            error.close()
            if 300 <= error.code < 400:
                return self._error(
                    "sends on to another address, which nothing is sent to; give that one if you trust it"
                )
            return self._error(f"does not answer (status {error.code})")
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a chunk of no length
            cause = error.reason if isinstance(error, URLError) else error
            return self._error(self._late if isinstance(cause, TimeoutError) else f"does not answer ({_reason(cause)})")
        return text

    @property
    def _late(self) -> str:
        return f"does not answer within {self.timeout:g} seconds; see whether it works"

    def _error(self, what: str) -> RunError:
        return RunError(f"the judge at {self.address} {what}")


def _problem(address: str) -> str | None:
    """What is wrong with an address, and what to do."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:  # a port that is no number, half a bracket
        return "not the address of a judge; it looks like http://localhost:8000/v1"
    if parts.scheme not in ("http", "https"):
        return "not the address of a judge; it starts with http:// or https://"
    if "@" in address or "?" in address or "#" in address:
        return "has a password or a query in it; put the key into CHIP_JUDGE_KEY, and give the address alone"
    if not host or not _is_plain(address):
        return "not the address of a judge; it looks like http://localhost:8000/v1"
    return None


def _is_plain(text: str) -> bool:
    """Whether it is of visible ASCII characters alone."""
    return re.fullmatch("[!-~]*", text) is not None


def _without_secrets(address: str) -> str:
    """As much of an address as may be shown; nothing of a word that is none, which may be the key."""
    if not re.search("[:/.]", address):
        return "…"
    without_password = re.sub(r"^([a-z]+://)?.*@", r"\1…@", address, flags=re.DOTALL | re.IGNORECASE)
    return re.sub(r"[?#].*", "?…", without_password, flags=re.DOTALL)


def _reason(cause: object) -> str:
    """Why there was no reply, in words of this machine's own."""
    if isinstance(cause, OSError):
        return cause.strerror if cause.errno is not None and cause.strerror else "the connection failed"
    return "that is no HTTP"
