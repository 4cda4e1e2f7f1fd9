"""What names the target in a text: the ids of its nodes and of all below them, however they are written.

`patient_17`, `Patient 17`, `PATIENT-17` and `Patient17` are one name; `patient_170` is another. Not every id is a name
by itself. A section's is a word that any text may hold, and so is a word that others share (`chest`, of a study in
every patient): with the id above it, it is one. A small number is one behind its level's word, `patient 17`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from chip.data.hierarchy import Hierarchy, Node
from chip.data.record import LEVELS

Words = tuple[str, ...]

_SHORTEST = 3  # letters; fewer stand for many things
_SHORTEST_UNSPACED = 2  # in a script of characters
_SHORTEST_NUMBER = 6  # digits

_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]")
_DASHES = re.compile("[\u2010-\u2015\u2212]")
_QUOTES = re.compile("[\"'\u2018-\u201f]")
_WORDS = re.compile(r"[^\W_]+|[^\w\s/-]+")
"""Words, and signs between them; of a space, `_`, `-` and `/` nothing is left."""
_PARTS = re.compile(r"[^\W\d_]+|\d+|[^\w\s/-]+")
"""The same, with numbers apart from letters."""
_SEPARATORS = re.compile(r"[\W_]+")
_BEFORE_NUMBERS: tuple[Words, ...] = (
    *((), (":",), ("=",), ("#",)),
    *(("no", "."), ("no",), ("nr", "."), ("nr",), ("number",)),
)
"""What may stand between a word and its number: in prose, in YAML, in JSON; quotes are left out."""
_HUMPS = re.compile("(?<=[a-z0-9])(?=[A-Z][a-z])")
"""Where a word begins within camel case: `runPatient17Study4`."""
_LETTERS = re.compile(r"[^\W\d_]+")
_LATIN = re.compile("[A-Za-z]")
_LOOKALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТУХԚԜаеѕіјӏорсухһԁԛԝѵΑΒΕΖΗΙΚΜΝΟΡΤΥΧαγικνορυ",
    "ABESIJKMHOPCTYXQWaesijlopcyxhdqwvABEZHIKMNOPTYXayikvopu",
)
"""Cyrillic and Greek letters that look like Latin ones (Unicode, UTS #39, confusables.txt)."""
_OTHER_DIGITS = re.compile(r"[^\D0-9]")


@dataclass(frozen=True)
class TargetNames:
    """What must not stand in anything that is written."""

    _sequences: dict[int, dict[Words, str]] = field(default_factory=dict)
    """Number of words -> words that follow each other -> the name that they are."""
    _unspaced: dict[re.Pattern[str], str] = field(default_factory=dict)
    """Of names in a script that sets no spaces, or joins endings to a name: what finds it in a text without spaces."""
    _ids: dict[Words, str] = field(default_factory=dict)
    """Of the targets themselves."""

    @classmethod
    def of(cls, hierarchy: Hierarchy, targets: Sequence[Node]) -> TargetNames:
        """The names of these nodes of the hierarchy, and of all nodes below them."""
        names, known = cls(), set(targets)
        inside = [node for node in hierarchy.nodes if not known.isdisjoint(_upward(node))]
        everywhere = Counter(normalize(node.id) for node in hierarchy.nodes)
        elsewhere = everywhere - Counter(normalize(node.id) for node in inside)
        for node in inside:
            shared = elsewhere[normalize(node.id)] > 0
            numbered_target = node in known and any(map(str.isdigit, node.id))
            is_name = node.level != LEVELS[-1] and (numbered_target or not shared)
            if is_name:
                names._add_id(node)
            if node in known and (not is_name or _is_weak(node.id)):
                names._add_phrase(node, everywhere)
            if node in known and node.level != LEVELS[-1]:
                names._ids.update(dict.fromkeys(_spellings((node.id,)), node.id))
        return names

    def find(self, text: str, *, vocabulary: bool = False) -> str | None:
        """A name that stands in the text; None where there is none.

        Args:
            vocabulary: the text lists words one by one, which are nobody's: a name is what takes several of them.
        """
        if not vocabulary and (spaced := _HUMPS.sub(" ", text)) != text and (name := self._find(spaced)):
            return name
        return self._find(text, vocabulary)

    def _find(self, text: str, vocabulary: bool = False) -> str | None:
        text = normalize(text)
        words = _WORDS.findall(text.replace("\n", " , ") if vocabulary else text)
        for length, names in self._sequences.items():
            for spelling in filter(names.__contains__, _following(words, length)):
                if not vocabulary or (length > 1 and "".join(spelling).isalnum()):
                    return names[spelling]
        if vocabulary or not self._unspaced:
            return None
        text = _SEPARATORS.sub("", text)
        return next((name for pattern, name in self._unspaced.items() if pattern.search(text)), None)

    def find_in_label(self, label: str) -> str | None:
        """As `find`, in what somebody calls the request: there, a small number is a name too."""
        words = _WORDS.findall(normalize(label))
        for length in {len(spelling) for spelling in self._ids}:
            for found in filter(self._ids.__contains__, _following(words, length)):
                return self._ids[found]
        return self.find(label)

    def _add_id(self, node: Node) -> None:
        if not _is_weak(node.id):
            self._add((node.id,), node.id)
            return
        for spelling in _spellings((node.id,)):
            for sign in _BEFORE_NUMBERS:
                self._add_words((node.level, *sign, *spelling), f"{node.level} {node.id}")

    def _add_phrase(self, node: Node, everywhere: Counter[str]) -> None:
        """The id behind those above it, up to one that nobody else has."""
        nodes = [node]
        for above in _upward(node)[1:]:
            nodes.insert(0, above)
            if everywhere[normalize(above.id)] == 1 and not _is_weak(above.id):
                break
        if len(nodes) > 1:
            ids = tuple(node.id for node in nodes)
            self._add(ids, "/".join(ids))

    def _add(self, ids: Sequence[str], name: str) -> None:
        for spelling in _spellings(ids):
            self._add_words(spelling, name)
            if len(spelling) > 1 and spelling[-1].isdecimal() and spelling[-2].isalpha():
                for sign in _BEFORE_NUMBERS:
                    self._add_words((*spelling[:-1], *sign, spelling[-1]), name)
        if any(map(_is_unspaced, name)):
            together = _SEPARATORS.sub("", normalize(name))
            before, after = (r"(?<!\d)" * together[0].isdigit(), r"(?!\d)" * together[-1].isdigit())
            self._unspaced[re.compile(f"{before}{re.escape(together)}{after}")] = name

    def _add_words(self, words: Words, name: str) -> None:
        if words:
            self._sequences.setdefault(len(words), {})[words] = name


def normalize(text: str) -> str:
    """The text in the form in which names are compared: NFKC, case-folded, one kind of dash and of digits, no quotes,
    nothing invisible, and no Cyrillic or Greek letter that stands for a Latin one in a word with others."""
    if not text.isascii():
        text = _DASHES.sub("-", _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)))
        text = _OTHER_DIGITS.sub(lambda digit: str(unicodedata.digit(digit[0])), text)
        text = _LETTERS.sub(_in_one_script, text)
    return _QUOTES.sub(" ", text).casefold()


def _in_one_script(word: re.Match[str]) -> str:
    return word[0] if word[0].isascii() or not _LATIN.search(word[0]) else word[0].translate(_LOOKALIKES)


def _upward(node: Node) -> list[Node]:
    """The node, its parent, and so on up to the institution."""
    return [Node(node.path[:depth]) for depth in range(len(node.path), 0, -1)]


def _following(words: Sequence[str], length: int) -> Iterator[Words]:
    """Each `length` words that follow each other."""
    return zip(*(words[start:] for start in range(length)), strict=False)


def _spellings(ids: Sequence[str]) -> set[Words]:
    """The words of some ids, one behind the other: as they are written, with numbers apart, and each id in one."""
    normalized = [normalize(id) for id in ids]
    forms = (_WORDS.findall, _PARTS.findall, lambda id: ["".join(_WORDS.findall(id))])
    return {tuple(word for id in normalized for word in form(id)) for form in forms}


def _is_weak(id: str) -> bool:
    """Whether an id is too short to stand for somebody wherever it occurs."""
    plain = _SEPARATORS.sub("", normalize(id))
    if plain.isdigit():
        return len(plain) < _SHORTEST_NUMBER
    return len(plain) < (_SHORTEST_UNSPACED if any(map(_is_unspaced, plain)) else _SHORTEST)


def _is_unspaced(character: str) -> bool:
    """Whether it is a letter without case: most such scripts set no space between words, or join endings to them."""
    return unicodedata.category(character) == "Lo"
