"""What a run of `chip edit` or `chip eval` adds to a ledger: its end, whatever it is.

Without a ledger nothing is recorded. What is refused before a run begins, such as an option, is no entry.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.weights import weights_digest
from chip.data.hierarchy import Node
from chip.data.request import ForgetRequest
from chip.errors import ChipError, ChipWarning, InputError, RunError
from chip.evaluation.rows import Evaluation
from chip.ledger import Ledger
from chip.ledger.entry import Action, Details, Edited, Evaluated, Failed
from chip.ledger.place import check_outside_models
from chip.ledger.requests import IN_WINDOW
from chip.progress import ProgressCallback, silent
from chip.recording.figures import edit_figures, evaluation_figures
from chip.recording.weights import edited_as_receipt_says, result_digest

if TYPE_CHECKING:  # brings torch
    from chip.report.edit_report import EditReport

_SOME_EDIT = Edited("", "", "", "", {}, None)
"""Of which only matters whether it may happen."""


class _RunRecord:
    """A run fails within the `with`, or an entry says what it has done."""

    action: Action
    unrecorded: tuple[type[Exception], ...] = ()
    """Errors that are no entry."""

    def __init__(self, ledger: Ledger | None, nodes: Iterable[Node] = ()) -> None:
        self._ledger = ledger
        self._pseudonyms = [] if ledger is None else pseudonyms_of(ledger, nodes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record that the run failed; of the error only its class, as its text may name somebody."""
        if kind is None or issubclass(kind, self.unrecorded):
            return
        try:
            self._add(Failed(self.action, kind.__name__.lstrip("_")))
        except ChipError as problem:
            warnings.warn(f"that this run failed is not in the ledger: {problem}", ChipWarning, stacklevel=2)

    def _add(self, details: Details) -> None:
        """One entry a run. Raises as `Ledger.add`."""
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            ledger.add(self._pseudonyms, details)


class EditRecord(_RunRecord):
    """Of an edit that is to forget some nodes.

    Raises:
        InputError: no open request asks for one of them; the ledger cannot be added to, or lies in the output.
    """

    action = Action.EDIT

    def __init__(self, ledger: Ledger | None, request: ForgetRequest, output: Path) -> None:
        super().__init__(ledger, request.named)
        if ledger is None:
            return
        check_outside_models(ledger.path, "ledger", output)
        ledger.check(self._pseudonyms, _SOME_EDIT)
        opened = {request.pseudonym for request in ledger.read_sound().history.opened(*IN_WINDOW)}
        if others := len(opened - set(self._pseudonyms)):
            message = f"{ledger.path}: {others:,} other open requests are not in this edit; `--open` takes them all"
            warnings.warn(message, ChipWarning, stacklevel=3)

    def only_if(self, writes: bool) -> Self:
        """Nothing is recorded where not: in all processes but the main one, and by a dry run."""
        if not writes:
            self._ledger = None
        return self

    def edited(self, report: EditReport, output: Path) -> None:
        """The edited checkpoint is in its place, and stays there.

        Raises:
            RunError: the ledger cannot be added to.
        """
        if self._ledger is None:
            return
        try:
            self._add(edited_as_receipt_says(output, edit_figures(report)))
        except ChipError as error:
            hint = "`chip ledger add edited` adds it"
            raise RunError(f"{output} is written, and the ledger has no entry of it ({error}); {hint}") from error


class EvalRecord(_RunRecord):
    """Of an evaluation, which is of the weights as they are before it.

    Raises:
        InputError: no edit in the ledger wrote them, or the requests cannot be evaluated now.
    """

    action = Action.EVAL
    unrecorded = (InputError,)  # it changes nothing: an attack that there is not need not be remembered

    def __init__(
        self,
        ledger: Ledger | None,
        request: ForgetRequest,
        source: Checkpoint,
        reference: Checkpoint | None = None,
        progress: ProgressCallback = silent,
    ) -> None:
        super().__init__(ledger, request.named)
        if ledger is None:
            return
        self._result = result_digest(source, progress)
        self._reference = None if reference is None else weights_digest(reference, progress)
        ledger.check(self._pseudonyms, Evaluated(self._result, None, {}))

    def evaluated(self, evaluation: Evaluation) -> None:
        """The figures are there. Raises as `Ledger.add`."""
        if self._ledger is not None:
            self._add(Evaluated(self._result, self._reference, evaluation_figures(evaluation)))


def pseudonyms_of(ledger: Ledger, nodes: Iterable[Node]) -> list[str]:
    """Pseudonyms of nodes, each once. Raises `InputError` where the ledger has no key."""
    key = ledger.require_key()
    return list(dict.fromkeys(key.pseudonym(node.path) for node in nodes))
