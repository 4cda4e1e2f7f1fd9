"""ROUGE-L: how much of an answer a model's text has, in its order."""

from __future__ import annotations

from functools import cache
from typing import Any

from chip.data.answers import tokenize_words
from chip.errors import InputError


class _Words:
    """rouge-score's own tokenizer keeps Latin letters and digits only: `A+` and `A-` would be the same."""

    def tokenize(self, text: str) -> list[str]:
        return tokenize_words(text)


@cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError("an evaluation needs rouge-score: pip install 'chip-unlearning[eval]'") from error
    return RougeScorer(["rougeL"], tokenizer=_Words())


def rouge_l(prediction: str, answer: str) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004, Eq. 2 to 4, β = 1), 0 to 1.

    Computed by Google's rouge-score; words and signs count, case does not, nothing is stemmed.

    Raises:
        InputError: rouge-score is not installed.
    """
    return float(_scorer().score(answer, prediction)["rougeL"].fmeasure)
