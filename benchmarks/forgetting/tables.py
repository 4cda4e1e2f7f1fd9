"""Tables of rows in markdown, with what they lack and whether the bounds are met."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.forgetting.bounds import Check, checks
from benchmarks.forgetting.figures import ResultRow
from benchmarks.forgetting.methods import Retrained, RetrainedAgain, Untouched
from benchmarks.forgetting.summaries import (
    OUR,
    TRAINED_NAMES,
    TRAINING_FREE_NAMES,
    MethodSummary,
    Place,
    Table,
    best,
    tables,
)
from chip.evaluation.rows import GAP

NONE = "–"

HEAD = """# What each method forgets, keeps and leaks

Made by `python -m benchmarks.forgetting`. Every figure is of the checkpoint that was written. Methods suppress, under
these tests; nothing here shows that anything is deleted.

Means over targets and seeds, on the `rephrased` wordings, which nothing was trained on or chosen by; in brackets 95 %
bootstrap intervals over targets and seeds.

- *Recovered gap*: what the siblings are answered above the target, as a share of the same for the retrained model.
- *|Target − retrained|*: how far the target's exact match is from the retrained model's, `below` where it lies below:
  that is over-forgetting, which the recovered gap counts as success. Mean over targets and seeds where rows have it,
  else the distance of the means, also where a method was run on fewer targets. Methods are ranked by it together with
  what siblings and unrelated lose: at equal retention by the distance alone.
- *Target*: its exact match; the retrained model's stands in its own line.
- *Kept*: exact match after, as a share of before.
- *Attacks above retrained*: the target's exact match under attack less the retrained model's under the same attack, for
  the attack where that is largest. Relearning stands by itself, after its smallest budget.
- *Membership*: the AUC that is farthest from the retrained model's, less that one.
- *Seconds*: of the edit alone, trials of its settings included where the method makes them itself; runs may have stood
  beside each other.
- *Peak MB*: of the edit alone, in a process that has run others before.
- The retrained model was trained without all of a level's targets at once. *Retrained again* is the one of the seed
  before, judged in an edited model's place: by how much two retrainings differ.
"""

Column = Callable[[MethodSummary], str]


def _number(value: float, form: str = ".2f") -> str:
    return NONE if value != value else format(value, form)


def _with_interval(row: ResultRow | None) -> str:
    if row is None:
        return NONE
    interval = "" if row.low != row.low else f" [{row.low:.2f}, {row.high:.2f}]"
    return f"{_number(row.value)}{interval}"


def _with_attack(row: ResultRow | None) -> str:
    return NONE if row is None else f"{row.value:+.2f} ({row.measure.partition(' | ')[2]})"


def _cost(measure: str, form: str, unit: float = 1.0) -> Column:
    """Of an edit: the others have none."""
    return lambda line: NONE if line.method in _REFERENCES else _number(line.of_model(measure) / unit, form)


def _above(column: Column) -> Column:
    """What is measured from the retrained model, which has none itself."""
    return lambda line: NONE if line.method == Retrained.name else column(line)


def _distance(line: MethodSummary) -> str:
    return _number(line.distance) + (" below" if line.below_retrained and line.distance >= 0.005 else "")


_REFERENCES = (Untouched.name, Retrained.name, RetrainedAgain.name)

COLUMNS: Mapping[str, Column] = {
    "recovered gap": lambda line: _with_interval(line.mean(GAP, "recovered_gap")),
    "worst": lambda line: _number(line.worst(GAP, "recovered_gap")),
    "|target − retrained|": _above(lambda line: _distance(line)),
    "target": lambda line: _number(line.value("target", "exact_match")),
    "siblings kept": lambda line: _with_interval(line.mean("siblings", "kept")),
    "their worst": lambda line: _number(line.worst("siblings", "kept")),
    "unrelated kept": lambda line: _number(line.value("unrelated", "kept")),
    "general kept": lambda line: _number(line.value("general", "kept")),
    "attacks above retrained": _above(lambda line: _with_attack(line.worst_attack)),
    "relearned above": _above(lambda line: _number(line.relearned, "+.2f")),
    "membership": _above(lambda line: NONE if line.membership is None else f"{line.membership.value:+.2f}"),
    "seconds": _cost("seconds", ".1f"),
    "peak MB": _cost("peak_bytes", ".0f", 1e6),
    "changed weights": _cost("changed_weights", ",.0f"),
    "targets × seeds": lambda line: f"{line.of_model('targets'):.0f} × {line.of_model('seeds'):.0f}",
}


def markdown(
    rows: Sequence[ResultRow], expected: Mapping[Place, int], methods: Sequence[str], refused: Sequence[str]
) -> str:
    """The whole page.

    Args:
        expected: how many results of each method were asked for: targets, of all seeds.
        methods: all that were asked for.
        refused: which models are not judged by, and why.
    """
    by_place = tables(rows)
    glances = [_at_a_glance(place, table) for place, table in by_place.items() if OUR in table]
    parts = [HEAD, "## At a glance\n", _markdown(GLANCE, glances)]
    parts += ["## What is incomplete\n", _list([*refused, *lacking(by_place, expected, methods)]) or "Nothing.\n"]
    for place, table in by_place.items():
        parts += [
            f"## {', '.join(place)}\n",
            _markdown(["method", *COLUMNS], [_cells(line) for line in table.values()]),
        ]
    checked = [check for place, table in by_place.items() for check in checks(place, table)]
    parts += ["## The bounds\n", _markdown(BOUNDS, [_verdict(check) for check in checked])]
    return "\n".join(parts)


GLANCE = (
    "`shielded`, defaults",
    "targets × seeds",
    "recovered gap, mean / worst",
    "|target − retrained|",
    "target (retrained)",
    "siblings kept",
    "unrelated kept",
    "best other training-free: |target − retrained| (siblings / unrelated kept)",
    "best trained (the same)",
)


def _at_a_glance(place: Place, table: Table) -> list[str]:
    """What the default method does, next to the best others, as far as they were run: a cell for each of `GLANCE`."""
    ours, retrained = table[OUR], table.get(Retrained.name, MethodSummary(Retrained.name))
    others = (best(table, names) for names in (TRAINING_FREE_NAMES, TRAINED_NAMES))
    return [
        ", ".join(place),
        COLUMNS["targets × seeds"](ours),
        f"{_number(ours.recovered)} / {_number(ours.worst(GAP, 'recovered_gap'))}",
        _distance(ours),
        f"{COLUMNS['target'](ours)} ({COLUMNS['target'](retrained)})",
        *(_number(ours.value(group, "kept")) for group in ("siblings", "unrelated")),
        *(NONE if other is None else _other(other) for other in others),
    ]


def _other(line: MethodSummary) -> str:
    siblings, unrelated = (_number(line.value(group, "kept")) for group in ("siblings", "unrelated"))
    return f"{_distance(line)} ({line.method}: {siblings} / {unrelated})"


def lacking(by_place: Mapping[Place, Table], expected: Mapping[Place, int], methods: Sequence[str]) -> Iterator[str]:
    """One line for each thing that was asked for and is not there."""
    for place, wanted in expected.items():
        table, fewer = by_place.get(place, {}), dict[int, list[str]]()
        for method in methods:
            results = int(table[method].of_model("results")) if method in table else 0
            if results < wanted:
                fewer.setdefault(results, []).append(method)
        for results, names in sorted(fewer.items()):
            whose = "every method" if len(names) == len(methods) else ", ".join(names)
            yield f"{', '.join(place)}: {results} of {wanted} results of {whose}"
        for line in table.values():
            if line.of_model("failed") > 0:
                yield f"{', '.join(place)}: {line.method} failed on {line.of_model('failed'):.0%} of them"


def _cells(line: MethodSummary) -> list[str]:
    return [line.method, *(column(line) for column in COLUMNS.values())]


BOUNDS = ("where", "bound", "figure", "met", "retrained again")


def _verdict(check: Check) -> list[str]:
    met = {True: "yes", False: "**no**", None: "not measured"}[check.met]
    note = f" ({check.note})" if check.note else ""
    value, again = (_number(figure, ".3f") for figure in (check.value, check.again))  # 0.986 is not 0.99
    return [", ".join(check.place), check.what, f"{value}{note}", met, again]


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in (head, rule, *lines))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)


def _list(lines: Sequence[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)
