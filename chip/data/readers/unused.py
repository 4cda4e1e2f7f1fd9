"""Keys of a row that nothing is read of: refused where they hold data, else counted and said."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Set
from functools import cache
from typing import Any

from chip.data.readers.fields import warn_of_unused
from chip.data.record import LEVELS
from chip.errors import InputError

_IMAGES = "give its path as image, several as images"
_IN_QUESTION = "put what it says into the question"
_IN_RECORD = "give what was asked as question, what was said as answer"
_IN_ANSWER = "what is read of a turn is its text; leave such conversations out"

_SYNONYMS = {
    **dict.fromkeys(("hospital", "clinic", "site"), "institution"),
    **dict.fromkeys(("subject", "person", "mrn", "pid"), "patient"),
    **dict.fromkeys(("exam", "accession", "study instance"), "study"),
    **dict.fromkeys(("subset", "set", "fold", "partition", "is train", "is test", "held out"), "split"),
}
"""How others call keys: where a row lacks the key, it would be somebody else's, or taken for trained."""

DATA_KEYS = {
    **dict.fromkeys(
        ("image", "images", "image_path", "image_paths", "image_file", "image_url", "image_bytes"), _IMAGES
    ),
    **dict.fromkeys(("img", "imgs", "img_path", "picture", "pictures", "pixel_values"), _IMAGES),
    **dict.fromkeys(("video", "videos", "audio", "audios"), "a record has images or none"),
    **dict.fromkeys(("conversations", "conversation", "messages", "history"), "give each turn as question and answer"),
    **dict.fromkeys(("system_prompt", "context", "hint", "passage", "tools", "objects"), _IN_QUESTION),
    "system": "put it first into the turns",
    **dict.fromkeys(("options", "choices"), "write them into the question, as A) ... B) ..."),
    **dict.fromkeys(("instruction", "input", "query", "prompt", "output", "response", "completion"), _IN_RECORD),
    **dict.fromkeys(("tool_calls", "function_call", "reasoning_content", "thinking"), _IN_ANSWER),
}
"""Keys that hold data in some format -> what to do. What they hold would change a record: none is passed over."""

_MAY_BE_EMPTY = ("images", "videos", "audios", "tools", "objects", "history")
"""Lists that a format writes into every row."""

_CLOSE = 0.8  # of 1: how alike a key and a misspelling of it are
_IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".dcm")
_ENCODED_IMAGES = ("data:image/", "iVBORw0KGgo", "/9j/", "R0lGOD")
"""How an image in a text begins: as an address, or PNG, JPEG and GIF in base64."""
_DATA_ENDS = {"path", "paths", "url", "urls", "uri", "file", "files", "base64", "b", "bytes", "message", "prompt"}
"""Words behind another that say in which form it is."""
_ONE_OF_SEVERAL = {"image", "images", "img", "imgs", "picture", "pictures"}
"""Where a row has its images, `image_path` beside them may say where they came from."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
"""In a key: `patient`, `number` of `patient_number`, `patientNumber` or `Patient-Number`."""
_ENDS = {"id", "uid", "uuid", "name", "number", "no", "nr", "num", "key", "code", "ref", "index"}
"""Words behind another that say who or which it is."""


class Unused:
    """What nothing is read of in the rows of one file."""

    def __init__(self, name: str, mapped: Collection[str] = ()) -> None:
        """
        Args:
            mapped: columns that a map reads.
        """
        self._name, self._mapped = name, frozenset(mapped)
        self._counts: Counter[str] = Counter()
        self.total = 0
        """Rows that were looked at."""

    def look(
        self, row: Mapping[str, Any], known: Set[str], where: str, of: str = "", meant: Collection[str] | None = None
    ) -> None:
        """Count the keys that are not known.

        Args:
            known: keys that are read.
            of: what messages put in front of a key, such as `messages.`.
            meant: those of the known keys that another may be a misspelling of; by default those of one word.

        Raises:
            InputError: one of the others holds data, or is a known key that the row lacks, misspelt.
        """
        if row.keys() <= known:
            return
        images = any("image" in key or "img" in key for key in row.keys() & known)
        for key in (key for key in row if key not in known and key not in self._mapped):
            name = key.strip().casefold()
            if name in _MAY_BE_EMPTY and row[key] in ([], "[]", ""):
                continue
            if (hint := DATA_KEYS.get(name) or DATA_KEYS.get(_data_word(key))) is not None:
                raise InputError(f"{where}: the key {of}{key} is not read; {hint}")
            if _holds_image(row[key], names_count=not images):
                raise InputError(f"{where}: the key {of}{key} is not read, and holds an image; {_IMAGES}")
            # Whose a row is, a map has said; and many keys look like one of two words.
            words = (each for each in known if "_" not in each and not (self._mapped and each in LEVELS))
            candidates = _meant_keys(key, tuple(sorted(words if meant is None else meant)))
            if missing := next((each for each in candidates if each not in row), None):
                raise InputError(f"{where}: no key is called {of + key!r}; did you mean {missing}?")
            self._counts[of + key] += 1

    def say(self) -> None:
        """A `ChipWarning` of the keys, each with the number of its rows."""
        warn_of_unused(self._name, self._counts, self.total)


def _holds_image(value: object, names_count: bool) -> bool:
    """Whether it is encoded bytes, as `datasets` stores them or plain, or an image file's name; or a list of such.

    Args:
        names_count: where the record has an image, one such name may be its id.
    """
    if isinstance(value, list):
        return any(_holds_image(each, names_count=True) for each in value)
    if isinstance(value, dict):
        return "bytes" in value
    if not isinstance(value, str):
        return isinstance(value, bytes)
    return value.startswith(_ENCODED_IMAGES) or (names_count and value.lower().endswith(_IMAGE_FILES))


@cache
def _data_word(key: str) -> str:
    """What a key is about that ends in a word for its form, as `audio` in `audio_path`; empty where it does not."""
    words = [word.casefold() for word in _WORD.findall(key)]
    kind = list(words)
    while len(kind) > 1 and (kind[-1] in _DATA_ENDS or kind[-1].isdecimal()):
        kind.pop()
    name = "_".join(kind)
    return "" if kind == words or name in _ONE_OF_SEVERAL else name


@cache
def _meant_keys(key: str, known: tuple[str, ...]) -> Collection[str]:
    """The known keys that this one may be a misspelling of, or another word for."""
    words = [word.casefold() for word in _WORD.findall(key)]
    while len(words) > 1 and words[-1] in _ENDS:
        words.pop()
    for name in (" ".join(words), *words[-1:]):  # all of it, or what it is a kind of: a `report_section`
        meant = _SYNONYMS.get(name, name)
        if meant in known and (meant in LEVELS or name in _SYNONYMS):
            return (meant,)
    return difflib.get_close_matches(key.strip().casefold(), known, n=len(known) or 1, cutoff=_CLOSE)
