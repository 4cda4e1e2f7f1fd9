"""The tables of an evaluation, with what each measure means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from chip.evaluation.groups import GROUPS
from chip.evaluation.rows import NO_ATTACK, SPLITS, WORST, Evaluation, ResultRow
from chip.pages.attacks import step_words, steps
from chip.pages.comparing import reference_of
from chip.pages.groups import name_of
from chip.pages.words import between, number, p_value, share


@dataclass(frozen=True)
class Measure:
    """What a measure is called, and what it says."""

    title: str
    explanation: str
    told: Callable[[float], str] = share
    """A figure of it."""


@dataclass(frozen=True)
class Cell:
    """One figure; empty where it was not measured."""

    figure: str = ""
    interval: str = ""


@dataclass(frozen=True)
class Line:
    title: str
    note: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class FigureTable:
    """Figures under columns in groups."""

    title: str
    explanation: str
    stub: str
    """What the lines are."""
    columns: tuple[tuple[str, tuple[str, ...]], ...]
    """Title of several columns, and theirs."""
    lines: tuple[Line, ...]


OF_GROUPS: Mapping[str, Measure] = {
    "exact_match": Measure(
        "Exact match",
        "How many questions are answered word for word, when the model takes the most probable word each time.",
    ),
    "answer_probability": Measure(
        "Answer probability",
        "How probable the model finds the right answer, whether or not it is the one it gives: the geometric mean over "
        "the answer's tokens. It shows a trace that exact match does not.",
        number,
    ),
    "rouge_l": Measure(
        "ROUGE-L",
        "How much of the answer's words, in their order, is in what the model gives: 1 is all, 0 is nothing.",
        number,
    ),
    "classification_accuracy": Measure(
        "Classification", "How often the right one of several listed options is the most probable."
    ),
    "cloze_accuracy": Measure("Cloze", "How often a gap in a sentence is filled in word for word."),
    "judged": Measure("Judged", "How many of the answers given another language model took for right."),
}
"""Measured on every group."""

CHANCE = {
    "exact_match": "chance",
    "classification_accuracy": "classification_chance",
    "cloze_accuracy": "cloze_chance",
}
"""Measure -> what guessing would score on the same questions."""

_OF_THE_TARGET: Mapping[str, Measure] = {
    "exact_match_above_retrained": Measure(
        "Above the reference",
        "Exact match on the target, less the reference's. Above 0 something is left; below 0 is over-forgetting.",
        number,
    ),
    "gap": Measure(
        "Gap",
        "Exact match on the siblings, less that on the target: what sets apart what must stay and what must go.",
        number,
    ),
    "recovered_gap": Measure(
        "Recovered gap", "The gap as a part of the reference's: 1 is what retraining gives, 0 is nothing.", number
    ),
    "truth_ratio": Measure(
        "Truth ratio",
        "How probable wrong answers are next to the right one: small where the model knows, about 1 where it does not, "
        "large where it avoids the right one. As in TOFU, but without its paraphrases of the answer.",
        number,
    ),
    "ks_statistic": Measure(
        "KS statistic",
        "The largest distance between the truth ratios of the model and of the reference, both sorted: 0 is none.",
        number,
    ),
    "ks_p": Measure(
        "KS p-value",
        "How often two models that do not differ would be as far apart. Above 0.05 they cannot be told apart by it.",
        p_value,
    ),
    "forget_retain_harmonic_mean": Measure(
        "Harmonic mean",
        "Of what is not answered about the target and what is answered of all else: 1 is best, 0 as soon as one of "
        "them is. Not the Unlearning Efficiency Score of MLLMU-Med.",
        number,
    ),
}

_MEMBERSHIP: Mapping[str, Measure] = {
    "loss": Measure("Loss", "How probable the answer is."),
    "min_k": Measure("Min-K%", "How probable the least probable fifth of its tokens is."),
    "min_k_plus_plus": Measure("Min-K%++", "The same, next to the other tokens the model could have taken."),
}


def tables(found: Evaluation) -> Iterator[FigureTable]:
    """All figures, but of what was attacked: see `attack_tables`."""
    present = {row.measure for row in found.rows}
    for name, measure in OF_GROUPS.items():
        if name in present:
            yield _group_table(found, name, measure)
    others = [*OF_GROUPS, *CHANCE.values()]
    names = dict.fromkeys(row.measure for row in found.rows if row.attack == NO_ATTACK and row.measure not in others)
    if names:
        yield _target_table(found, list(names))


def attack_tables(found: Evaluation) -> Iterator[FigureTable]:
    """What is answered under attack, and membership inference."""
    if steps(found):
        for name in ("exact_match", "answer_probability"):
            yield _attack_table(found, name)
        if found.reference is not None:
            yield _beside_reference(found)
    if membership := membership_scores(found):
        yield _membership_table(found, membership)


def membership_scores(found: Evaluation) -> list[tuple[str, Measure, ResultRow]]:
    """Each score's name, what it is, and its area under the curve."""
    rows = [(row.measure.removeprefix("auc_"), row) for row in found.rows if row.measure.startswith("auc_")]
    return [(name, _MEMBERSHIP.get(name, Measure(name, "")), row) for name, row in rows]


def against(found: Evaluation) -> str:
    """What membership inference had to tell the target's own answers from."""
    attacks = (row.attack for row in found.rows if row.measure.startswith("auc_"))
    return next(attacks, "").partition(": ")[2]


def _sides(found: Evaluation) -> list[tuple[str, Evaluation]]:
    return [("this model", found), *([("reference", reference_of(found))] if found.reference is not None else [])]


def _group_table(found: Evaluation, name: str, measure: Measure) -> FigureTable:
    other, chance = reference_of(found), CHANCE.get(name, "")
    columns = [("this model", tuple(SPLITS))]
    columns += [("reference", tuple(SPLITS))] if found.reference is not None else []
    columns += [("chance", tuple(SPLITS))] if chance else []
    lines = []
    for group in GROUPS:
        rows = {split: found.find(group, split, name) for split in SPLITS}
        if any(rows.values()):
            compared = [other.find(group, split, name) for split in SPLITS if found.reference is not None]
            guessed = [found.find(group, split, chance) for split in SPLITS if chance]
            cells = [
                *_cells([*rows.values(), *compared], measure.told),
                *_cells(guessed, measure.told, interval=False),
            ]
            lines.append(Line(name_of(group), _asked(rows.values()), tuple(cells)))
    return FigureTable(measure.title, measure.explanation, "questions about", tuple(columns), tuple(lines))


def _target_table(found: Evaluation, names: Sequence[str]) -> FigureTable:
    splits = (*SPLITS, WORST)
    sides = _sides(found)
    lines = []
    for name in sorted(names, key=_order):
        measure = _measure(name)
        rows = [_only(side, name, split) for _, side in sides for split in splits]
        lines.append(Line(measure.title, measure.explanation, tuple(_cells(rows, measure.told))))
    columns = tuple((side, splits) for side, _ in sides)
    return FigureTable("About the target, and all together", "", "measure", columns, tuple(lines))


def _attack_table(found: Evaluation, name: str) -> FigureTable:
    measure = OF_GROUPS[name]
    asked = [(title, side, group) for title, side in _sides(found) for group in ("target", "siblings")]
    columns = [(f"{group}, {title}", tuple(SPLITS)) for title, _, group in asked]
    lines = []
    for attack in (NO_ATTACK, *steps(found)):
        rows = [side.find(group, split, name, attack) for _, side, group in asked for split in SPLITS]
        asked_of = _asked(found.find("target", split, name, attack) for split in SPLITS)
        lines.append(Line(step_words(attack), asked_of, tuple(_cells(rows, measure.told))))
    explanation = "The numbers of questions are those about the target."
    return FigureTable(f"{measure.title} under attack", explanation, "attack", tuple(columns), tuple(lines))


def _beside_reference(found: Evaluation) -> FigureTable:
    names, splits = ("exact_match_above_retrained", "recovered_gap"), (*SPLITS, WORST)
    lines = []
    for attack in (NO_ATTACK, *steps(found)):
        rows = [_only(found, name, split, attack) for name in names for split in splits]
        lines.append(Line(step_words(attack), "", tuple(_cells(rows, number))))
    columns = tuple((_OF_THE_TARGET[name].title.lower(), splits) for name in names)
    explanation = "The reference was attacked in the same way."
    return FigureTable("Beside the reference, under attack", explanation, "attack", columns, tuple(lines))


def _membership_table(found: Evaluation, scores: Sequence[tuple[str, Measure, ResultRow]]) -> FigureTable:
    sides = _sides(found)
    lines = []
    for name, measure, row in scores:
        names = (f"auc_{name}", f"true_positives_{name}")
        rows = [side.find(row.group, row.split, each, row.attack) for _, side in sides for each in names]
        lines.append(Line(measure.title, measure.explanation, tuple(_cells(rows, number))))
    return FigureTable(
        "Membership inference",
        f"The target's own answers against {against(found)}. AUC: how often its own scores above the other; 0.5 is a "
        "guess. True positives: the part of its own above all but 1% of the others.",
        "score",
        tuple((title, ("AUC", "true positives")) for title, _ in sides),
        tuple(lines),
    )


def _asked(rows: Iterable[ResultRow | None]) -> str:
    """`114 + 38 questions`: trained, and paraphrased."""
    return f"{' + '.join(f'{row.count:,}' for row in rows if row is not None)} questions"


def _measure(name: str) -> Measure:
    for prefix, title in (("leak_at_", "Leaked"), ("expected_leak_at_", "Expected to leak")):
        if name.startswith(prefix):
            draws = name.removeprefix(prefix)
            drawn = f"For how many questions about the target a right answer is among {draws} drawn at random"
            how = ", over all draws there could be" if prefix.startswith("expected") else ""
            return Measure(f"{title} in {draws} draws", f"{drawn}{how}.")
    return _OF_THE_TARGET.get(name) or Measure(name.replace("_", " ").capitalize(), "", number)


def _order(name: str) -> tuple[int, str]:
    """Leaks first, then those known, then what else there may be."""
    known = list(_OF_THE_TARGET)
    return -1 if "leak_at_" in name else known.index(name) if name in known else len(known), name


def _only(found: Evaluation, measure: str, split: str, attack: str = NO_ATTACK) -> ResultRow | None:
    """The figure of a measure that only one group has."""
    return next((row for row in found.rows if (row.measure, row.split, row.attack) == (measure, split, attack)), None)


def _cells(rows: Iterable[ResultRow | None], how: Callable[[float], str], interval: bool = True) -> Iterator[Cell]:
    for row in rows:
        if row is None or row.value != row.value:
            yield Cell()
        else:
            yield Cell(how(row.value), between(row.low, row.high, how) if interval else "")
