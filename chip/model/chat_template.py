"""The chat template of a checkpoint: where it is, and whether it writes what it is given."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from chip.errors import InputError
from chip.model.template_renderer import TemplateRenderError, template_renderer

_QUESTION, _ANSWER = "Which color is the quiet river?", "A pale and even turquoise."
"""What no template says by itself."""
_MARK = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]|^[^<>\s]*>")
"""What chat formats set around a turn, as `</think>` and `[/INST]`; the first may be cut off at its beginning."""
_WORD = re.compile(r"[^\W_]")
_HINT = "put the base model's chat_template.jinja there"
_PAIR = {"name", "template"}
_TEXT_ONLY: list[dict[str, str]] = []


def find_chat_template(processor: Any) -> str | None:
    """The processor's chat template, else its tokenizer's; of several named ones the default. None: neither has one.

    Raises:
        InputError: there are several, and none is called `default`; or it is no text.
    """
    for holder in (processor, processor.tokenizer):
        template = getattr(holder, "chat_template", None)
        named = template if isinstance(template, dict) else _named(template)
        if named:
            if "default" not in named:
                raise _trouble(processor, f"it has {', '.join(sorted(named))} and none that is called 'default'")
            template = named["default"]
        if template and not isinstance(template, str):
            raise _trouble(processor, f"it is no text, and no texts with names, but {type(template).__name__}")
        if template:
            return str(template)
    return None


def _named(templates: object) -> dict[str, Any]:
    """Name -> template, of a list of objects: a tokenizer has read it so already, a processor leaves it as it is."""
    pairs = templates if isinstance(templates, list) else []
    return {str(each["name"]): each["template"] for each in pairs if isinstance(each, dict) and each.keys() >= _PAIR}


def usable_chat_template(processor: Any, answer_is_suffix: bool) -> str | None:
    """The chat template, checked; None where there is none and the family takes the answer as a suffix.

    Raises:
        InputError: there is none and the family needs one, or it does not write what it is given.
    """
    template = find_chat_template(processor)
    if template is not None:
        check_chat_template(processor, template)
    elif not answer_is_suffix:
        raise _trouble(processor, "neither the processor nor the tokenizer has one")
    return template


def render(processor: Any, template: str, messages: list[dict[str, Any]], prompt: bool, where: str = "") -> str:
    """A conversation as text, as transformers renders it. `prompt`: what opens an answer stands at its end.

    In another process, and never in this one: transformers sets no limits to a template.

    Args:
        where: the record, for messages.

    Raises:
        InputError: the template cannot be rendered, does not end, or takes more memory than there may be for it.
    """
    renderer = template_renderer(template, json.dumps(processor.tokenizer.special_tokens_map, default=str))
    try:
        return renderer.render(messages=messages, add_generation_prompt=prompt)
    except TemplateRenderError as error:
        raise _trouble(processor, str(error), where) from error


def check_chat_template(processor: Any, template: str) -> None:
    """Render a question and its answer, and look for both in the result.

    Raises:
        InputError: the template drops, changes or repeats one of them, or cannot be rendered.
    """
    whole, *_ = [render(processor, template, messages, prompt) for messages, prompt in _trials()]
    if "'text'" in whole or '"text"' in whole:
        raise _trouble(processor, "it takes a message as one string, and not in parts")
    for text, name in ((_QUESTION, "question"), (_ANSWER, "answer")):
        times = whole.count(text)
        if times != 1:
            trouble = "drops or changes" if times == 0 else "repeats"
            raise _trouble(processor, f"it {trouble} the {name}")


def says_alone(text: str, answer: str, special: re.Pattern[str]) -> bool:
    """Whether the text says the answer, and beside it no word that is not in a mark of the chat format.

    Args:
        special: finds the tokenizer's special tokens.
    """
    start = text.find(answer)
    while start >= 0:
        around = f"{text[:start]}\n{text[start + len(answer) :]}"
        if not _WORD.search(_MARK.sub("", special.sub("", around))):
            return True
        start = text.find(answer, start + 1)
    return False


def says_letters_of(text: str, answer: str) -> bool:
    """Whether the text has all letters and digits of the answer, one behind the other, as any tokenizer may leave them:
    without case, accents and what stands between."""
    return _letters(answer) in _letters(text)


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", text).casefold()))


def _messages(shown: list[dict[str, str]]) -> list[dict[str, Any]]:
    """A question behind what is shown, and its answer."""
    question = {"role": "user", "content": [*shown, {"type": "text", "text": _QUESTION}]}
    return [question, {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}]


def _trials() -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """All kinds that there are, the whole conversation first: without an image and with one, with an answer and before
    it."""
    for shown in (_TEXT_ONLY, [{"type": "image"}]):
        whole = _messages(shown)
        yield whole, False
        yield whole[:1], True


def _trouble(processor: Any, trouble: str, where: str = "") -> InputError:
    place = f"{where}: the chat template of {_place(processor)}" if where else f"{_place(processor)}: chat template"
    return InputError(f"{place}: {trouble}; {_HINT}")


def _place(processor: Any) -> str:
    return str(processor.tokenizer.name_or_path or "the checkpoint")
