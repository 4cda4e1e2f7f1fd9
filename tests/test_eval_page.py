"""The page of an evaluation: what it says of which figures, what it keeps to itself, and that it needs nothing else."""

import html
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from chip.cli.main import main
from chip.data.hierarchy import Hierarchy
from chip.data.record import LEVELS, TASKS
from chip.data.request import ForgetRequest
from chip.evaluation.attacks import ATTACKS
from chip.evaluation.compare import compare
from chip.evaluation.config import EvalConfig
from chip.evaluation.groups import GROUPS
from chip.evaluation.outputs import EvalOutputs
from chip.evaluation.rows import GAP, HELD_OUT, NO_ATTACK, RETAINED, SPLITS, WORST, Evaluation, ResultRow
from chip.report.formatting import between, number, p_value, points, share
from chip.report.html.coordinates import LINE, PLANE
from chip.report.html.eval import eval_page
from chip.report.html.page import environment
from chip.report.text.eval import GENERAL_MEASURES

EVIL = '<script>alert("x")</script>'
NONE = math.nan
STEPS = (
    *("reconstruction: none", "reconstruction: patient", "cross-modal: rotated", "quantization: 4 bits"),
    *("relearning: 100 steps", "relearning-target: 10 steps", "in-context: 4 of siblings", "wording: two hops"),
    "steering: behind layer 2, × 1",
)

Interval = tuple[float, float, float]
"""A figure, and the ends of its interval."""


def rows_of(
    group: str, measure: str, figure: Interval, attack: str = NO_ATTACK, count: int = 400
) -> Iterator[ResultRow]:
    """The same in both wordings."""
    for split in (*SPLITS, WORST):
        yield ResultRow(group, split, measure, attack, *figure, count)


def model(target: Interval, retained: Interval, attacked: Interval, area: Interval) -> list[ResultRow]:
    """One model's figures, in all groups and at all `STEPS`."""
    rows = [row for group in GROUPS[1:] for row in rows_of(group, "exact_match", retained)]
    rows += rows_of("target", "exact_match", target)
    for step in STEPS:
        rows += rows_of("target", "exact_match", attacked, step)
        rows += rows_of("siblings", "exact_match", retained, step)
    for group in GROUPS:
        rows += (row for row in rows_of(group, "chance", (0.1, 0.05, 0.15)) if row.split != WORST)
        for measure in ("answer_probability", "rouge_l", *(f"{task}_accuracy" for task in TASKS)):
            rows += rows_of(group, measure, (0.5, 0.4, 0.6))
    rows += [ResultRow("general", HELD_OUT, name, NO_ATTACK, 0.125, 0.1, 0.15, 4017) for name in GENERAL_MEASURES]
    rows += rows_of("target", "leak_at_16", (0.22, 0.2, 0.24))
    rows += rows_of("target", "leak_at_128", (0.3, 0.2, 0.4), "leak: temperature 1")
    rows += rows_of("target", "lost_log_probability", (1.5, 1, 2), "depth: layer 3")
    rows += rows_of("target", "truth_ratio", (1.25, 1, 2))
    rows += rows_of(GAP, "gap", (0.8, 0.7, 0.9))
    rows += rows_of(RETAINED, "forget_retain_harmonic_mean", (0.85, 0.8, 0.9))
    rows.append(ResultRow("target", "trained", "auc_loss", "membership: wrong answers", *area, 80))
    rows.append(
        ResultRow("target", "trained", "true_positives_loss", "membership: wrong answers", 0.03, NONE, NONE, 80)
    )
    return rows


def evaluation(
    above: Interval = (0.01, -0.04, 0.06),
    above_attacked: Interval = (0.02, -0.03, 0.07),
    retained: Interval = (0.98, 0.97, 0.99),
    area: Interval = (0.51, 0.45, 0.57),
    ks_p: float = 0.4,
) -> Evaluation:
    """Beside a reference that answers 0.12 about the target and 0.99 of all else, with an area of 0.5."""
    rows = model((0.13, 0.1, 0.16), retained, (0.2, 0.15, 0.25), area)
    rows += rows_of("target", "exact_match_above_retrained", above)
    rows += rows_of(GAP, "recovered_gap", (0.97, 0.9, 1.02))
    rows += rows_of("target", "distance_to_retrained", (abs(above[0]), 0.0, max(map(abs, above))))
    rows += rows_of("target", "over_forgetting", (max(0.0, -above[0]), 0.0, max(0.0, -above[1])))
    rows += rows_of("target", "unlearning_depth_score", (0.9, 0.8, 1.0), "depth")
    rows.append(ResultRow(RETAINED, "trained", "trace_auc_answers", "trace", 0.52, 0.48, 0.56, 256))
    for step in STEPS:
        rows += rows_of("target", "exact_match_above_retrained", above_attacked, step)
        rows += rows_of(GAP, "recovered_gap", (0.97, 0.9, 1.02), step)
    rows += (row for row in rows_of("target", "ks_p", (ks_p, NONE, NONE)) if row.split != WORST)
    reference = model((0.12, 0.09, 0.15), (0.99, 0.98, 1.0), (0.18, 0.12, 0.22), (0.5, 0.44, 0.56))
    return Evaluation(tuple(rows), tuple(reference), tuple(ATTACKS), 7, ("patient",))


def alone(result: Evaluation) -> Evaluation:
    """The same without a reference."""
    relations = (
        *("exact_match_above_retrained", "recovered_gap", "ks_p", "distance_to_retrained", "over_forgetting"),
        *("unlearning_depth_score", "trace_auc_answers"),
    )
    return replace(result, reference=None, rows=tuple(row for row in result.rows if row.measure not in relations))


def without(result: Evaluation, attacks: Sequence[str]) -> Evaluation:
    """The same without figures of some attacks."""
    rows = tuple(row for row in result.rows if row.attack.partition(": ")[0] not in attacks)
    return replace(result, rows=rows, attacks=tuple(attack for attack in result.attacks if attack not in attacks))


def only(result: Evaluation, groups: Sequence[str]) -> Evaluation:
    return replace(result, rows=tuple(row for row in result.rows if row.group in groups))


def unsure(result: Evaluation) -> Evaluation:
    """The same, too few having been asked for any interval."""
    rows = tuple(replace(row, low=NONE, high=NONE) for row in result.rows)
    reference = tuple(replace(row, low=NONE, high=NONE) for row in result.reference or ())
    return replace(result, rows=rows, reference=reference)


def text_of(page: str) -> str:
    """What a reader sees, with single spaces."""
    body = re.sub(r"(?s)<(style|title)>.*?</\1>", " ", page)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", body)))


def said(result: Evaluation) -> tuple[str, Sequence[tuple[str, str]], str]:
    """Headline, answers with their tones, and all sentences of a verdict, as they stand on the page."""
    page = eval_page(result, "folder", "other")
    (headline,) = re.findall(r'<h2 id="verdict">(.*?)</h2>', page)
    answers = re.findall(r'<p class="answer (\w+)"><span [^>]*></span>(.*?)\.</p>', page)
    findings = re.findall(r'(?s)<div class="finding">(.*?)</div>', page)
    sentences = [sentence for finding in findings for sentence in re.findall(r"(?s)<p>(.*?)</p>", finding)]
    return text_of(headline), [(text_of(answer), tone) for tone, answer in answers], text_of(" ".join(sentences))


def limits(result: Evaluation) -> list[str]:
    """What the page says that must not be concluded from it."""
    return re.findall(r"<li>(.*?)</li>", eval_page(result, "folder", "other").partition("does not say")[2])


def test_what_holds_beside_a_reference_is_said_in_plain_words() -> None:
    headline, answers, sentences = said(without(evaluation(), ("cross-modal",)))
    assert headline == "Suppressed, under these tests, but not all attacks were run"
    assert answers == [
        ("No more than by a model that never knew it", "good"),
        ("No more than a model that never knew it under the same attack", "good"),
        ("Yes", "good"),
        ("No difference has shown", "good"),
    ]
    for words in (
        "It rightly answers 13% (10–16%) of 400 questions in the wordings of the training and 13% (10–16%) of 400 "
        "questions in other wordings.",
        "The reference, which never knew it, answers 12% (9–15%).",
        "No excess over the reference has shown; one of up to 6 points could have gone unnoticed.",
        "Among 16 answers drawn at random there was a right one for 22% (20–24%) of the questions; with the reference, "
        "for 22% (20–24%).",
        "Of 7 steps, the one that brings out most is “institution and patient named”: 20% (15–25%) is answered, beside "
        "13% (10–16%) without an attack and 18% (12–22%) by the reference under the same.",
        "Not run: cross-modal.",
        "siblings 98% (97–99%), the reference 99% (98–100%)",
        "A loss of more than 10 points would have shown in: shared facts, siblings, ancestors, cousins, unrelated "
        "records and general questions.",
        "an AUC of 0.51 (0.45–0.57); with the reference, 0.50 (0.44–0.56); 0.5 is a guess. No difference has shown.",
        "By its truth ratios it cannot be told from the reference (Kolmogorov-Smirnov test, p-value 0.4).",
    ):
        assert words in sentences


def test_what_is_left_is_called_left() -> None:
    headline, answers, sentences = said(evaluation(above=(0.2, 0.1, 0.3)))
    assert headline == "More is still answered about the target than by a model that never knew it"
    assert answers[0] == ("Yes, more than by a model that never knew it", "bad")
    assert "That is 20 points (10 to 30) more in the wordings of the training" in sentences
    assert "something of the target is left" in sentences
    assert answers[3] == ("No, the target still stands out", "bad")


def test_what_attacks_bring_back_is_told_step_by_step() -> None:
    headline, answers, sentences = said(evaluation(above_attacked=(0.2, 0.1, 0.3)))
    assert headline == "Attacks bring some of it back"
    assert answers[1] == ("Yes, more than a model that never knew it under the same attack", "bad")
    assert "Above the reference under the same attack: “institution and patient named” by 20 points (10" in sentences
    assert "by 20 points (10 to 30) and 5 further steps." in sentences


def test_below_the_reference_is_over_forgetting() -> None:
    headline, answers, sentences = said(evaluation(above=(-0.2, -0.3, -0.1)))
    caveat = "but it falls below a model that never knew it, which is over-forgetting"
    assert headline == f"Suppressed, under these tests, {caveat}"
    assert answers[0] == ("No more than by a model that never knew it", "good")
    assert answers[3] == ("No, it falls below one: that is over-forgetting", "bad")
    assert "less about the target than the reference, by 20 points (10 to 30) in the wordings of" in sentences
    _, answers, sentences = said(evaluation(area=(0.2, 0.1, 0.3)))
    assert answers[3] == ("No, it falls below one: that is over-forgetting", "bad")
    assert "That lies below the reference" in sentences


def test_what_still_stands_out_is_no_success() -> None:
    headline, answers, sentences = said(evaluation(area=(0.8, 0.7, 0.9)))
    assert headline == "Suppressed, under these tests, but its right answers still stand out"
    assert answers[3] == ("No, the target still stands out", "bad")
    assert "That lies above the reference" in sentences
    assert said(evaluation(ks_p=0.0001))[1][3] == ("Not in its probabilities", "open")
    assert "p-value <0.001" in said(evaluation(ks_p=0.0001))[2]


@pytest.mark.parametrize(
    ("retained", "answer", "caveat"),
    [
        (
            (0.9, 0.88, 0.92),
            "Less than the reference: 9 points about",
            "what must stay is answered less, by up to 9 points",
        ),
        ((0.8, 0.6, 0.99), "No loss is certain, but one may be there", "a loss of what must stay is not excluded"),
        ((0.95, 0.5, 1.0), "No loss is certain, but one may be there", "a loss of what must stay is not excluded"),
    ],
)
def test_a_loss_is_told_with_its_certainty(retained: Interval, answer: str, caveat: str) -> None:
    headline, answers, _ = said(evaluation(retained=retained))
    assert answers[2][0].startswith(answer)
    assert headline.endswith(f", but {caveat}")


def test_a_wide_interval_permits_no_verdict() -> None:
    headline, answers, _ = said(evaluation(above=(0.0, -0.3, 0.4)))
    assert headline == "Undecided: too little was asked about the target; over-forgetting is not excluded"
    assert answers[0] == ("No excess has shown, but up to 40 points could have gone unnoticed", "open")
    assert answers[3] == ("No difference has shown, but it may fall short by up to 30 points unnoticed", "open")
    headline, answers, _ = said(evaluation(above_attacked=(0.0, -0.3, 0.4)))
    assert headline == "Suppressed, under these tests, but what attacks bring back is not settled"


def test_that_all_facts_gave_the_same_is_no_certainty() -> None:
    rows = tuple(replace(row, count=9) for row in evaluation(above=(0.0, 0.0, 0.0)).rows)
    _, answers, _ = said(replace(evaluation(), rows=rows))
    assert answers[0] == ("No excess has shown, but up to 33 points could have gone unnoticed", "open")


def test_without_intervals_nothing_is_concluded() -> None:
    result = unsure(evaluation())
    headline, answers, sentences = said(result)
    assert headline.startswith("Undecided: too little was asked about the target; ")
    assert [answer for answer, _ in answers] == [
        "That cannot be told",
        "That cannot be told",
        "No loss is certain, but one may be there",
        "That cannot be told",
    ]
    assert "How far this would vary with other facts cannot be told: too few were asked for." in sentences
    page = eval_page(result, "folder", "other")
    assert not re.search(r"\bnan\b", page.casefold())
    assert "13%" in text_of(page)
    assert page.count('class="span"') == 1 + 1 + 1 + 1 + 1 + 1  # in the legends only


def test_without_a_reference_chance_stands_in_and_decides_nothing() -> None:
    result = alone(evaluation())
    headline, answers, sentences = said(result)
    assert headline == "Attacks bring some of it back; not all attacks were run"  # a trace is left beside a reference
    assert said(alone(without(evaluation(), tuple(ATTACKS))))[0] == (
        "Undecided: it was not compared with a model that never knew the target; what attacks bring back was not tested"
    )
    assert {tone for _, tone in answers} == {"open", "bad"}  # bad: 0.15 to 0.25 under attack, after 0.13
    assert answers[0] == ("No more than by chance", "open")
    assert answers[1] == ("Yes, more than without an attack", "bad")
    assert answers[2:] == [("98% of it", "open"), ("That cannot be told", "open")]
    assert "Always giving the most common answer would score 10% (chance)." in sentences
    assert any("over-forgetting" in limit and "cannot be concluded" in limit for limit in limits(result))
    page = text_of(eval_page(result, "folder"))
    assert "The reference is" not in page
    assert "Referencenone" in page


def test_without_a_reference_what_is_above_chance_may_have_another_cause() -> None:
    result = alone(evaluation())
    high = [replace(row, value=0.9, low=0.8, high=1.0) for row in result.rows if row.measure == "exact_match"]
    result = replace(result, rows=(*high, *(row for row in result.rows if row.measure != "exact_match")))
    headline, answers, sentences = said(result)
    assert headline == "More is still answered about the target than by chance; not all attacks were run"
    assert answers[0] == ("Yes, more than by chance", "bad")
    assert "only a reference would tell" in sentences
    assert "That is 80 points (70 to 90) more" in sentences
    assert "is left" not in sentences


def test_what_was_not_tested_is_said() -> None:
    result = without(evaluation(), tuple(ATTACKS))
    headline, answers, sentences = said(result)
    assert headline == "Suppressed, under these tests, but what attacks bring back was not tested"
    assert answers[1] == ("That was not tested", "open")
    assert (
        "Not run: reconstruction, cross-modal, in context, wording, quantization, relearning, membership" in sentences
    )
    page = text_of(eval_page(result, "folder", "other"))
    assert "Nothing was asked under attack." in page
    assert "Attacks runnone" in page
    rows = tuple(row for row in evaluation().rows if not row.attack.startswith("quantization"))
    assert "Not possible with these records: quantization." in said(replace(evaluation(), rows=rows))[2]


def test_what_was_skipped_is_said_with_what_it_lacked() -> None:
    skipped = {"steering": "needs the model before the edit (--original)", "wording: two hops": "none can be asked so"}
    result = replace(without(evaluation(), ("steering",)), attacks=tuple(ATTACKS), skipped=skipped)
    headline, _, sentences = said(result)
    assert headline == "Suppressed, under these tests, but not all attacks were run"
    assert "Skipped: steering vector, which needs the model before the edit (--original)." in sentences
    assert "Skipped: “two hops”, which was not possible: none can be asked so." in sentences
    assert "Not possible with these records" not in sentences
    assert result.to_json()["skipped"] == skipped


def test_over_forgetting_has_figures_of_its_own() -> None:
    page = text_of(eval_page(evaluation(above=(-0.2, -0.3, -0.1)), "folder", "other"))
    for title in ("Distance from the reference", "Over-forgetting", "Depth score", "Told apart by answers"):
        assert title in page
    assert "0.20" in page.partition("Over-forgetting")[2][:400]


def test_general_ability_has_a_table_of_its_own() -> None:
    result = replace(evaluation(), skipped={"general": "it has none"})
    page = text_of(eval_page(result, "folder", "other"))
    table = page.partition("General ability On text and plain questions")[2].partition("About the target")[0]
    assert "KL to beforeHow far its predictions" in table
    assert "On 4,017 tokens.0.1250.100–0.150" in table
    assert "On 4,017 questions.12%10–15%" in table
    assert "not measured on prose: it has none" in page
    headline, _, sentences = said(result)
    assert (headline, sentences) == (said(evaluation())[0], said(evaluation())[2])


def test_few_questions_of_a_kind_are_said() -> None:
    result = evaluation()
    assert "fewer than 24" not in said(result)[2]
    rows = [row for row in result.rows if row.measure != "cloze_accuracy"]
    few = replace(
        result, rows=tuple(replace(r, count=4) if r.measure == "classification_accuracy" else r for r in rows)
    )
    assert few.few_questions == {"classification": 8, "cloze": 0}
    sentences = said(few)[2]
    assert "By kind of question, in the worse wording: generation 50% (40–60%) and classification 50% (40" in sentences
    assert "Of classification there are 8 questions and cloze there are no questions: fewer than 24" in sentences


@pytest.mark.parametrize("groups", [[], ["target"], ["siblings"], ["target", "general"], ["unrelated", GAP]])
def test_missing_groups_are_left_out(groups: list[str]) -> None:
    for result in (only(evaluation(), groups), only(alone(evaluation()), groups), Evaluation((), (), (), 0)):
        page = eval_page(result, "folder", "other")
        assert ("It was not asked" in page) == (not {"target"} <= {*groups} or result.rows == () or len(groups) == 1)
        assert "What this page does not say" in page


def test_all_figures_are_on_the_page() -> None:
    result = evaluation()
    distinct = [replace(row, value=i / 2000) for i, row in enumerate(result.rows)]
    page = text_of(eval_page(replace(result, rows=tuple(distinct)), "folder", "other"))
    once = ("gap", "recovered_gap", "exact_match_above_retrained", "truth_ratio", "leak_at_16", RETAINED)
    for row in distinct:
        shown = row.split != WORST or row.measure in once
        if shown and not (row.group == GAP and row.measure == "gap" and row.attack != NO_ATTACK):
            figures = {share(row.value), number(row.value), p_value(row.value)}
            assert any(figure in page for figure in figures), row
    for title in ("Exact match", "Answer probability", "ROUGE-L", "Classification", "Cloze", "Truth ratio", "Gap"):
        assert title in page
    for title in ("Leaked in 16 draws", "KS p-value", "Harmonic mean", "Recovered gap", "Above the reference"):
        assert title in page


def test_it_says_how_it_was_measured() -> None:
    page = text_of(eval_page(evaluation(), "/home/somebody/folder", "/home/else/other", receipt={"digest": "ab" * 32}))
    for words in (
        "This model was asked about a patient, here called the target",
        "the other patients of the same institution",
        "Seed7",
        "Questions800 about the target, 4,800 about what must stay",
        "Attacks runreconstruction, cross-modal, in context, wording, quantization, relearning, membership inference",
        "95%, bootstrap with 2,000 samples, by patient",
        "chip0.1.0",
        "ab" * 32,
        "erased in the sense of the law",
    ):
        assert words in page
    assert "somebody" not in page
    assert "else/" not in page
    assert "there is a receipt, without one" in text_of(eval_page(evaluation(), "a", receipt={"digest": [EVIL]}))
    assert "Receipt" not in text_of(eval_page(evaluation(), "a"))


@pytest.mark.parametrize(
    ("levels", "text"),
    [
        (("institution",), "an institution"),
        (("patient", "patient"), "2 patients"),
        (("study", "study", "section"), "2 studies and a section"),
        ((), "what was to be forgotten"),
    ],
)
def test_targets_are_told_by_their_level(levels: tuple[str, ...], text: str) -> None:
    page = text_of(eval_page(replace(evaluation(), levels=levels), "a", "b"))
    assert f"asked about {text}, here called the target" in page


def test_names_are_shown_when_asked_for() -> None:
    forget = ["institution_5/patient_17", "study_40"]
    for folder in ("without_patient_17", "Patient_17", "a-study_40.b", "institution_5"):
        assert folder not in eval_page(evaluation(), folder, folder, forget=forget)
        assert folder in eval_page(evaluation(), folder, folder, forget=forget, show_names=True)
    page = eval_page(evaluation(), "patient_171-study_4", "b", forget=forget)
    assert "patient_171-study_4" in page
    assert "study_40" not in page
    assert "institution_5/patient_17, study_40" in text_of(
        eval_page(evaluation(), "a", "b", forget=forget, show_names=True)
    )


class _Tags(HTMLParser):
    """Fails on a tag that closes another than the last one opened."""

    void = ("meta", "br", "wbr", "line", "circle", "rect")  # those of SVG close themselves

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


@pytest.mark.parametrize("result", [evaluation(), alone(evaluation()), Evaluation((), None, (), 0)])
def test_the_page_holds_all_it_needs_and_runs_nothing(result: Evaluation) -> None:
    evil = replace(result, attacks=(*result.attacks, EVIL), rows=(*result.rows, *rows_of("target", EVIL, (1, 0, 2))))
    page = eval_page(evil, f"a{EVIL}".replace("/", ""), f"b{EVIL}", forget=[EVIL], show_names=True)
    assert "<script" not in page
    assert not re.search(r"(?i)https?:|\bsrc=|\bhref=|url\(|@import|\son\w+=", page.replace("http-equiv", ""))
    assert "default-src 'none'" in page
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert page.count("<th>") == 0  # each has its scope
    pictures = re.findall(r"<svg[^>]*>", page)
    assert all('role="img" aria-label="' in picture or 'aria-hidden="true"' in picture for picture in pictures)


def test_no_word_of_the_records_is_on_the_page(hierarchy: Hierarchy) -> None:
    neighbor_weight = [record for record in hierarchy.records if record.path[0] in ("institution_5", "institution_6")]
    few = Hierarchy(neighbor_weight)
    target = next(node for node in few.nodes if node.level == "patient")
    plan = EvalConfig(ForgetRequest.of(few, [str(target)]), ATTACKS)
    rng = np.random.default_rng(0)

    def answered() -> EvalOutputs:
        measured = EvalOutputs()
        for attack, names in ((NO_ATTACK, MEASURES), *((step, ("exact_match",)) for step in STEPS)):
            for name in names:
                measured.put(attack, name, dict(enumerate(rng.random(len(neighbor_weight)))), len(neighbor_weight))
        return measured

    result = compare(plan, answered(), answered())
    assert result.levels == ("patient",)
    page = eval_page(result, "folder", "other", forget=[str(target)])
    assert not [node.id for node in few.nodes if _has(page, node.id) and node.level != "section"]
    # What stands on any page is no word of these records: `left`, `A`, or a section called `technique`.
    own = eval_page(replace(evaluation(), levels=("patient",)), "folder", "other")
    words = {text for record in neighbor_weight for text in (record.question, record.answer, *record.path)}
    assert len(words) > 100
    assert not [word for word in words if _has(page, word) and not _has(own, word)]
    assert not [record for record in neighbor_weight if record.question in page]
    assert target.id in eval_page(result, "folder", "other", forget=[str(target)], show_names=True)


MEASURES = ("exact_match", "answer_probability", "classification_accuracy", "cloze_accuracy", "truth_ratio", "rouge_l")


def _has(page: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", page) is not None


def test_points_keep_to_their_frame() -> None:
    def row(figure: Interval) -> ResultRow:
        return ResultRow("target", "trained", "exact_match", NO_ATTACK, *figure, 4)

    corner, beyond = (row((0, 0, 0.2)), row((1, 0.9, 1))), (row((1, -0.5, 1.5)), row((0, 0, 0)))
    assert (PLANE.x(corner[0].value), PLANE.y(corner[1].value)) == (PLANE.left, PLANE.top)
    assert (PLANE.x(beyond[0].value), PLANE.y(beyond[1].value)) == (PLANE.right, PLANE.bottom)
    assert PLANE.x_span(beyond[0]) == (PLANE.left, PLANE.right)
    assert PLANE.y_span(beyond[1]) is None
    assert PLANE.x(0.25) == PLANE.left + 0.25 * (PLANE.right - PLANE.left)
    assert LINE.x_span(row((0.5, 0.4, 1.2))) == LINE.x_span(row((0.5, 0.4, 1.0)))
    assert LINE.x(0.5) == 50
    assert LINE.x_span(row((0.5, NONE, NONE))) is None


def test_what_has_no_figure_is_not_drawn() -> None:
    result = alone(without(evaluation(), tuple(ATTACKS)))
    page = eval_page(result, "a")
    for text in (f'x="{PLANE.left - 6}" y="{PLANE.top:.1f}" dy=".32em" text-anchor="end">100%<', ">0%</text>"):
        assert text in page
    assert page.count('<line class="chance" x1="') > page.count('<line class="chance" x1="3"')
    rows = tuple(replace(row, value=NONE) if row.split == "trained" else row for row in result.rows)
    nowhere = eval_page(replace(result, rows=tuple(row for row in rows if row.measure != "chance")), "a")
    assert page.count("<rect") == nowhere.count("<rect")
    assert page.count("<circle") - nowhere.count("<circle") == len(GROUPS) - 1 + len(GROUPS)  # planes, then lines
    assert nowhere.count('<line class="chance" x1="') == nowhere.count('<line class="chance" x1="3"')  # legends only


def test_coordinates_on_the_page_lie_in_their_frames() -> None:
    page = eval_page(evaluation(), "a", "b")
    shares = [float(at) for at in re.findall(r'(?:cx|x1|x2|x)="([-\d.]+)%"', page)]
    assert len(shares) > 100
    assert all(0 <= at <= 100 for at in shares)
    for box in re.findall(r'(?s)<svg viewBox="0 0 300 210".*?</svg>', page):
        places = [float(at) for at in re.findall(r'\s(?:cx|cy|x1|x2|y1|y2)="([-\d.]+)"', box)]
        assert all(0 <= at <= 300 for at in places)
        assert box.count("<circle") == box.count("<rect") == 2
    assert page.count("<figure") == len(GROUPS) - 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0%"), (1, "100%"), (0.004, "0.4%"), (0.996, "99.6%"), (1e-5, "<0.1%"), (1 - 1e-5, ">99.9%"), (0.166, "17%")],
)
def test_a_share_is_never_rounded_to_none_or_all(value: float, text: str) -> None:
    assert share(value) == text


def test_differences_and_intervals_are_told_in_short() -> None:
    assert [points(size) for size in (0, 0.01, -0.06, 0.004, 1e-5)] == [
        *("0 points", "1 point", "6 points", "0.4 points", "less than 0.1 points")
    ]
    assert [between(*ends) for ends in ((0.1, 0.2), (0.1, 0.1), (NONE, NONE), (0.98, 1 - 1e-5), (0.181, 0.182))] == [
        *("10–20%", "", "", "98% to >99.9%", "18%")
    ]
    assert between(-0.5, 0.25, number) == "−0.50 to 0.25"
    assert [p_value(value) for value in (0.5, 0.0123, 1e-9)] == ["0.5", "0.012", "<0.001"]


def test_each_attack_is_explained() -> None:
    words = vars(environment().get_template("words.html.j2").module)
    assert tuple(words["attacks"]) == tuple(ATTACKS)
    assert {step.partition(": ")[0] for step in words["step_names"]} <= {*ATTACKS, NO_ATTACK}
    assert {level for level in LEVELS if f"{level} named" in eval_page(evaluation(), "a", "b")} == {"patient"}


def test_the_command_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "edited").mkdir()
    page = tmp_path / "page.html"

    def run(*options: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["chip", "eval", str(tmp_path / "edited"), *map(str, options)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    monkeypatch.setattr("chip.evaluating.evaluate", lambda *_, **__: evaluation())
    code, out, _ = run("--forget", "patient_17", "--json", "--html", page)
    assert code == 0
    assert json.loads(out) == evaluation().to_json()
    written = page.read_text(encoding="utf-8")
    assert "<title>edited: " in written
    assert "patient_17" not in written
    assert str(tmp_path) not in written
    assert run("--forget", "patient_17", "--html", page, "--show-names")[0] == 0
    assert "patient_17" in page.read_text(encoding="utf-8")

    monkeypatch.setattr("chip.evaluating.evaluate", lambda *_, **__: pytest.fail("computed before it was refused"))
    for options in (("--html", tmp_path / "missing" / "page.html"), ("--html", tmp_path), ("--show-names",)):
        code, out, err = run("--forget", "patient_17", *options)
        assert (code, out) == (2, "")
        assert err.startswith("chip: ")


WIDTHS = (360, 1280)
FRAMES = """<!doctype html><meta charset="utf-8"><body>{frames}<pre id="measured"></pre>
<script>
addEventListener("load", () => {{
  document.getElementById("measured").textContent = JSON.stringify(Array.from(frames, (frame) => [
    frame.innerWidth, frame.document.documentElement.scrollWidth,
    frame.performance.getEntriesByType("resource").length, frame.document.scripts.length,
  ]));
}});
</script>"""


@pytest.mark.slow
def test_a_browser_shows_it_on_a_phone_without_scrolling_sideways(tmp_path: Path) -> None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next((path for name in names if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium here")
    page = html.escape(eval_page(evaluation(), "edited-" * 12, "retrained-" * 12, receipt={"digest": "ab" * 32}))
    frames = "".join(f'<iframe width="{width}" height="800" srcdoc="{page}"></iframe>' for width in WIDTHS)
    (tmp_path / "page.html").write_text(FRAMES.format(frames=frames), encoding="utf-8")
    fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
    own = (f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", (tmp_path / "page.html").as_uri())
    shown = subprocess.run(
        [program, *fixed, "--dump-dom", *own], capture_output=True, text=True, check=True, timeout=180
    ).stdout
    (measured,) = re.findall(r'<pre id="measured">(.*?)</pre>', shown)
    assert json.loads(html.unescape(measured)) == [[width, width, 0, 0] for width in WIDTHS]
