"""Conversations as records: each turn of the assistant is one, with what was said before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chip.data.readers.entries import Entry
from chip.data.readers.fields import parse_json, parse_object, parse_text
from chip.data.readers.images import Images, part_image, read_images
from chip.data.record import ASSISTANT, IMAGE_PLACEHOLDER, SYSTEM, USER, Record, Turn
from chip.errors import InputError

ROLES = {"system": SYSTEM, "user": USER, "human": USER, "assistant": ASSISTANT, "gpt": ASSISTANT}
"""What formats call those who speak."""

_TURN_KEYS = frozenset({"role", "from", "content", "value", "loss", "weight"})
_PART_KEYS = frozenset({"type", "text", "image", "path", "url", "base64", "bytes", "image_url"})


def conversation_records(
    entry: Entry, turns: Sequence[Turn], images: Images, first: int = 0, task: str = "generation"
) -> Iterator[Record]:
    """A record for each of the assistant's turns, with the images that were shown until then.

    Args:
        first: turns of the assistant before this one were not trained on, and are no records.
        task: what they ask for, where the row does not say that.

    Raises:
        InputError: the turns do not alternate, one holds a placeholder without its image, or there is no answer.
    """
    _check_order(turns, entry.where)
    shown = _shown(turns, images, entry.where)
    for index, turn in enumerate(turns):
        if turn.role == ASSISTANT and index >= first:
            until = slice(shown[index - 1])
            seen = Images(images.sources[until], images.names[until])
            yield entry.record(turns[index - 1].text, turn.text, seen, turns[: index - 1], task)


def opening(entry: Entry) -> list[Turn]:
    """What the `system` and the `history` of a row say: the history is a list of pairs, question and answer."""
    turns = [Turn(SYSTEM, entry.text("system"))] if entry.row.get("system") not in (None, "") else []
    for pair in as_list(entry.row.get("history") or [], "history", entry.where):
        if not isinstance(pair, list) or len(pair) != 2:
            raise InputError(f"{entry.where}: history must be a list of pairs: what was asked, what was answered")
        turns += [
            Turn(role, parse_text(text, "history", entry.where))
            for role, text in zip((USER, ASSISTANT), pair, strict=True)
        ]
    return turns


def parse_turns(entry: Entry, key: str) -> tuple[list[Turn], Images]:
    """The turns under a key, as transformers and OpenAI have them (`role`, `content`) or as ShareGPT (`from`, `value`).

    Returns:
        Them, and the images that their parts bring along; each part that is an image has become a placeholder.

    Raises:
        InputError: one of them is not as it should be.
    """
    turns, images, parts = [], Images(), False
    for number, given in enumerate(as_list(entry.row.get(key), key, entry.where)):
        at = f"{entry.where}, {key} {number}"
        turn = parse_object(given, at)
        entry.unused.look(turn, _TURN_KEYS, at, f"{key}.")
        name = turn.get("role", turn.get("from"))
        if not isinstance(name, str) or name not in ROLES:
            raise InputError(f"{at}: nobody is called {name!r}; who speaks is one of {', '.join(ROLES)}")
        if turn.get("loss", turn.get("weight", 1)) in (False, 0):
            raise InputError(f"{at}: was not trained on; leave conversations with such turns out")
        content = turn.get("content", turn.get("value"))
        text, brought = _content(entry, content, at, f"{key}.content.")
        parts |= not isinstance(content, str)
        turns.append(Turn(ROLES[name], text))
        images += brought
    return turns, images


def _content(entry: Entry, content: object, where: str, of: str) -> tuple[str, Images]:
    """The text of a turn, with a placeholder for each image, and the images that are given in it."""
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return parse_text(content, "content", where), Images()
    text, images = "", Images()
    for given in content:
        part = parse_object(given, where)
        entry.unused.look(part, _PART_KEYS, where, of)
        match part.get("type"):
            case "text":
                own = parse_text(part.get("text"), "text", where)
                if IMAGE_PLACEHOLDER in own:
                    raise InputError(
                        f"{where}: a part that is text holds {IMAGE_PLACEHOLDER}; make it a part of its own"
                    )
                text += own
            case "image" | "image_url" | "input_image":
                text += IMAGE_PLACEHOLDER
                source = part_image(part, where)
                images += Images() if source is None else read_images(source, entry.file.images, where)
            case other:
                raise InputError(f"{where}: a part of the type {other!r} is not read; give text and images")
    return parse_text(text, "content", where), images


def as_list(value: object, key: str, where: str) -> list[Any]:
    """A list, or JSON text of one, as a cell of a CSV file holds it."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_json(value, f"{where}, {key}")
    if isinstance(value, Mapping) and value and all(isinstance(each, list) for each in value.values()):
        # How `datasets` stores a sequence of objects: an object of sequences.
        value = [dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise InputError(f"{where}: {key} must be a list")
    return value


def _check_order(turns: Sequence[Turn], where: str) -> None:
    """Raise `InputError` unless user and assistant take turns, behind a system prompt or none, up to an answer."""
    spoken = turns[1:] if turns and turns[0].role == SYSTEM else turns
    for number, turn in enumerate(spoken):
        expected = (USER, ASSISTANT)[number % 2]
        if turn.role != expected:
            raise InputError(
                f"{where}: a turn of the {turn.role} where the {expected} is to speak; make one of the two"
            )
    if not spoken or spoken[-1].role != ASSISTANT:
        raise InputError(f"{where}: there is no answer to the last turn; add what the model is to say")


def _shown(turns: Sequence[Turn], images: Images, where: str) -> list[int]:
    """How many images have been shown until each turn, itself included; all at once where no placeholder says where."""
    places = [turn.text.count(IMAGE_PLACEHOLDER) if turn.role == USER else 0 for turn in turns]
    total = len(images.sources)
    if not any(places):
        return [total] * len(turns)
    if total == 0:
        raise InputError(f"{where}: the question holds {IMAGE_PLACEHOLDER}; the record has no image; take it out")
    if sum(places) != total:
        known = "1 image" if total == 1 else f"{total} images"
        message = f"the user's turns hold {IMAGE_PLACEHOLDER} {sum(places)} times, for {known}"
        raise InputError(f"{where}: {message}; correct either")
    return [sum(places[: index + 1]) for index in range(len(turns))]
