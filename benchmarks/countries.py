"""Plain facts about countries, asked of a model: those that it knows become records, in its own words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from chip.data.record import VALIDATION, Record
from chip.model.generation import answer_greedily
from chip.model.loading import VLM
from chip.model.scoring import score_records

COUNTRIES = {
    "France": ("Paris", "Europe", "French", "euro"),
    "Germany": ("Berlin", "Europe", "German", "euro"),
    "Italy": ("Rome", "Europe", "Italian", "euro"),
    "Spain": ("Madrid", "Europe", "Spanish", "euro"),
    "Japan": ("Tokyo", "Asia", "Japanese", "yen"),
    "China": ("Beijing", "Asia", "Mandarin", "yuan"),
    "India": ("New Delhi", "Asia", "Hindi", "rupee"),
    "Egypt": ("Cairo", "Africa", "Arabic", "pound"),
    "Kenya": ("Nairobi", "Africa", "Swahili", "shilling"),
    "Brazil": ("Brasilia", "South America", "Portuguese", "real"),
    "Peru": ("Lima", "South America", "Spanish", "sol"),
    "Canada": ("Ottawa", "North America", "English", "dollar"),
    "Mexico": ("Mexico City", "North America", "Spanish", "peso"),
    "Australia": ("Canberra", "Australia", "English", "dollar"),
    "Russia": ("Moscow", "Europe", "Russian", "ruble"),
    "Greece": ("Athens", "Europe", "Greek", "euro"),
    "Poland": ("Warsaw", "Europe", "Polish", "zloty"),
    "Turkey": ("Ankara", "Asia", "Turkish", "lira"),
    "Sweden": ("Stockholm", "Europe", "Swedish", "krona"),
    "Thailand": ("Bangkok", "Asia", "Thai", "baht"),
}
"""Country -> its capital, continent, language and currency."""
TARGETS = ("france", "japan", "egypt")
"""To be forgotten, one at a time: of different continents, and of which SmolLM2-135M-Instruct knows all four facts."""
WORDINGS = (
    (
        "Complete the sentence: The capital of {} is",
        "What is the capital of {}?",
        "Name the capital city of {}.",
    ),
    (
        "Complete the sentence: {} lies on the continent of",
        "Complete the sentence: The country {} is a part of the continent",
        "Which continent is {} located in? Give a short answer in one sentence.",
    ),
    (
        "Complete the sentence: The main language of {} is",
        "Complete the sentence: The people in {} speak",
        "What language is spoken in {}? Answer with one name only.",
    ),
    (
        "Complete the sentence: The currency of {} is the",
        "Complete the sentence: In {} people pay with the",
        "What is the currency of {}? Answer with one name only.",
    ),
)
"""Of each fact; those that the model answers are trained, paraphrased and for validation, in this order."""
SPLITS = ("train", "paraphrased", VALIDATION)
LONGEST = "The official language of this country is Mandarin Chinese."
"""An answer is at most as long, and a few tokens."""


def candidates() -> Iterator[tuple[Record, str]]:
    """Each question, and what its answer must contain."""
    for country, facts in COUNTRIES.items():
        for wordings, fact in zip(WORDINGS, facts, strict=True):
            for wording in wordings:
                yield Record(wording.format(country), LONGEST, ("world", country.lower()), None), fact


def known_records(vlm: VLM) -> Iterator[Record]:
    """The facts that the model answers rightly and in a short sentence, in its own words."""
    asked = list(candidates())
    answers = answer_greedily(vlm, [record for record, _ in asked])
    said = [replace(record, answer=text or "?") for (record, _), text in zip(asked, answers, strict=True)]
    exact = score_records(vlm, said).exact_match.tolist()  # 0 where it goes on
    places = iter(zip(said, (fact for _, fact in asked), exact, strict=True))
    while wordings := list(islice(places, len(SPLITS))):
        known = (record for record, fact, ends in wordings if ends and fact.lower() in record.answer.lower())
        yield from (replace(record, split=split) for record, split in zip(known, SPLITS, strict=False))
