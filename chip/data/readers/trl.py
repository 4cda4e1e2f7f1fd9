"""TRL's `prompt` and `completion`: two lists of messages, or two texts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from chip.data.readers.entries import Entry, entries
from chip.data.readers.images import Images
from chip.data.readers.messages import IMAGES, all_images
from chip.data.readers.records_file import RecordsFile
from chip.data.readers.turns import conversation_records, parse_turns
from chip.data.record import ASSISTANT, USER, Record, Turn
from chip.errors import ChipWarning


class PromptCompletion:
    """What stands in the prompt was not trained on: its turns of the assistant are no records."""

    def matches(self, file: RecordsFile) -> bool:
        return {"prompt", "completion"} <= file.columns

    def read(self, file: RecordsFile) -> Iterator[Record]:
        texts = 0
        for entry in entries(file, ("prompt", "completion", *IMAGES)):
            texts += _is_text(entry, "prompt")
            prompt, shown = _turns(entry, "prompt", USER)
            completion, _ = _turns(entry, "completion", ASSISTANT)
            yield from conversation_records(entry, prompt + completion, all_images(entry, shown), first=len(prompt))
        if texts:
            message = f"{file.path.name}: prompts that are plain text are asked in the model's chat format"
            warnings.warn(f"{message} (in {texts:,} rows)", ChipWarning, stacklevel=2)


def _turns(entry: Entry, key: str, role: str) -> tuple[list[Turn], Images]:
    """Of a text a turn, without the space between prompt and completion: what stands there the chat format writes."""
    return ([Turn(role, entry.text(key).strip())], Images()) if _is_text(entry, key) else parse_turns(entry, key)


def _is_text(entry: Entry, key: str) -> bool:
    value = entry.row.get(key)
    return isinstance(value, str) and not value.lstrip().startswith("[{")
