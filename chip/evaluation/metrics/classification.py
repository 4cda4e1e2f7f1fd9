"""Whether a model chooses the right option, and fills in the right word."""

from __future__ import annotations

from chip.data.answers import choices
from chip.evaluation.context import EvalContext
from chip.evaluation.rows import NO_ATTACK


def measure_classification(context: EvalContext) -> None:
    """`classification_accuracy` by the most probable option: a model that says nothing sensible is at chance.

    `cloze_accuracy` is the exact match of cloze questions.
    """
    records = dict(enumerate(context.records))
    options = {i: choices(record) for i, record in records.items() if record.task == "classification"}
    hits = {}
    for index, probabilities in context.answer_probabilities(options, "choosing").items():
        if len(probabilities):
            choice = options[index][int(probabilities.argmax())]
            hits[index] = float(choice == records[index].answer.strip())
    context.put(NO_ATTACK, "classification_accuracy", hits)
    exact_match = context.outputs.values[NO_ATTACK, "exact_match"]
    cloze = {i: float(exact_match[i]) for i, record in records.items() if record.task == "cloze"}
    context.put(NO_ATTACK, "cloze_accuracy", cloze)
