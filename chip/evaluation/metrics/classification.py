"""What a model answers by kind of question: free text, a choice among options, a gap to fill."""

from __future__ import annotations

from chip.data.answers import choices
from chip.evaluation.context import EvalContext
from chip.evaluation.rows import NO_ATTACK


def measure_tasks(context: EvalContext) -> None:
    """`classification_accuracy` by the most probable option: a model that says nothing sensible is at chance.

    `generation_accuracy` and `cloze_accuracy` are the exact match of those questions.
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
    for task in ("generation", "cloze"):
        hits = {i: float(exact_match[i]) for i, record in records.items() if record.task == task}
        context.put(NO_ATTACK, f"{task}_accuracy", hits)
