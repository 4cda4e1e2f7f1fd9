"""Text that a terminal, rich or a browser would take for an order: in ids, paths, options, names of tensors."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.case import EDIT, TREE, Case, Harm, either, every_record, nothing, passes, record, refused

ORDERS = (
    "[red]patient[/red]",
    "[/red]",
    "[/]",
    "[bold",
    "]",
    "\\[red]",
    "[link=https://example.com]a[/link]",
    ":smile:",
    ":skull::skull:",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;owned\x07",
    "\x1b[2J",
    "a\rb",
    "a\nb",
    "a\tb",
    "\x07",
    "\x7f",
    "\x9b31m",
    "\u202ereversed",
    "\u2028",
    "\ufeff",
    "\u200b",
    "<b>bold</b>",
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "&amp;",
    "{{ 7 * 7 }}",
    "{% for a in b %}",
    "%s %(a)s {0} {a}",
    "$(id) `id` ;",
    "-rf",
    "--help",
    "*",
    "é",
    "e\u0301",
    "患者",
    "مريض",
    "😀",
    "a" * 2000,
)
"""Of one line or several, escaped wherever they are shown."""
UNSEEN = ("\x07", "\x7f", "\u2028", "\ufeff", "\u200b")
"""Of these, what shows nothing, and is no id."""


def is_id(name: str) -> bool:
    return "/" not in name and name not in UNSEEN


def target_called(name: str) -> Harm:
    return every_record(patient={"patient_1": name})


def sibling_called(name: str) -> Harm:
    return every_record(patient={"patient_2": name})


def moved_to(name: str, option: str) -> Harm:
    def harm(folder: Path) -> None:
        (folder / option).rename(folder / name)

    return harm


PATHS = tuple(order for order in ORDERS if "/" not in order and len(order) < 200 and not order.startswith("-"))

CASES: list[Case] = [
    *(passes(f"an id {name[:40]!r}", sibling_called(name), TREE) for name in ORDERS if is_id(name)),
    *(
        refused(f"an id {name[:40]!r}", sibling_called(name), "records.jsonl:7", TREE)
        for name in ORDERS
        if not is_id(name)
    ),
    *(refused(f"a node {name[:40]!r}", nothing, "--forget", ("edit", "ckpt", f"--forget={name}")) for name in ORDERS),
    *(passes(f"an id {name[:40]!r}", sibling_called(name)) for name in ORDERS[:12] if is_id(name)),
    *(
        refused(
            f"records {name!r}",
            moved_to(f"{name}.jsonl", "records.jsonl"),
            "nobody",
            (*EDIT[:2], "--forget", "nobody", "--records", f"{name}.jsonl"),
        )
        for name in PATHS
    ),
    *(refused(f"no records {name!r}", nothing, "jsonl", ("tree", f"{name}.jsonl")) for name in PATHS),
    *(refused(f"no folder {name!r}", nothing, "no such folder", ("inspect", name)) for name in PATHS),
    *(refused(f"a method {name[:40]!r}", nothing, "--method", (*EDIT, f"--method={name}")) for name in ORDERS),
    *(either(f"a label {name[:40]!r}", nothing, "--label", (*EDIT, f"--label={name}")) for name in ORDERS[:20]),
    *(either(f"a question {name[:40]!r}", record(question=name), "records.jsonl:5") for name in ORDERS[:12]),
]
