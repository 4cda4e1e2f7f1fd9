"""What very many records cost, and what an edit loses that goes by a part of them.

    python -m benchmarks.many_records cost [--records 1000000] [--kind jsonl]
    python -m benchmarks.many_records kept [--target patient_17] [--per-input 2,5,10,20]

`cost` adds generated records in text only to those of the demo's hospital, a hundred a patient, and shows seconds of
the processor and peak memory of `chip tree` and of a dry run of `chip edit`, against ten thousand records. `kept` edits
the demo by so many tokens of other patients for each input of the widest module, and by all, and asks all records.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.editing import edited
from benchmarks.measuring import scratch_folder
from benchmarks.reporting import print_table
from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.request import ForgetRequest
from chip.data.sample import sample_for_edit
from chip.demo import write_demo
from chip.evaluation.summary import summarize
from chip.methods import Shielded
from chip.methods.apply import default_modules
from chip.model.loading import load_vlm
from chip.model.scoring import score_records

FEW = 10_000
TARGET = "patient_17"
RETAIN_WEIGHT = 96.0
"""What a search finds for this target."""
_FINDINGS = ("effusion", "nodule", "fracture", "edema", "normal", "mass", "cyst", "hernia")

app = typer.Typer()


def rows(hospital: Path) -> Iterator[dict[str, Any]]:
    """The records of the demo, then invented ones without end."""
    for line in (hospital / "records.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row | ({"image": str(hospital / row["image"])} if "image" in row else {})
    number = 0
    while True:
        patient, study, question = number // 100, number // 10 % 10, number % 10
        yield {
            "question": f"What was finding {question} of patient x{patient} in study {study}?",
            "answer": _FINDINGS[number * 7 % len(_FINDINGS)],
            "institution": f"clinic_{patient // 10}",
            "patient": f"visitor_{patient}",
            "study": f"visit_{patient}_{study}",
        }
        number += 1


def write(hospital: Path, file: Path, count: int) -> Path:
    """So many records as JSON lines or as parquet."""
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = list(islice(rows(hospital), count))
        columns = dict.fromkeys(name for row in table for name in row)  # else the first row's are all
        pq.write_table(pa.table({name: [row.get(name) for row in table] for name in columns}), file)
    else:
        with file.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in islice(rows(hospital), count))
    return file


def usage(*command: str) -> tuple[float, float]:
    """Seconds of the processor that `chip` takes, and its peak memory in bytes."""
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, "
    code += "stderr=subprocess.DEVNULL); u = resource.getrusage(resource.RUSAGE_CHILDREN); "
    code += "print(u.ru_utime + u.ru_stime, u.ru_maxrss)"
    arguments = [sys.executable, "-c", code, sys.executable, "-m", "chip", *command]
    seconds, kilobytes = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), 1024 * float(kilobytes)


@app.command()
def cost(
    records: Annotated[int, typer.Option(help="As many, against ten thousand.")] = 1_000_000,
    kind: Annotated[str, typer.Option(help="jsonl or parquet.")] = "jsonl",
) -> None:
    """Seconds and memory of reading and of an edit."""
    with scratch_folder() as folder:
        hospital = folder / "hospital"
        write_demo(hospital)
        table = []
        for count in (min(FEW, records), records):
            file = str(write(hospital, folder / f"records-{count}.{kind}", count))
            edit = ("edit", str(hospital / "ckpt"), "--forget", TARGET, "--records", file, "--keep", "none")
            for name, command in (
                ("tree", ("tree", file)),
                ("edit", (*edit, "--retain-weight", f"{RETAIN_WEIGHT:g}", "--dry-run")),
            ):
                seconds, peak = usage(*command)
                table.append([name, f"{count:,}", f"{seconds:.1f} s", f"{peak / 1e9:.2f} GB"])
        print_table("Very many records", ["command", "records", "processor", "peak memory"], table, {0})


@app.command()
def kept(
    target: Annotated[str, typer.Option(help="Of the demo.")] = TARGET,
    per_input: Annotated[str, typer.Option(help="Tokens for each input, with commas.")] = "2,5,10,20",
) -> None:
    """Exact match of trained questions after edits that go by a part of the records."""
    with scratch_folder() as folder:
        write_demo(folder / "hospital")
        source = Checkpoint.open(folder / "hospital" / "ckpt")
        records = read_records(folder / "hospital" / "records.jsonl")
        vlm, method = load_vlm(source.folder), Shielded()
        request, before = ForgetRequest.of(Hierarchy(records), [target]), score_records(vlm, records)
        widest = max(module.shape(vlm.model)[1] for module in default_modules(vlm, method))
        tokens = sum(len(prompt.tokens) for prompt in vlm.prompts.read(records)) / len(records)
        table = []
        for share in [*map(float, per_input.split(",")), None]:
            others = len(records) if share is None else int(share * widest / tokens) + 1
            sample = sample_for_edit(request, others, others)
            with edited(vlm, source, method, replace(sample, general=())):
                after = summarize(request, before, score_records(vlm, records))
            exact = [f"{after[group]['trained'].exact_match.after:.3f}" for group in ("target", "siblings", "other")]
            label = "all" if share is None else f"{share:g}"
            table.append([label, f"{len(sample.hierarchy.records):,}", *exact])
        columns = ["tokens per input", "records", "target", "siblings", "others"]
        print_table("An edit by a part of the records: exact match", columns, table, set())


if __name__ == "__main__":
    app()
