"""What names the target in its own questions: words, a few in a row at most, that nothing else has."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from chip.data.answers import tokenize_words
from chip.data.request import ForgetRequest

Phrase = tuple[str, ...]

LONGEST = 3
"""Words of a phrase, at most: who has a common first name and a common last one is named by both in a row."""
FEWEST = 3
"""Text-only questions of a node, from which on a phrase of theirs is taken for its name."""
SHARE = 0.5
"""Of a node's text-only questions, the part that must have the phrase: facts differ from question to question."""


def naming_phrases(request: ForgetRequest) -> set[Phrase]:
    """Phrases that the text-only questions of a node at or below a target share and no retained record has.

    Of those that hold another only the shorter one is given. Words as `tokenize_words` has them.
    """
    records, partition = request.hierarchy.records, request.partition
    questions: dict[Phrase, list[str]] = defaultdict(list)
    for index in partition.forget:
        if records[index].image is None:
            questions[records[index].path].append(records[index].question)
    phrases = {phrase for own in questions.values() for phrase in _shared(own)}
    retained = partition.retained if phrases else ()
    for text in {f"{records[i].question} \n {records[i].answer}" for i in retained}:
        phrases.difference_update(_phrases(text))
    return {phrase for phrase in phrases if not any(part in phrases for part in _parts(phrase))}


def _shared(questions: Sequence[str]) -> list[Phrase]:
    """Phrases that enough of a node's questions have."""
    if len(questions) < FEWEST:
        return []
    count = Counter(phrase for question in questions for phrase in set(_phrases(question)))
    return [phrase for phrase, times in count.items() if times >= SHARE * len(questions) and any(map(_is_word, phrase))]


def _phrases(text: str) -> Iterator[Phrase]:
    words = tokenize_words(text)
    for length in range(1, LONGEST + 1):
        yield from zip(*(words[start:] for start in range(length)), strict=False)


def _parts(phrase: Phrase) -> Iterator[Phrase]:
    """The shorter phrases in it."""
    for length in range(1, len(phrase)):
        yield from (phrase[start : start + length] for start in range(len(phrase) - length + 1))


def _is_word(word: str) -> bool:
    return any(map(str.isalnum, word))
