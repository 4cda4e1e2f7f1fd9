"""What a model answers in its own words, and whether that is right."""

from __future__ import annotations

from chip.evaluation.config import EvalConfig
from chip.evaluation.context import EvalContext
from chip.evaluation.metrics.rouge import rouge_l
from chip.evaluation.rows import NO_ATTACK
from chip.model.generation import answer_greedily


def measure_generated(context: EvalContext, config: EvalConfig) -> None:
    """`rouge_l` of the most probable answers and, where there is a judge, `judged`: 1 where it says they are right."""
    records = config.records
    indices = sorted(index for group in config.groups for index in config.sample(group))
    with context.progress("generating", len(indices)) as advance:
        texts = answer_greedily(context.vlm, [records[index] for index in indices], on_batch=advance)
    answers = dict(zip(indices, texts, strict=True))
    context.put(NO_ATTACK, "rouge_l", {i: rouge_l(text, records[i].answer) for i, text in answers.items()})
    if config.judge is None:
        return
    verdicts = {}
    with context.progress("judging", len(indices)) as advance:
        for index, text in answers.items():
            verdicts[index] = float(config.judge.is_correct(records[index].question, records[index].answer, text))
            advance(1)
    context.put(NO_ATTACK, "judged", verdicts)
