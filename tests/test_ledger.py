"""A ledger: nothing is lost or changed unseen, each forgery is named, and a request passes its states in order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import combinations
from pathlib import Path

import pytest

from chip.errors import ChipWarning, InputError, RunError
from chip.ledger import Ledger, LedgerKey
from chip.ledger.entry import Destroyed, Details, Entry, Evaluated, Failed, Received, Refused, Released, WasDestroyed
from chip.ledger.requests import History, State
from chip.recording.verification import verify_ledger
from tests.ledgers import (
    EDITED,
    FIRST,
    KEY,
    OTHER_KEY,
    RESULT,
    SECOND,
    SOURCE,
    STEPS,
    chained,
    forge_head,
    head_file,
    lines_of,
    write_ledger,
)

FAILED = Failed("edit", "RunError")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger's file."""
    return write_ledger(tmp_path / "ledger.jsonl").path


def faults(path: Path, key: LedgerKey | None = KEY) -> tuple[str, ...]:
    return Ledger(path, key).read().faults


def test_what_was_added_is_read_again(path: Path) -> None:
    contents = Ledger(path, KEY).read()
    assert [(entry.requests, entry.details) for entry in contents.chain.entries] == [(tuple(p), d) for p, d in STEPS]
    assert (contents.faults, contents.chain.notes) == ((), ())
    assert {entry.by for entry in contents.chain.entries} == {"tester"}
    first = contents.find(FIRST[:6])
    assert (first.label, first.basis, first.deadline) == ("case 1", "GDPR Art. 17", date(2026, 12, 24))
    assert (first.state, first.next_step, first.result) == (State.RELEASED, "destroy the records", RESULT)
    assert path.stat().st_mode & 0o077 == 0


def test_without_the_key_it_is_read_and_not_added_to(path: Path) -> None:
    assert not faults(path, None)
    with pytest.raises(InputError, match="a ledger's key is needed"):
        Ledger(path).add([FIRST], FAILED)


def test_a_pseudonym_is_the_keys_and_the_whole_paths() -> None:
    assert KEY.pseudonym(("a", "b")) == KEY.pseudonym(["a", "b"])
    assert len({KEY.pseudonym(p) for p in (("a", "b"), ("a/b",), ("b",), ("a",))} | {OTHER_KEY.pseudonym(("a",))}) == 5
    assert "key" not in repr(KEY).casefold().replace("ledgerkey", "")


# Forgeries: each is found, and named.


@pytest.mark.parametrize("step", [61, pytest.param(1, marks=pytest.mark.slow)], ids=["a few", "all"])
def test_a_flipped_bit_is_found(path: Path, step: int) -> None:
    good = path.read_bytes()
    for place in range(0, len(good), step):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        path.write_bytes(bad)
        assert faults(path), place
        line = good.count(b"\n", 0, place) + 1
        named = (f"line {line}:", f"line {line + 1}:", "cut off")  # of a line's end also the next, or that one is gone
        assert any(any(name in fault for name in named) for fault in faults(path, None)), place


def test_a_removed_entry_is_named(path: Path) -> None:
    lines = lines_of(path)
    for number in range(1, len(lines)):
        path.write_bytes(b"".join(lines[: number - 1] + lines[number:]))
        told = f"line {number}: entry {number + 1} follows entry {number - 1}: entry {number} is missing"
        assert faults(path) == (told,)
    path.write_bytes(b"".join(lines[:1] + lines[4:]))
    assert faults(path) == ("line 2: entry 5 follows entry 1: entries 2 to 4 are missing",)


def test_swapped_and_repeated_entries_are_named(path: Path) -> None:
    lines = lines_of(path)
    for a, b in combinations(range(len(lines)), 2):
        swapped = lines.copy()
        swapped[a], swapped[b] = lines[b], lines[a]
        path.write_bytes(b"".join(swapped))
        assert f"line {a + 1}: entry {b + 1} stands where entry {a + 1} belongs" in faults(path)
    path.write_bytes(b"".join([*lines[:3], lines[1], *lines[3:]]))
    assert "line 4: entry 2 is there again" in faults(path)


def test_a_cut_off_end_is_named(path: Path) -> None:
    """By the file beside it, by a head that was noted, and not at all without either: which is said."""
    lines = lines_of(path)
    noted = Ledger(path).read().chain.head
    path.write_bytes(b"".join(lines[:4]))
    assert faults(path) == ("it ends with entry 4, and a writer knew entry 6: entries 5 to 6 are cut off",)
    path.unlink()
    assert faults(path) == ("it ends with entry 0, and a writer knew entry 6: entries 1 to 6 are cut off",)

    path.write_bytes(b"".join(lines[:4]))
    forge_head(path)
    assert not faults(path, None)
    assert faults(path) == ("the .head file beside it was not written by whoever holds the key",)
    head_file(path).unlink()
    assert not faults(path)
    (note,) = Ledger(path).read().chain.notes
    assert "cut off at the end would not show" in note
    (fault,) = verify_ledger(Ledger(path), head=noted).faults
    assert fault.startswith(f"no entry has the digest {noted[:12]}")
    assert not verify_ledger(Ledger(path), head=Ledger(path).read().chain.head).faults


def test_whoever_writes_it_anew_needs_the_key(path: Path) -> None:
    chained(path, OTHER_KEY, lambda entry: replace(entry, by="somebody"))
    forge_head(path)
    assert not faults(path, None)  # no chain shows this by itself; `verify` says that the key was not given
    assert not verify_ledger(Ledger(path)).with_key
    found = faults(path)
    assert sum("was not written by whoever holds the key: its HMAC is another" in fault for fault in found) == len(
        STEPS
    )

    chained(path, OTHER_KEY, lambda entry: replace(entry, key=OTHER_KEY.id))
    forge_head(path)
    assert sum(f"was written with another key ({OTHER_KEY.id})" in fault for fault in faults(path)) == len(STEPS)


def test_another_key_adds_nothing(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(InputError, match="entry 1 was written with another key"):
        Ledger(path, OTHER_KEY).add([FIRST], FAILED)
    assert path.read_bytes() == before


def test_a_changed_end_is_found_by_its_own_digest(path: Path) -> None:
    head_file(path).unlink()
    path.write_bytes(path.read_bytes().replace(b'"what":"original"', b'"what":"records" '))
    assert any("line 6" in fault for fault in faults(path, None))


def test_nobody_builds_on_a_changed_ledger(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"case 1", b"case 2"))
    before = path.read_bytes()
    with pytest.raises(InputError, match="line 1: entry 1 has been changed"):
        Ledger(path, KEY).add([FIRST], FAILED)
    assert path.read_bytes() == before


def test_what_could_not_happen_is_a_fault_although_the_chain_is_whole(path: Path) -> None:
    lines = lines_of(path)
    path.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    numbers = iter(range(1, 6))
    chained(path, KEY, lambda entry: replace(entry, number=next(numbers)))
    head_file(path).unlink()
    assert faults(path)[0] == f"entry 4: request {FIRST[:12]} is edited, and cannot be released: that follows evaluated"


# A writer that died in the middle of a line, and a disk that is full.


def test_a_torn_line_is_said_and_kept_aside(path: Path) -> None:
    whole, head, last = path.read_bytes(), head_file(path).read_bytes(), lines_of(path)[-1]
    for cut in range(1, len(last) - 1, 97):
        path.write_bytes(whole + last[:cut])
        head_file(path).write_bytes(head)
        contents = Ledger(path, KEY).read()
        assert not contents.faults
        assert contents.chain.notes[0].startswith("the last line is torn")
        with pytest.warns(ChipWarning, match="a writer died in the middle of the last line"):
            assert Ledger(path, KEY).add([FIRST], FAILED).number == 7
        (torn,) = path.parent.glob("*.torn-*")
        assert torn.read_bytes() == last[:cut]
        assert Ledger(path).read().chain.notes == (f"{torn.name} holds a line whose writer died in the middle of it",)
        assert not faults(path)
        torn.unlink()


def test_an_entry_that_lacks_only_the_end_of_its_line_counts(path: Path) -> None:
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    assert len(Ledger(path, KEY).read().chain.entries) == len(STEPS)
    assert Ledger(path, KEY).add([FIRST], FAILED).number == len(STEPS) + 1
    assert path.read_bytes().startswith(good)
    assert not faults(path)


def test_a_writer_that_died_before_the_head_was_written_lost_nothing(path: Path) -> None:
    head = head_file(path).read_bytes()
    Ledger(path, KEY).add([FIRST], FAILED)
    head_file(path).write_bytes(head)
    assert not faults(path)
    assert Ledger(path, KEY).add([FIRST], FAILED).number == len(STEPS) + 2


def test_a_full_disk_leaves_no_half_of_a_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = path.read_bytes(), os.write
    left = [100]

    def fill(descriptor: int, content: memoryview) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        written = write(descriptor, content[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", fill)
    with pytest.raises(RunError, match="No space left on device"):
        Ledger(path, KEY).add([FIRST], FAILED)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{}\n",
        b"null\n",
        b"[" * 100_000 + b"\n",
        b'{"event":' + b"9" * 5000 + b"}\n",
        b"\xff\n",
        b'{"number":1,"digest":"","mac":"\\ud800"}',
    ],
)
def test_what_is_no_ledger_is_no_traceback(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert faults(path)
    head_file(path).write_bytes(content)
    assert faults(path)


def test_other_than_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="no ledger, but a folder, a device"):
            Ledger(place, KEY).read()
        with pytest.raises(InputError, match="the key cannot be read"):
            LedgerKey.read(place)
    with pytest.raises(InputError, match="no such ledger"):
        Ledger(tmp_path / "none", KEY).read()
    with pytest.raises(InputError, match="there is no folder"):
        Ledger(tmp_path / "none" / "ledger", KEY).add([FIRST], STEPS[0][1])


def test_a_ledger_in_a_models_folder_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "notes").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model-00001-of-00002.safetensors").write_bytes(b"")
    for place in (model / "ledger.jsonl", model / "notes" / "ledger.jsonl"):
        with pytest.raises(InputError, match="lies in the model's folder"):
            write_ledger(place)
    (tmp_path / "link").symlink_to(model / "ledger.jsonl")
    with pytest.raises(InputError, match="lies in the model's folder"):
        write_ledger(tmp_path / "link")


# The key.


def test_a_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHIP_LEDGER_KEY", raising=False)
    assert LedgerKey.read() is None
    file = tmp_path / "key"
    file.write_text(f"{'4f' * 32}\n")
    file.chmod(0o600)
    monkeypatch.setenv("CHIP_LEDGER_KEY", "4f" * 32)
    assert LedgerKey.read(file) == LedgerKey.read()
    file.chmod(0o644)
    with pytest.warns(ChipWarning, match="others may read this key"):
        LedgerKey.read(file)


def test_a_short_key_is_refused_without_being_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIP_LEDGER_KEY", "secret")
    with pytest.raises(InputError, match="32 to 4,096 bytes, not 6") as refusal:
        LedgerKey.read()
    assert "secret" not in str(refusal.value)
    with pytest.raises(InputError, match="cannot be read"):
        LedgerKey.read(tmp_path / "none")


# Requests: what may follow what, the window, and what is due.

EVALUATED, RELEASED = Evaluated(RESULT, None, {}), Released(RESULT)
ORIGINAL, RECORDS = (WasDestroyed(what, SOURCE, None) for what in Destroyed)
RECEIVED, REFUSED = Received(None, None, None), Refused("retention duty")
EVENTS = (RECEIVED, EDITED, EVALUATED, RELEASED, ORIGINAL, RECORDS, REFUSED, FAILED)

REACHED: dict[State | None, tuple[Details, ...]] = {
    None: (),
    State.RECEIVED: (RECEIVED,),
    State.EDITED: (RECEIVED, EDITED),
    State.EVALUATED: (RECEIVED, EDITED, EVALUATED),
    State.RELEASED: (RECEIVED, EDITED, EVALUATED, RELEASED),
    State.DONE: (RECEIVED, EDITED, EVALUATED, RELEASED, RECORDS, ORIGINAL),
    State.REFUSED: (RECEIVED, REFUSED),
}
POSSIBLE: dict[State | None, tuple[Details, ...]] = {
    None: (RECEIVED,),
    State.RECEIVED: (EDITED, REFUSED, FAILED),
    State.EDITED: (EDITED, EVALUATED, REFUSED, FAILED),
    State.EVALUATED: (EDITED, EVALUATED, RELEASED, REFUSED, FAILED),
    State.RELEASED: (EDITED, EVALUATED, ORIGINAL, RECORDS, FAILED),
    State.DONE: (RECEIVED,),
    State.REFUSED: (RECEIVED,),
}


def history(*steps: tuple[str, Details]) -> History:
    """After these, each at one request."""
    time = datetime(2026, 11, 26, tzinfo=UTC).isoformat()
    entries = [
        Entry(1, number, time, "tester", "0", KEY.id, details.event, (pseudonym,), None, details, "")
        for number, (pseudonym, details) in enumerate(steps, 1)
    ]
    found, objections = History.of(entries)
    assert not objections
    return found


@pytest.mark.parametrize("state", REACHED, ids=str)
def test_what_may_follow_what(state: State | None) -> None:
    found = history(*((FIRST, details) for details in REACHED[state]))
    assert state is None or found.requests[FIRST].state is state
    for details in EVENTS:
        objection = next(found.objections([FIRST], details), None)
        assert (objection is None) == (details in POSSIBLE[state]), (details, objection)


def test_what_does_not_belong_together_is_objected_to() -> None:
    released = [(FIRST, details) for details in REACHED[State.RELEASED]]
    cases: list[tuple[list[tuple[str, Details]], Details, str]] = [
        (released[:3], Released("0" * 64), "in another model"),
        (released, replace(ORIGINAL, source="0" * 64), "from another model"),
        ([*released, (FIRST, RECORDS)], RECORDS, "has its records destroyed already"),
        ([*released, (FIRST, RECORDS)], EDITED, "its records are destroyed"),
        (released, Evaluated("0" * 64, None, {}), "no edit in this ledger wrote the model"),
    ]
    for steps, details, objection in cases:
        assert objection in next(history(*steps).objections([FIRST], details))


def test_a_later_model_can_be_evaluated_for_an_earlier_request() -> None:
    later = replace(EDITED, source=RESULT, result="f" * 64)
    steps: list[tuple[str, Details]] = [(FIRST, details) for details in REACHED[State.EDITED]]
    found = history(*steps, (SECOND, RECEIVED), (SECOND, later), (FIRST, Evaluated("f" * 64, None, {})))
    assert found.requests[FIRST].state is State.EDITED  # its own model is still not evaluated


def test_the_window_ends_with_a_release() -> None:
    steps = [(FIRST, details) for details in REACHED[State.RELEASED]]
    assert history(*steps[:1]).window_source is None
    assert history(*steps[:2]).window_source == SOURCE
    again = replace(EDITED, source="9" * 64)
    assert history(*steps[:2], (FIRST, again)).window_source == SOURCE  # the first edit of a window sets it
    assert history(*steps).window_source == RESULT
    assert [one.pseudonym for one in history(*steps, (SECOND, RECEIVED)).opened(State.RECEIVED)] == [SECOND]


def test_what_is_due_comes_by_its_deadline() -> None:
    steps: Sequence[tuple[str, Details]] = [
        ("c" * 64, Received(None, None, None)),
        ("a" * 64, Received(None, None, "2026-12-24")),
        ("b" * 64, Received(None, None, "2026-11-25")),
        ("d" * 64, Received(None, None, "2026-11-01")),
        ("d" * 64, REFUSED),
    ]
    opened, today = history(*steps).opened(), date(2026, 11, 26)
    assert [request.pseudonym[0] for request in opened] == ["b", "a", "c"]
    assert [request.days_left(today) for request in opened] == [-1, 28, None]


def test_times_are_utc_with_their_offset_and_a_wrong_clock_is_said(tmp_path: Path) -> None:
    east = datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=9)))
    ledger = Ledger(tmp_path / "ledger", KEY, by="tester", clock=lambda: east)
    assert ledger.add([FIRST], RECEIVED).time == "2026-02-28T16:30:00+00:00"
    assert ledger.add([SECOND], RECEIVED, on=date(2026, 2, 3)).day == "2026-02-03"
    ledger = Ledger(tmp_path / "ledger", KEY, by="tester", clock=lambda: east - timedelta(days=1))
    ledger.add([FIRST], FAILED)
    assert not faults(ledger.path)
    assert ledger.read().chain.notes == ("entry 3 is dated before entry 2: a clock was wrong",)


def test_a_request_is_found_by_the_beginning_of_its_pseudonym(path: Path) -> None:
    contents = Ledger(path).read()
    assert contents.find(SECOND).pseudonym == contents.find(SECOND[:6]).pseudonym == SECOND
    for prefix, told in ((SECOND[:5], "give more digits"), ("0" * 12, "no request has a pseudonym")):
        with pytest.raises(InputError, match=told):
            contents.find(prefix)


def test_who_adds_it_must_be_shown(tmp_path: Path) -> None:
    for by in ("", "a\nb", "x" * 501):
        with pytest.raises(InputError, match="one line of 1 to 500 characters"):
            Ledger(tmp_path / "ledger", KEY, by=by).add([FIRST], RECEIVED)
