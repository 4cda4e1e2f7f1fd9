"""The chat template of a checkpoint: where it is, and whether it writes what it is given."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from chip.errors import InputError, one_line
from chip.model.template_trial import find_excess

_QUESTION, _ANSWER = "Which color is the quiet river?", "A pale and even turquoise."
"""What no template says by itself."""
_MARK = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]|^[^<>\s]*>")
"""What chat formats set around a turn, as `</think>` and `[/INST]`; the first may be cut off at its beginning."""
_WORD = re.compile(r"[^\W_]")
_TEXT_ONLY: list[dict[str, str]] = []


def find_chat_template(processor: Any) -> str | None:
    """The processor's chat template, else its tokenizer's; of several named ones the default. None: neither has one.

    Raises:
        InputError: there are several, and none is called `default`.
    """
    for holder in (processor, processor.tokenizer):
        template = getattr(holder, "chat_template", None)
        if isinstance(template, dict):
            if "default" not in template:
                raise _trouble(processor, f"it has {', '.join(sorted(template))} and none that is called 'default'")
            template = template["default"]
        if template:
            return str(template)
    return None


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


def render(processor: Any, template: str, messages: list[dict[str, Any]], prompt: bool) -> str:
    """A conversation as text. `prompt`: what opens an answer stands at its end.

    Raises:
        InputError: the template cannot be rendered.
    """
    # The processor's own method does the same, and in some families wants a video processor for it.
    try:
        rendered = processor.tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=prompt, tokenize=False
        )
    except Exception as error:
        raise _trouble(processor, f"it cannot be rendered ({one_line(error)})") from error
    return str(rendered)


def check_chat_template(processor: Any, template: str) -> None:
    """Render a question and its answer, and look for both in the result.

    First in another process: what takes too long or too much there is not rendered here.

    Raises:
        InputError: the template drops, changes or repeats one of them, cannot be rendered, does not end, or takes more
            memory than there may be for it.
    """
    tokens = processor.tokenizer.special_tokens_map
    trials = [{"template": template, **tokens, **given} for given in _trial_conversations()]
    if excess := find_excess(json.dumps(trials, default=str)):
        raise _trouble(processor, excess)
    whole = render(processor, template, _messages(_TEXT_ONLY), prompt=False)
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


def _messages(shown: list[dict[str, str]]) -> list[dict[str, Any]]:
    """A question behind what is shown, and its answer."""
    question = {"role": "user", "content": [*shown, {"type": "text", "text": _QUESTION}]}
    return [question, {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}]


def _trial_conversations() -> Iterator[dict[str, Any]]:
    """All kinds that there are: with an image and without, with an answer and before it."""
    for shown in (_TEXT_ONLY, [{"type": "image"}]):
        whole = _messages(shown)
        yield {"messages": whole, "add_generation_prompt": False}
        yield {"messages": whole[:1], "add_generation_prompt": True}


def _trouble(processor: Any, trouble: str) -> InputError:
    where = processor.tokenizer.name_or_path or "the checkpoint"
    return InputError(f"{where}: chat template: {trouble}; put the base model's chat_template.jinja there")
