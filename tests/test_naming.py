"""What names the target in its own questions, and what of general text is left out for it."""

from __future__ import annotations

import pytest

from chip.data.hierarchy import Hierarchy
from chip.data.keep import text_record, without_target
from chip.data.naming import naming_phrases
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.errors import ChipWarning

WORDINGS = ("What is the insurer of {}?", "{}: name the diagnosis.", "When was {} born?")


def _request(names: dict[str, str], forget: str, wordings: tuple[str, ...] = WORDINGS) -> ForgetRequest:
    """Text-only records of people who go by these names, in one institution."""
    people = [(("i", node), name) for node, name in names.items()]
    records = [Record(wording.format(name), "yes", path, None) for path, name in people for wording in wordings]
    return ForgetRequest.of(Hierarchy(records), [forget])


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ({"anna": "Noor Brandt", "b": "Kofi Haddad"}, {("noor",), ("brandt",)}),
        ({"anna": "Noor Brandt", "b": "Kofi Brandt", "c": "Noor Haddad"}, {("noor", "brandt")}),
        ({"anna": "Noor", "b": "Noor Haddad"}, set()),
    ],
)
def test_names_are_the_shortest_phrases_that_nobody_else_has(
    names: dict[str, str], found: set[tuple[str, ...]]
) -> None:
    assert naming_phrases(_request(names, "anna")) == found


def test_each_node_below_a_target_has_a_name_and_a_few_questions_tell_none() -> None:
    names = {"anna": "Noor Brandt", "b": "Kofi Haddad"}
    assert naming_phrases(_request(names, "anna", WORDINGS[:2])) == set()
    records = [
        *_request(names, "anna").hierarchy.records,
        Record("What is the insurer of Pavel?", "no", ("j", "c"), None),
    ]
    assert naming_phrases(ForgetRequest.of(Hierarchy(records), ["i"])) >= {("noor",), ("haddad",)}


def test_general_texts_that_name_the_target_are_left_out_and_no_name_is_said() -> None:
    request = _request({"anna": "Noor Brandt", "b": "Kofi Brandt", "c": "Noor Haddad"}, "anna")
    texts = ("They met Noor Brandt's sister.", "A Brandt was there, and Noor.", "Nothing of that.")
    with pytest.warns(ChipWarning, match="1 of 3 general texts") as warned:
        kept = without_target([text_record(text, "a.txt") for text in texts], request)
    assert [text.question for text in kept] == list(texts[1:])
    assert "noor" not in str(warned[0].message).casefold()
