"""What the site is built with beside Markdown: formulas become MathML, and the benchmarks' pictures belong to it.

Browsers show MathML by themselves, so that a page needs no script from elsewhere for its formulas.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PICTURES = ("edit.svg", "projection.png", "sequences.png", "forgetting/plane.png", "forgetting/ladder.png")
"""Below `RESULTS`; pages find them in `pictures/`."""

# What pymdownx.arithmatex makes of $...$ and of $$...$$.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    for name in PICTURES:
        files.append(File.generated(config, f"pictures/{Path(name).name}", abs_src_path=str(RESULTS / name)))
    return files


def on_page_content(content: str, **_: Any) -> str:
    return _FORMULA.sub(_to_mathml, content)


def _to_mathml(formula: re.Match[str]) -> str:
    tag, opening, latex = formula.groups()
    display = "block" if opening == "[" else "inline"
    return f"<{tag}>{convert(html.unescape(latex).strip(), display=display)}</{tag}>"
