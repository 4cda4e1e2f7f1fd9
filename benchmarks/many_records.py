"""What very many records cost: `python -m benchmarks.many_records [--records 1000000] [--kind jsonl]`.

To the records of the demo's hospital are added generated ones in text only, a hundred a patient. Shown are seconds of
the processor and peak memory of `chip tree` and of a dry run of `chip edit`, against ten thousand records.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measuring import scratch_folder
from benchmarks.reporting import print_table
from chip.demo import write_demo

FEW = 10_000
TARGET = "patient_17"
RETAIN_WEIGHT = 96.0
"""What a search finds for this target."""
_FINDINGS = ("effusion", "nodule", "fracture", "edema", "normal", "mass", "cyst", "hernia")


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


def main(
    records: Annotated[int, typer.Option(help="As many, against ten thousand.")] = 1_000_000,
    kind: Annotated[str, typer.Option(help="jsonl or parquet.")] = "jsonl",
) -> None:
    """Seconds and memory of reading and of an edit."""
    with scratch_folder() as folder:
        hospital = folder / "hospital"
        write_demo(hospital)
        table = []
        for count in dict.fromkeys((min(FEW, records), records)):
            file = str(write(hospital, folder / f"records-{count}.{kind}", count))
            edit = ("edit", str(hospital / "ckpt"), "--forget", TARGET, "--records", file, "--keep", "none")
            for name, command in (
                ("tree", ("tree", file)),
                ("edit", (*edit, "--retain-weight", f"{RETAIN_WEIGHT:g}", "--dry-run")),
            ):
                seconds, peak = usage(*command)
                table.append([name, f"{count:,}", f"{seconds:.1f} s", f"{peak / 1e9:.2f} GB"])
        print_table("Very many records", ["command", "records", "processor", "peak memory"], table, {0})


if __name__ == "__main__":
    typer.run(main)
