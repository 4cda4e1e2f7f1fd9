"""Every type of `AutoModelForImageTextToText`: is a small model of it edited right, or refused in one line?

`python -m tests.all_types [NAME ...]` tries them (all, or these), and writes down what happens: `data/all_types.json`,
and from it the list in the README and the table in docs/own-model.md. Packages that some types ask for, such as timm,
must be there.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
import transformers
from transformers import AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import chip
from chip.errors import ChipError
from chip.model.loading import check_family
from chip.model.skeleton import build_skeleton
from tests.families import (
    BEYOND_HIDDEN_STATES,
    GIVEN,
    RECIPES,
    UNTRAINED,
    Family,
    build,
    load_processor_of,
    write_records,
)
from tests.further_families import FURTHER
from tests.shrunk_families import TOGETHER, build_shrunk, default_config

OWN = RECIPES | BEYOND_HIDDEN_STATES | FURTHER
NAMES = tuple(dict.fromkeys((*OWN, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)))
"""Types, and variants of some: another text model or vision tower."""
RIGHT = "right"
NEEDS = dict.fromkeys(("gemma3n", "perception_lm", "fast_vlm"), "timm")
UNKNOWN = ("evolla",)
"""Types that transformers lists, and has no class for: it reads proteins, and no images."""
WITHOUT_WEIGHTS = frozenset(
    (
        *("apertus1p5", "chameleon", "diffusion_gemma", "emu3", "florence2", "gemma4_unified", "inkling_mm_model"),
        "udop",
    )
)
"""Types that are refused for what they are built of, before there are weights."""
FILE = Path(__file__).parent / "data" / "all_types.json"
ROOT = Path(__file__).parent.parent
README, PAGE = ROOT / "README.md", ROOT / "docs" / "own-model.md"
BEGIN, END = "<!-- families: made by tests/all_types.py -->", "<!-- families end -->"


def outcome(name: str, folder: Path) -> str:
    """`RIGHT`, or the line by which chip refuses it; `folder` holds the records, and gets the checkpoints."""
    if name in WITHOUT_WEIGHTS:
        return line_by_structure(name)
    source = folder / name
    if name in UNKNOWN:
        return line_by_configuration(name, source).replace(f"{folder}/", "")
    family = _write(name, source)
    method = GIVEN["shielded"]
    try:
        with mock.patch("chip.model.processors.load_processor", lambda path: load_processor_of(family, path)):
            chip.inspect(source)
            records, out = folder / "records.jsonl", folder / f"{name}-out"
            report = chip.edit(
                source, ["patient_1"], records=records, out=out, method=method, device="cpu", **UNTRAINED
            )
    except ChipError as error:
        return str(error).replace(f"{folder}/", "")
    assert report.relative_change
    assert chip.verify(out, source).faults == ()
    assert {each.name for each in chip.diff(source, out).changed} == set(report.relative_change)
    return RIGHT


def line_by_structure(name: str) -> str:
    """The line by which chip refuses a model of the type's own sizes, without weights."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            default_config(name, small=name in TOGETHER), attn_implementation="eager"
        )
    try:
        check_family(model)
    except ChipError as error:
        return str(error)
    raise AssertionError(f"{name} is not refused")


def line_by_configuration(name: str, folder: Path) -> str:
    """The line by which chip refuses the type's `config.json`."""
    default_config(name, small=False).save_pretrained(folder)
    try:
        build_skeleton(folder)
    except ChipError as error:
        return str(error)
    raise AssertionError(f"{name} is not refused")


def _write(name: str, folder: Path) -> Family:
    if name in OWN:
        build(folder, OWN[name])
        return OWN[name]
    return build_shrunk(folder, name)


def recorded() -> dict[str, str]:
    """Name -> what happened, when the script ran last."""
    outcomes: dict[str, str] = json.loads(FILE.read_text(encoding="utf-8"))["outcomes"]
    return outcomes


def recorded_version() -> str:
    """The transformers that it ran with."""
    return str(json.loads(FILE.read_text(encoding="utf-8"))["transformers"])


def table(outcomes: Mapping[str, str]) -> str:
    """Markdown: which types are edited, and which are refused by which line."""
    by_outcome: defaultdict[str, list[str]] = defaultdict(list)
    for name, words in sorted(outcomes.items()):
        by_outcome[_reason(words)].append(f"`{name}`")
    order = sorted(by_outcome, key=lambda words: (not words.startswith("edited"), words))
    lines = [f"| {words} | {', '.join(by_outcome[words])} |" for words in order]
    return "\n".join(("| a small model of it is | `model_type`, or a variant |", "|---|---|", *lines))


def summary(outcomes: Mapping[str, str]) -> str:
    """Markdown: which types are edited right, and how many are not."""
    right = [f"`{name}`" for name, words in sorted(outcomes.items()) if words == RIGHT]
    refused = len(outcomes) - len(right)
    return (
        f"Right: {', '.join(right)}.\n\n"
        f"{refused} types are refused, each in one line ([all of them](docs/own-model.md#the-checkpoint))."
    )


def _reason(words: str) -> str:
    """A refusal without what names the one model."""
    if words == RIGHT:
        return "edited right"
    words = re.sub(r"^(\S+='?\w+'?: )?\w+: |; .*$| \(.*\)", "", words)
    return f"refused: {re.sub(r'layer [0-9]+', 'a layer', words)}"


def section(text: str) -> str:
    """What stands in a document between the marks."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def main(names: list[str]) -> None:
    outcomes = recorded() if FILE.exists() else {}
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    with TemporaryDirectory() as folder:
        write_records(Path(folder))
        for name in names or NAMES:
            outcomes[name] = outcome(name, Path(folder))
            print(f"{name:24} {outcomes[name]}", flush=True)
    content = {"transformers": transformers.__version__, "outcomes": dict(sorted(outcomes.items()))}
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write(README, summary(outcomes))
    write(PAGE, table(outcomes))


def write(document: Path, text: str) -> None:
    """Put the text between the document's marks."""
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
