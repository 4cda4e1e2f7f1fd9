"""What the edits of a sequence have cost those who stay, by their receipts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.receipt import RECEIPT, has_receipt, read_receipt
from chip.checkpoint.sequence import Spent
from chip.data.request import STAYING
from chip.errors import InputError


def spent_before(source: Checkpoint) -> Spent:
    """Of the edits that made the source, as far back as each receipt is of the weights that the next one found.

    Whether the source still has the weights that its own is of is not looked at: that would read all of them. An edit
    of chip 0.1.0 counts, and what it cost is not in its receipt.

    Raises:
        InputError: a receipt is damaged, or its figures are not as an edit writes them.
    """
    receipt = read_receipt(source.folder) if has_receipt(source.folder) else None
    losses = []
    while receipt is not None:
        groups = None if receipt.figures is None else receipt.figures.get("groups")
        try:
            losses.append(0.0 if groups is None else lost_in(groups))
        except (TypeError, LookupError, AttributeError) as error:
            message = f"{source.folder / RECEIPT}: the figures in it are not as an edit writes them"
            raise InputError(f"{message}; take the folder again from where it was made") from error
        receipt = receipt.earlier
    return Spent(len(losses), max(sum(losses), 0.0))


def lost_in(groups: Mapping[str, Mapping[str, Any]]) -> float:
    """What those who stay have lost of the mean answer probability of their trained questions, in one edit; 0 where
    nothing of theirs was asked again.

    Args:
        groups: `EditReport.groups` as JSON has it.
    """
    asked = [groups[name]["trained"] for name in STAYING if "trained" in groups.get(name, {})]
    lost, count = 0.0, sum(each["count"] for each in asked)
    for each in asked:
        before, after = (each["answer_probability"][when] for when in ("before", "after"))
        lost += 0.0 if before is None or after is None else (before - after) * each["count"]
    return lost / count if count else 0.0
