"""The decisions: what the figures of an evaluation permit one to say."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from chip.data.record import TASKS
from chip.evaluation.attacks import ATTACKS
from chip.evaluation.rows import NO_ATTACK, WORST, Evaluation, ResultRow
from chip.report import comparison, findings
from chip.report.comparison import CLOSE, Excesses, Loss, apart, by_split, reference_of, same_row
from chip.report.findings import Answer, Caveat, Findings, Headline, Membership, Tone

PLAIN = "reconstruction: none"
"""A step that adds nothing: the question as it is."""
_SAME_P = 0.05  # at or below it two models count as told apart


def verdict(evaluation: Evaluation) -> Findings:
    """Judge the figures of an evaluation."""
    target, attacks = _target(evaluation), _attacks(evaluation)
    headline = _headline(target.tone, attacks.tone, evaluation.reference is not None)
    return Findings(headline, target, attacks, _retained(evaluation), _likeness(evaluation))


def retained_rows(evaluation: Evaluation) -> list[ResultRow]:
    """Exact match of each group that must stay, in the worse wording."""
    rows = (evaluation.find(group, WORST, "exact_match") for group in evaluation.groups if group != "target")
    return [row for row in rows if row is not None]


def membership_rows(evaluation: Evaluation) -> list[ResultRow]:
    """Of each score of membership inference the area under its curve."""
    return [row for row in evaluation.rows if row.measure.startswith("auc_")]


def _headline(target: Tone, attacks: Tone, compared: bool) -> Headline:
    if target == "bad":
        return "left"
    if attacks == "bad":
        return "brought back"
    if not compared:
        return "not compared"
    return "too few questions" if target == "open" else "suppressed"


def _more(excesses: Excesses, figures: int, decisive: bool) -> tuple[Answer, Tone]:
    """Whether more is answered than expected; that it is not decides something only beside a reference.

    Args:
        excesses: those of `figures` that have an interval.
    """
    if not figures:
        return "not asked", "open"
    if excesses.above:
        return "more", "bad"
    if len(excesses) < figures:
        return "unknown", "open"
    if excesses.unnoticed > CLOSE:
        return "unnoticed", "open"
    return "no more", "good" if decisive else "open"


def _target(evaluation: Evaluation) -> findings.TargetFinding:
    rows = by_split(evaluation, "target", "exact_match")
    compared, reference = evaluation.reference is not None, reference_of(evaluation)
    expected = by_split(reference, "target", "exact_match") if compared else by_split(evaluation, "target", "chance")
    excesses = comparison.excesses(evaluation)
    worst = (row for row in evaluation.rows if row.split == WORST and row.attack == NO_ATTACK)
    leak = next((row for row in worst if row.measure.startswith("leak_at_")), None)
    kinds = {task: evaluation.find("target", WORST, f"{task}_accuracy") for task in TASKS}
    return findings.TargetFinding(
        *_more(excesses, len(rows), compared),
        caveat=None,
        rows=tuple(rows),
        expected=tuple(expected),
        by_task={task: row for task, row in kinds.items() if row is not None},
        few_questions=evaluation.few_questions,
        excesses=excesses,
        leak=leak,
        reference_leak=None if leak is None else reference.find(leak.group, leak.split, leak.measure),
    )


def _attacks(evaluation: Evaluation) -> findings.AttackFinding:
    compared, steps = evaluation.reference is not None, comparison.steps(evaluation)
    attacked = (evaluation.find("target", WORST, "exact_match", step) for step in steps if step != PLAIN)
    rows = [row for row in attacked if row is not None]
    excesses = comparison.attack_excesses(evaluation, [row.attack for row in rows])
    strongest = max(rows, key=lambda row: row.value, default=None)
    measured = {row.attack.partition(": ")[0] for row in evaluation.rows}
    not_run = tuple(attack for attack in ATTACKS if attack not in evaluation.attacks)
    unmeasured = (attack for attack in evaluation.attacks if attack in ATTACKS and attack not in measured)
    skipped = {step: why for step, why in evaluation.skipped.items() if step.partition(": ")[0] in evaluation.attacks}
    impossible = tuple(attack for attack in unmeasured if attack not in skipped)
    answer, tone = _more(excesses, len(rows), compared)
    caveat: Caveat | None = "attacks missing" if not_run or impossible or skipped else None
    if not rows:
        caveat = "attacks not tested"
    elif tone == "open" and compared:
        caveat = "attacks undecided"
    return findings.AttackFinding(
        *(answer, tone, caveat),
        steps=len(rows),
        strongest=strongest,
        strongest_reference=None if strongest is None else same_row(reference_of(evaluation), strongest),
        unattacked=evaluation.find("target", WORST, "exact_match"),
        excesses=excesses,
        not_run=not_run,
        impossible=impossible,
        skipped=skipped,
    )


def _retained(evaluation: Evaluation) -> findings.RetainedFinding:
    rows, reference = retained_rows(evaluation), reference_of(evaluation)
    pairs = tuple((row, same_row(reference, row)) for row in rows)
    compared = evaluation.reference is not None
    kinds = {row.group: comparison.loss(evaluation, row.group) for row in rows} if compared else {}
    losses = {kind: tuple(group for group in kinds if kinds[group] is kind) for kind in Loss}
    return findings.RetainedFinding(
        *_loss(losses, len(rows), compared),
        rows=pairs,
        losses=losses,
        lost={group: comparison.largest_loss(evaluation, group) for group in losses[Loss.LOST]},
        worse_reference=tuple(row.group for row, other in pairs if apart(row, other) > 0),
    )


def _loss(losses: Mapping[Loss, Collection[str]], groups: int, compared: bool) -> tuple[Answer, Tone, Caveat | None]:
    if not groups:
        return "not asked", "open", None
    if not compared:
        return "not compared", "open", None
    if losses[Loss.LOST]:
        return "less", "bad", "loss"
    if losses[Loss.DOUBTFUL] or not losses[Loss.EXCLUDED]:
        return "loss possible", "open", "loss possible"
    return "no loss where asked" if losses[Loss.UNKNOWN] else "no loss", "good", None


def _likeness(evaluation: Evaluation) -> findings.LikenessFinding:
    reference = reference_of(evaluation)
    pairs = [(row, same_row(reference, row)) for row in membership_rows(evaluation)]
    areas = [Membership(row, other, apart(row, other)) for row, other in pairs]
    p_value = min((row.value for row in by_split(evaluation, "target", "ks_p")), default=None)
    told_apart = p_value is not None and p_value <= _SAME_P
    excesses = comparison.excesses(evaluation)
    return findings.LikenessFinding(
        *_alike(evaluation, excesses, {area.side for area in areas}, told_apart),
        excesses=excesses,
        membership=max(areas, key=lambda area: (abs(area.side), abs(area.row.value - 0.5)), default=None),
        p_value=p_value,
        told_apart=told_apart,
    )


def _alike(
    evaluation: Evaluation, excesses: Excesses, sides: Collection[int], told_apart: bool
) -> tuple[Answer, Tone, Caveat | None]:
    if evaluation.reference is None:
        return "unknown", "open", None
    if -1 in sides or excesses.below:
        return "less", "bad", "over-forgetting"
    if 1 in sides or excesses.above:
        return "more", "bad", "stands out" if 1 in sides else None
    if told_apart:
        return "other probabilities", "open", None
    if not excesses or len(excesses) < len(by_split(evaluation, "target", "exact_match")):
        return "unknown", "open", None
    if excesses.unnoticed_below > CLOSE:
        return "unnoticed", "open", "over-forgetting possible"
    return "alike", "good", None
