"""A language model as the judge of answers: it is sent questions and answers, and asked only where a user names one."""

from __future__ import annotations

import http.client
import json
import urllib.request
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from chip.errors import InputError, RunError

_ORDER = (
    "You compare a given answer with the correct answer to a question. Reply with one word: yes if the given answer "
    "says the same as the correct one, whatever its wording, else no."
)


@dataclass(frozen=True)
class Judge:
    """A model behind an address that speaks OpenAI's chat completions.

    Raises:
        InputError: the address is not http or https.
    """

    address: str
    """What comes before `/chat/completions`, such as `http://localhost:8000/v1`."""
    model: str
    """Its name there."""
    key: str | None = field(default=None, repr=False)
    """Sent as a bearer token."""
    timeout: float = 60.0
    """Seconds for one answer."""

    def __post_init__(self) -> None:
        if urlsplit(self.address).scheme not in ("http", "https"):
            raise InputError(
                "not the address of a judge; it starts with http:// or https://", argument="judge", value=self.address
            )

    def is_correct(self, question: str, answer: str, prediction: str) -> bool:
        """Whether `prediction` says what `answer` says. Nothing else of the record is sent, and no image.

        Raises:
            RunError: there is no reply, or it is neither yes nor no.
        """
        reply = self._reply(f"Question: {question}\nCorrect answer: {answer}\nGiven answer: {prediction}")
        verdict = reply.strip().strip("\"'.*").casefold()
        for word, correct in (("yes", True), ("no", False)):
            if verdict == word or verdict.startswith((f"{word},", f"{word}.", f"{word} ", f"{word}\n")):
                return correct
        raise RunError(f"the judge at {self.address} said neither yes nor no; take another model")

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
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                return str(json.load(reply)["choices"][0]["message"]["content"])
        except (OSError, ValueError, http.client.HTTPException) as error:  # urllib's are OSErrors, json's ValueErrors
            raise RunError(f"the judge at {self.address} does not answer ({error})") from error
        except (KeyError, IndexError, TypeError) as error:
            raise RunError(f"the judge at {self.address} does not answer as chat completions do") from error
