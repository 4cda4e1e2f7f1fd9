"""However a judge behaves, nothing goes elsewhere, no run waits for ever, and no key is shown."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from chip.cli.main import main
from chip.errors import ChipError, InputError, RunError
from chip.evaluation import judge as judge_module
from chip.evaluation.judge import Judge
from tests.judging import said, serving

KEY = "sk-very-secret"


def ask(server: Any, **options: Any) -> bool:
    return Judge(server.address, "small", key=KEY, **options).is_correct("Which?", "cyst", "a cyst")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_leads_nowhere(server: Any, status: int) -> None:
    with serving() as other:
        other.reply = said("yes")
        server.status, server.headers = status, {"Location": f"{other.address}/chat/completions"}
        with pytest.raises(RunError, match="sends on to another address"):
            ask(server)
        assert other.sent == []


def test_a_reply_byte_by_byte_has_the_time_of_one_reply(server: Any) -> None:
    """Each byte comes in time, all of them do not."""

    def drip(reply: bytes) -> Iterator[bytes]:
        for number in range(len(reply)):
            time.sleep(0.05)
            yield reply[number : number + 1]

    server.reply, server.drip = said("yes"), drip
    start = time.monotonic()
    with pytest.raises(RunError, match=r"does not answer within 0\.3 seconds"):
        ask(server, timeout=0.3)
    assert time.monotonic() - start < 1.5


def test_a_reply_that_does_not_end_is_cut_off(server: Any) -> None:
    blocks = (judge_module._LONGEST_REPLY >> 16) * 4
    sent: list[int] = []

    def flood(_: bytes) -> Iterator[bytes]:
        for number in range(blocks):
            sent.append(number)
            yield bytes(1 << 16)

    server.headers, server.drip = {"Content-Length": str(blocks << 16)}, flood
    with pytest.raises(RunError, match="more than 1,048,576 bytes"):
        ask(server)
    assert len(sent) > judge_module._LONGEST_REPLY >> 16


@pytest.mark.parametrize("reply", ["[" * 100_000, "\udcff".encode("utf-8", "surrogatepass").decode("latin-1"), "{"])
def test_what_is_no_reply_is_one_line(server: Any, reply: str) -> None:
    server.reply = reply
    with pytest.raises(RunError, match="does not answer as chat completions do"):
        ask(server)


def test_space_around_a_key_is_not_sent(server: Any) -> None:
    server.reply = said("no")
    judge = Judge(server.address, "small", key=f" {KEY}\n")
    assert judge.is_correct("Which?", "cyst", "a mass") is False
    assert server.sent[0][1] == f"Bearer {KEY}"
    assert Judge(server.address, "small", key="\n").is_correct("Which?", "cyst", "a mass") is False
    assert server.sent[1][1] is None


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"https://me:{KEY}@host/v1", "'https://…@host/v1'"),
        (f"https://me:{KEY}/more@host:80/v1", "'https://…@host:80/v1'"),
        (f"https://{KEY}@host:port/v1", "'https://…@host:port/v1'"),
        (f"https://[{KEY}@host", "'https://…@host'"),
        (f"https://host/v1?api-key={KEY}", "'https://host/v1?…'"),
        (f"https://host/v1#{KEY}", "'https://host/v1?…'"),
        (f"me:{KEY}@host", "'…@host'"),
        (KEY, "'…'"),
        ("http://", "'http://'"),
        ("http://a b", "'http://a b'"),
        ("http://host:port", "'http://host:port'"),
    ],
)
def test_an_address_with_a_secret_or_without_a_host_is_refused(address: str, shown: str) -> None:
    with pytest.raises(InputError) as caught:
        Judge(address, "small", KEY)
    assert str(caught.value).startswith(f"judge={shown}: ")
    assert KEY not in "".join(traceback.format_exception(caught.value))


def echo(server: Any) -> None:
    """It sends back what it was sent, wherever a message could take it from."""
    server.status, server.headers = 401, {"Location": KEY, KEY: KEY}
    server.reply = KEY


@pytest.mark.parametrize("key", [KEY, f"{KEY}\r\nX: y", f"{KEY}ü", f"{KEY} {KEY}"])
def test_no_error_shows_the_key(server: Any, key: str) -> None:
    echo(server)
    for status in (200, 302, 401, 500):
        server.status = status
        with pytest.raises(ChipError) as caught:
            Judge(server.address, "small", key).is_correct("Which?", "cyst", "a cyst")
        shown = "".join(traceback.format_exception(caught.value))
        assert KEY not in shown.replace(f'KEY = "{KEY}"', "")


def test_the_command_shows_no_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "CHIP_JUDGE_KEY": f"{KEY}\n{KEY}"})
    for address in ("http://host/v1", f"http://me:{KEY}@host/v1"):
        options = ["--judge", address, "--judge-model", "m"]
        monkeypatch.setattr(sys, "argv", ["chip", "eval", "ckpt", "--forget", "a", *options])
        with contextlib.suppress(SystemExit):
            main()
        said_by_it = capsys.readouterr()
        assert said_by_it.err.startswith("chip: ")
        assert len(said_by_it.err.splitlines()) == 1
        assert KEY not in said_by_it.out + said_by_it.err
