"""The README's picture: a real run of `chip edit` on the demo, as the terminal shows it.

python -m benchmarks.picture [--out FILE]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import chip
from benchmarks.measuring import scratch_folder
from benchmarks.reporting import RESULTS
from chip.demo import write_demo
from chip.report.text.edit import print_edit

COMMAND = "chip edit hospital/ckpt --forget patient_17"

# The page's own monospace font: rich's default would fetch one from the web.
FORMAT = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: {char_height}px;
line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main(out: Annotated[Path, typer.Option(help="The picture, as SVG.")] = RESULTS / "edit.svg") -> None:
    """Run the command in an empty folder and save what it prints."""
    console = Console(record=True, width=92, highlight=False, force_terminal=True)
    picture, back = out.resolve(), Path.cwd()
    with scratch_folder() as scratch:
        os.chdir(scratch)  # the command's messages name relative paths
        try:
            write_demo(Path("hospital"))
            report = chip.edit("hospital/ckpt", ["patient_17"])
        finally:
            os.chdir(back)
    console.print(f"[bold green]$[/] {COMMAND}")
    print_edit(report, console)
    picture.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(picture), title="", code_format=FORMAT, unique_id="chip")


if __name__ == "__main__":
    typer.run(main)
