"""What the figures of an evaluation permit one to say, in words for whoever has to sign for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from chip.evaluation.groups import GROUPS
from chip.evaluation.rows import WORST, Evaluation, ResultRow
from chip.pages.attacks import PLAIN, impossible, not_run, step_words, steps
from chip.pages.comparing import (
    CLOSE,
    Excess,
    Loss,
    apart,
    by_split,
    excess,
    excesses,
    largest_loss,
    loss,
    reference_of,
    told,
)
from chip.pages.groups import name_of
from chip.pages.words import count, listed, number, p_value, points, share

WORDINGS = {"trained": "the wordings of the training", "paraphrased": "other wordings"}
_SUPPRESSED = "Suppressed, under these tests"
_P = 0.05  # below it two models count as told apart
_NAMED = 3  # of the attack steps that bring something back

Tone = Literal["good", "bad", "open"]


@dataclass(frozen=True)
class Finding:
    """One question of whoever has to sign, and what the figures answer."""

    question: str
    answer: str
    tone: Tone
    """`open`: the figures do not decide it."""
    sentences: tuple[str, ...]
    caveat: str = ""
    """What a headline must not leave out, even where it is short."""


@dataclass(frozen=True)
class Verdict:
    headline: str
    findings: tuple[Finding, ...]


def verdict(found: Evaluation) -> Verdict:
    """The findings in the order in which they are asked for, and a headline no stronger than they are."""
    answers, attacks = _answers(found), _attacks(found)
    findings = (answers, attacks, _kept(found), _alike(found))
    caveats = [finding.caveat for finding in findings if finding.caveat]
    headline = _headline(found, answers, attacks)
    joint = ", but " if headline == _SUPPRESSED else "; "
    return Verdict(f"{headline}{joint}{listed(caveats)}" if caveats else headline, findings)


def _headline(found: Evaluation, answers: Finding, attacks: Finding) -> str:
    if answers.tone == "bad":
        return f"More is still answered about the target than {_expected(found)}"
    if attacks.tone == "bad":
        return "Attacks bring some of it back"
    if found.reference is None:
        return "Undecided: it was not compared with a model that never knew the target"
    if answers.tone == "open":
        return "Undecided: too little was asked about the target"
    return _SUPPRESSED


def _expected(found: Evaluation) -> str:
    return "by chance" if found.reference is None else "by a model that never knew it"


def limits(found: Evaluation) -> Iterator[str]:
    """What must not be concluded from the page."""
    yield (
        "It does not say that anything was deleted in the sense of the law. It says what the model suppresses, under "
        "these tests. Other questions, other attacks or further training may bring something back."
    )
    yield (
        "It says nothing beyond the questions asked. What the model may know about the target that none of them asks "
        "for was not measured."
    )
    yield "It does not show that the model ever knew the target. For that, ask the model before the edit the same way."
    if found.reference is not None:
        yield (
            "That the reference never knew the target is the word of whoever made it. Trained once more, it would give "
            "somewhat other figures; the intervals do not cover that."
        )
        return
    yield (
        "Nothing was compared with a model retrained without the target. Without one it cannot be concluded whether "
        "what is still answered is more than such a model would answer, or less, which would be over-forgetting; nor "
        "whether what an attack brings out was left in the weights, or could be guessed. Chance, which is shown "
        "instead, is no more than the score of the most common answers."
    )


def _answers(found: Evaluation) -> Finding:
    question = "Does it still answer about the target?"
    rows = by_split(found, "target", "exact_match")
    if not rows:
        return Finding(question, "It was not asked", "open", ("No question about it was among the records.",))
    sides = {split: side for split, side in excesses(found).items() if side.known}
    answer, tone = _more(sides.values(), len(rows), _expected(found), found.reference is not None)
    sentences = (_asked(rows), *_never_knew(found), _compared(found, sides), *_drawn(found))
    return Finding(question, answer, tone, sentences)


def _more(sides: Collection[Excess], asked: int, expected: str, decisive: bool) -> tuple[str, Tone]:
    """Whether more is answered than expected; that it is not decides something only beside a reference.

    Args:
        sides: those of `asked` figures that have an interval.
    """
    if any(side.above for side in sides):
        return f"Yes, more than {expected}", "bad"
    if len(sides) < asked:
        return "That cannot be told", "open"
    unnoticed = max(side.unnoticed for side in sides)
    if unnoticed > CLOSE:
        return f"No excess has shown, but up to {points(unnoticed)} could have gone unnoticed", "open"
    return f"No more than {expected}", "good" if decisive else "open"


def _asked(rows: Sequence[ResultRow]) -> str:
    of = [f"{told(row)} of {count(row.count, 'question')} in {WORDINGS[row.split]}" for row in rows]
    return f"It rightly answers {listed(of)}."


def _never_knew(found: Evaluation) -> Iterator[str]:
    other = reference_of(found) if found.reference is not None else found
    rows = by_split(other, "target", "chance" if found.reference is None else "exact_match")
    if rows and found.reference is None:
        yield f"Always giving the most common answer would score {_each(share(row.value) for row in rows)} (chance)."
    elif rows:
        yield f"The reference, which never knew it, answers {_each(told(row) for row in rows)}."


def _each(figures: Iterable[str]) -> str:
    """Of trained and of paraphrased wordings; once where they are the same."""
    return listed(list(dict.fromkeys(figures)))


def _compared(found: Evaluation, sides: Mapping[str, Excess]) -> str:
    if not sides:
        return "How far this would vary with other facts cannot be told: too few were asked for."
    more = [f"{side} more in {WORDINGS[split]}" for split, side in sides.items() if side.above]
    if more and found.reference is not None:
        return f"That is {listed(more)}: something of the target is left."
    if more:
        return (
            f"That is {listed(more)}. A model that never knew it may be above chance too, by what an image shows or a "
            "question suggests: only a reference would tell."
        )
    over = "chance" if found.reference is None else "the reference"
    unnoticed = max(side.unnoticed for side in sides.values())
    return f"No excess over {over} has shown; one of up to {points(unnoticed)} could have gone unnoticed."


def _drawn(found: Evaluation) -> Iterator[str]:
    row = next((row for row in found.rows if row.measure.startswith("leak_at_") and row.split == WORST), None)
    if row is not None:
        other = reference_of(found).find(row.group, row.split, row.measure)
        beside = "" if other is None else f"; with the reference, for {told(other)}"
        draws = row.measure.removeprefix("leak_at_")
        yield f"Among {draws} answers drawn at random there was a right one for {told(row)} of the questions{beside}."


def _attacks(found: Evaluation) -> Finding:
    question = "Do attacks bring it back?"
    unknown = tuple(_untested(found))
    asked = [step for step in steps(found) if step != PLAIN]
    rungs = {step: row for step in asked if (row := found.find("target", WORST, "exact_match", step)) is not None}
    if not rungs:
        return Finding(question, "That was not tested", "open", unknown, "what attacks bring back was not tested")
    known = {step: side for step in rungs if (side := excess(found, WORST, step)) is not None and side.known}
    expected = "without an attack" if found.reference is None else "a model that never knew it under the same attack"
    answer, tone = _more(known.values(), len(rungs), expected, found.reference is not None)
    caveat = "not all attacks were run" if unknown else ""
    if tone == "open" and found.reference is not None:
        caveat = "what attacks bring back is not settled"
    return Finding(question, answer, tone, (_most(found, rungs), _brought_back(found, known), *unknown), caveat)


def _untested(found: Evaluation) -> Iterator[str]:
    if names := not_run(found):
        yield f"Not run: {listed(names)}. What that would bring back is not known."
    if names := impossible(found):
        yield f"Not possible with these records: {listed(names)}."


def _most(found: Evaluation, rungs: Mapping[str, ResultRow]) -> str:
    step = max(rungs, key=lambda step: rungs[step].value)
    before = found.find("target", WORST, "exact_match")
    other = reference_of(found).find("target", WORST, "exact_match", step)
    compared = [
        *([f"{told(before)} without an attack"] if before is not None else []),
        *([f"{told(other)} by the reference under the same"] if other is not None else []),
    ]
    beside = f", beside {listed(compared)}" if compared else ""
    tried = f"Of {len(rungs)} steps, the one that brings out most is" if len(rungs) > 1 else "The one step tried is"
    return f"{tried} “{step_words(step)}”: {told(rungs[step])} is answered{beside}."


def _brought_back(found: Evaluation, sides: Mapping[str, Excess]) -> str:
    over = "what is answered without an attack" if found.reference is None else "the reference under the same attack"
    more = sorted((step for step, side in sides.items() if side.above), key=lambda step: -sides[step].value)
    if not more:
        return f"At none of them has an excess over {over} shown."
    named = [f"“{step_words(step)}” by {sides[step]}" for step in more[:_NAMED]]
    rest = [count(len(more) - _NAMED, "further step")] if len(more) > _NAMED else []
    return f"Above {over}: {listed([*named, *rest])}."


def _kept(found: Evaluation) -> Finding:
    question = "Does it still answer what must stay?"
    rows = [row for group in GROUPS if group != "target" and (row := found.find(group, WORST, "exact_match"))]
    if not rows:
        return Finding(question, "It was not asked", "open", ("No question about it was among the records.",))
    others = [reference_of(found).find(row.group, WORST, "exact_match") for row in rows]
    figures = [
        f"{name_of(row.group)} {told(row)}" + ("" if other is None else f", the reference {told(other)}")
        for row, other in zip(rows, others, strict=True)
    ]
    sentence = f"Rightly answered, in the worse of both wordings: {'; '.join(figures)}."
    if found.reference is None:
        least, most = (share(end(row.value for row in rows)) for end in (min, max))
        answer = f"{least} of it" if least == most else f"{least} to {most} of it"
        alone = "What the edit has cost of it cannot be told from this model alone."
        return Finding(question, answer, "open", (sentence, alone))
    losses = {row.group: loss(found, row.group) for row in rows}
    groups = {each: [name_of(group) for group in losses if losses[group] is each] for each in Loss}
    lost = {name_of(group): largest_loss(found, group) for group in losses if losses[group] is Loss.LOST}
    return _lost(question, groups, lost, (sentence, *_losses(groups, lost), *_doubts(found, rows)))


def _lost(
    question: str, groups: Mapping[Loss, Sequence[str]], lost: Mapping[str, float], sentences: tuple[str, ...]
) -> Finding:
    if lost:
        answer = f"Less than the reference: {listed([f'{points(size)} about {group}' for group, size in lost.items()])}"
        caveat = f"what must stay is answered less, by up to {points(max(lost.values()))}"
        return Finding(question, answer, "bad", sentences, caveat)
    if groups[Loss.DOUBTFUL] or not groups[Loss.KEPT]:
        answer = "No loss is certain, but one may be there"
        return Finding(question, answer, "open", sentences, "a loss of what must stay is not excluded")
    answer = "Yes, where enough was asked to tell" if groups[Loss.UNKNOWN] else "Yes"
    return Finding(question, answer, "good", sentences)


def _losses(groups: Mapping[Loss, Sequence[str]], lost: Mapping[str, float]) -> Iterator[str]:
    close = points(CLOSE)
    words = {
        Loss.LOST: "Less than the reference, with intervals that lie apart",
        Loss.DOUBTFUL: f"Less than the reference by more than {close}, with intervals that meet",
        Loss.KEPT: f"A loss of more than {close} would have shown in",
        Loss.UNKNOWN: "Too little was asked to exclude such a loss in",
    }
    for each, names in groups.items():
        if names:
            told_of = [f"{name} (by {points(lost[name])})" if name in lost else name for name in names]
            yield f"{words[each]}: {listed(told_of)}."


def _doubts(found: Evaluation, rows: Sequence[ResultRow]) -> Iterator[str]:
    """A model that was only spared the target would know what must stay at least as well as an edited one."""
    other = reference_of(found)
    worse = [name_of(row.group) for row in rows if (beside := _same(other, row)) is not None and apart(row, beside) > 0]
    if worse:
        yield f"The reference answers less than this model about {listed(worse)}: is it what it is taken for?"


def _alike(found: Evaluation) -> Finding:
    question = "Does it look like a model that never knew the target?"
    if found.reference is None:
        alone = "That takes a model retrained without the target, given as --reference."
        return Finding(question, "That cannot be told", "open", (alone, *_membership(found)))
    sides = {split: side for split, side in excesses(found).items() if side.known}
    below = {split: side for split, side in sides.items() if side.below}
    scores = [side for _, side in _areas(found)]
    sentences = (*_fewer(below, sides), *_membership(found), *_probabilities(found))
    if below or -1 in scores:
        caveat = "it falls below a model that never knew it, which is over-forgetting"
        return Finding(question, "No, it falls below one: that is over-forgetting", "bad", sentences, caveat)
    if 1 in scores or any(side.above for side in sides.values()):
        caveat = "its right answers still stand out" if 1 in scores else ""
        return Finding(question, "No, the target still stands out", "bad", sentences, caveat)
    if any(row.value <= _P for row in by_split(found, "target", "ks_p")):
        return Finding(question, "Not in its probabilities", "open", sentences)
    if len(sides) < len(by_split(found, "target", "exact_match")) or not sides:
        return Finding(question, "That cannot be told", "open", sentences)
    unnoticed = max(side.unnoticed_below for side in sides.values())
    if unnoticed > CLOSE:
        answer = f"No difference has shown, but it may fall short by up to {points(unnoticed)} unnoticed"
        return Finding(question, answer, "open", sentences, "over-forgetting is not excluded")
    return Finding(question, "No difference has shown", "good", sentences)


def _fewer(below: Mapping[str, Excess], sides: Mapping[str, Excess]) -> Iterator[str]:
    if below:
        fewer = listed([f"by {side} in {WORDINGS[split]}" for split, side in below.items()])
        yield (
            f"It answers less about the target than the reference, {fewer}. A model that never knew it still guesses "
            "some; to fall short of that is no success, and may itself give away that something was taken out."
        )
    elif sides:
        yield "It has not been shown to answer less about the target than the reference."


def _areas(found: Evaluation) -> list[tuple[ResultRow, int]]:
    """Of each score of membership inference the area under its curve, and whether that lies apart: see `apart`."""
    other = reference_of(found)
    rows = [row for row in found.rows if row.measure.startswith("auc_")]
    return [(row, 0 if (beside := _same(other, row)) is None else apart(row, beside)) for row in rows]


def _same(other: Evaluation, row: ResultRow) -> ResultRow | None:
    return other.find(row.group, row.split, row.measure, row.attack)


def _membership(found: Evaluation) -> Iterator[str]:
    areas = _areas(found)
    if not areas:
        return
    row, side = max(areas, key=lambda area: (abs(area[1]), abs(area[0].value - 0.5)))  # the one that tells most
    other = _same(reference_of(found), row)
    beside = "" if other is None else f"; with the reference, {told(other, number)}"
    yield (
        f"Membership inference tells the target's own answers from others with an AUC of {told(row, number)}{beside}; "
        f"0.5 is a guess. {_standing(row, side, other is not None)}"
    )


def _standing(area: ResultRow, side: int, compared: bool) -> str:
    if not compared:
        guess = not (area.low > 0.5 or area.high < 0.5)
        return "It has not been shown to differ from that." if guess else "It is none."
    return {
        1: "That lies above the reference: its right answers still stand out.",
        0: "No difference has shown.",
        -1: "That lies below the reference: right answers are less likely to it than had they never been learnt, which "
        "is over-forgetting, and no success.",
    }[side]


def _probabilities(found: Evaluation) -> Iterator[str]:
    values = [row.value for row in by_split(found, "target", "ks_p")]
    if not values:
        return
    least = min(values)
    test = f"(Kolmogorov-Smirnov test, p-value {p_value(least)})"
    if least > _P:
        yield f"By its truth ratios it cannot be told from the reference {test}."
    else:
        yield (
            f"By its truth ratios it can be told from the reference {test}. The test takes every question for a fact "
            "of its own, and finds differences readily."
        )
