"""Methods, readers and attacks from outside: one file each, made known by the environment or by a package."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from chip import plugins
from chip.errors import InputError
from tests.families import build, write_records

READER = '''\
"""Records in a file with semicolons between the fields: one a line."""

import csv
from collections.abc import Iterator

from chip.data.readers import RecordsFile, image_file, register_reader
from chip.data.record import LEVELS, Record


class Semicolons:
    def matches(self, file: RecordsFile) -> bool:
        return file.kind == ".txt"

    def read(self, file: RecordsFile) -> Iterator[Record]:
        with file.path.open(newline="", encoding="utf-8") as lines:
            for number, row in enumerate(csv.DictReader(lines, delimiter=";")):
                where = f"{file.path.name}:row {number}"
                image = image_file(row["image"], file.images, where) if row["image"] else None
                record = Record(row["question"], row["answer"], (), image, where=where)
                ids = {level: row[level] for level in LEVELS if row[level]}
                yield file.placed(record, ids, row)  # at its place in the hierarchy; --map goes before the ids


register_reader("semicolons", Semicolons())
'''

ATTACK = '''\
"""An attack: the question in capitals, and twice."""

from dataclasses import replace

from chip.data.record import Record
from chip.evaluation.attacks import Attack, EvalContext, register_attack


class Insisting(Attack):
    name = "insisting"
    help = "The question is asked in capitals, and twice."

    def run(self, context: EvalContext) -> None:
        context.score_attacked("insisting: capitals", lambda record: replace(record, question=record.question.upper()))
        context.score_attacked("insisting: twice", twice)


def twice(record: Record) -> Record:
    return replace(record, question=f"{record.question} {record.question}")


register_attack(Insisting())
'''


METHOD = '''\
"""A method: the mean input of the target is taken out of each layer."""

from dataclasses import dataclass

from chip.methods import Method, Needs, WeightUpdate, membership, register_method, setting
from chip.methods.statistics import FirstMoment


class TargetMean(FirstMoment):
    def __init__(self, weights, d_in):
        super().__init__(1, d_in, weights.device)
        self.weights = weights

    def update(self, tokens):
        super().update(tokens.inputs, tokens.owners.total(self.weights)[tokens.segments])


@register_method
@dataclass(frozen=True)
class MeanRemoval(Method):
    name, version, needs = "mean-removal", 1, Needs(outputs=False)
    target_modules, layers = ("down",), (0.5, 1.0)
    share: float = setting(1.0, "Share of the mean that is taken out.", maximum=1)
    record_weights = lambda self, request, device: membership(request, [request.partition.forget], device)
    statistics = lambda self, weights, d_in, d_out: TargetMean(weights, d_in)
    statistics_bytes = lambda self, d_in, d_out: 8 * d_in

    def solve(self, weight, bias, statistics, component):
        mean = statistics.mean / statistics.mean.norm()
        return WeightUpdate(weight - self.share * (weight.to(mean) @ mean.T) @ mean, None)
'''


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of plugins, which is no part of the package."""
    folder = tmp_path_factory.mktemp("outside")
    for name, text in (("toy_reader", READER), ("toy_attack", ATTACK), ("toy_method", METHOD)):
        assert len(text.splitlines()) <= 30
        (folder / f"{name}.py").write_text(text)
    return folder


IN_ONE_PROCESS = """
import contextlib, io, json, sys
from chip.cli.main import main
ended = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["chip", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as exit:
            ended.append((exit.code or 0, out.getvalue(), err.getvalue()))
print(json.dumps(ended), file=sys.__stdout__)
"""
"""Several commands, each with its code, its stdout and its stderr: to start Python with torch takes seconds."""


def run(*arguments: object, path: Path, modules: str) -> subprocess.CompletedProcess[str]:
    """`python -m chip`, with the folder `path` among those where modules are found, and these modules as plugins."""
    command = [sys.executable, "-m", "chip", *map(str, arguments)]
    return subprocess.run(command, env=_environment(path, modules), capture_output=True, text=True, check=False)


def run_all(*commands: tuple[object, ...], path: Path, modules: str) -> list[tuple[int, str, str]]:
    """The same of several commands, in one process."""
    given = json.dumps([list(map(str, arguments)) for arguments in commands])
    command = [sys.executable, "-c", IN_ONE_PROCESS]
    environment = _environment(path, modules)
    ended = subprocess.run(command, env=environment, input=given, stdout=subprocess.PIPE, text=True, check=True)
    return [(code, out, err) for code, out, err in json.loads(ended.stdout)]


def _environment(path: Path, modules: str) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, (str(path), str(Path.cwd()), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": paths, "CHIP_PLUGINS": modules}


def write_semicolons(records: Path) -> Path:
    """The records of a JSON-lines file with semicolons between the fields, beside it."""
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    names = ("question", "answer", "institution", "patient", "study", "section", "image")
    with records.with_suffix(".txt").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    return records.with_suffix(".txt")


Ended = tuple[int, str, str]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, outside: Path) -> dict[str, Ended]:
    """How commands end that go by all three plugins."""
    folder = tmp_path_factory.mktemp("command")
    checkpoint, records = build(folder / "ckpt", "llava"), write_semicolons(write_records(folder))
    request = (checkpoint, "--forget", "patient_1", "--records", records, "--device", "cpu", "--json")
    commands: dict[str, tuple[object, ...]] = {
        "tree": ("tree", records),
        "eval": ("eval", *request, "--attacks", "insisting", "--html", folder / "page.html"),
        "eval otherwise": ("eval", *request, "--attacks", "nonesuch"),
        "help": ("edit", "--help"),
        "edit": ("edit", *request, "--force", "--method", "mean-removal", "--share", "0.5"),
        "edit otherwise": ("edit", *request, "--force", "--share", "0.5"),
    }
    results = run_all(*commands.values(), path=outside, modules="toy_reader,toy_attack,toy_method")
    (page,) = folder.glob("*.html")
    return dict(zip(commands, results, strict=True)) | {"page": (0, page.read_text(encoding="utf-8"), "")}


@pytest.mark.slow
def test_a_reader_and_an_attack_from_outside_run_from_the_command_line(
    tmp_path: Path, outside: Path, ended: dict[str, Ended]
) -> None:
    records = write_semicolons(write_records(tmp_path))
    assert run("tree", records, path=outside, modules="").returncode == 2  # nobody reads it by default
    code, out, err = ended["tree"]
    assert (code, err) == (0, "")
    assert "patient_4" in out

    code, out, err = ended["eval"]
    assert code == 0, err
    report = json.loads(out)
    assert report["attacks"] == ["insisting"]
    assert "The question is asked in capitals, and twice." in ended["page"][1]
    assert {row["attack"] for row in report["rows"]} == {"none", "insisting: capitals", "insisting: twice"}
    attacked = {(row["group"], row["measure"]) for row in report["rows"] if row["attack"] == "insisting: twice"}
    assert attacked >= {("target", "exact_match"), ("siblings", "answer_probability")}

    code, _, err = ended["eval otherwise"]
    assert code == 2
    assert "nonesuch" in err
    assert "there are reconstruction, cross-modal, in-context, wording, quantization" in err
    assert "insisting" in err


@pytest.mark.slow
def test_a_method_from_outside_brings_its_options_and_edits(ended: dict[str, Ended]) -> None:
    assert "--share" in ended["help"][1]
    code, out, err = ended["edit"]
    assert code == 0, err
    report = json.loads(out)
    assert report["settings"]["share"] == 0.5
    assert report["changed_tensors"]
    assert all(name.endswith("down_proj.weight") for name in report["changed_tensors"])
    assert ended["edit otherwise"] == (
        2,
        "",
        "chip: --share 0.5: not a setting of method combined; drop it\n",
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No module named 'broken'"),
        ("import nonesuch", "No module named 'nonesuch'"),
        ("def", "invalid syntax"),
        ("{}['key']", "KeyError: 'key'"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_said_in_one_line(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "broken.py").write_text(text)
    (tmp_path / "toy_reader.py").write_text(READER)
    result = run("tree", write_records(tmp_path), path=tmp_path, modules=" toy_reader, broken")
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("chip: CHIP_PLUGINS: the module broken cannot be imported (")
    assert says in line


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package is installed that names the module `toy_entry`."""
    point = EntryPoint("toy", "toy_entry", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == plugins.GROUP else [])
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    plugins._load.cache_clear()
    yield
    plugins._load.cache_clear()


@pytest.mark.usefixtures("entry")
def test_a_package_makes_its_module_known_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="entry point 'toy' of the group 'chip': the module toy_entry cannot"):
        plugins.load_plugins()
    (tmp_path / "toy_entry.py").write_text('print("loaded")')
    monkeypatch.syspath_prepend(tmp_path)
    plugins.load_plugins()
    plugins.load_plugins()
    assert capsys.readouterr().out == "loaded\n"


def test_keys_that_are_not_used_are_said_by_the_command_in_one_line(tmp_path: Path) -> None:
    records = write_records(tmp_path)
    lines = [json.loads(line) | {"age": 3} for line in records.read_text().splitlines()]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run("tree", records, path=tmp_path, modules="")
    assert result.returncode == 0
    assert result.stderr == f"chip: records.jsonl: 1 key is not used: age (in {len(lines)} of {len(lines)} records)\n"
