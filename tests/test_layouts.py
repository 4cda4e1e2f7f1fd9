"""Records in every layout that people have are the same records as in chip's own; whose they are may be mapped."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import chip
from chip.data.readers import RecordSource, find_source, read_records
from chip.data.record import Record, Turn
from chip.data.window import Window
from chip.errors import ChipWarning, InputError
from chip.methods import Shielded
from tests.families import UNTRAINED, build, write_records
from tests.folders import contents
from tests.layouts import LAYOUTS, Layout, Row, write_layout, write_rows
from tests.pictures import dicom

ANY = pytest.mark.filterwarnings("ignore::chip.errors.ChipWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 records, and their images."""
    folder = tmp_path_factory.mktemp("layouts")
    write_records(folder)
    return folder


@pytest.fixture
def folder(place: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return shutil.copytree(place, tmp_path / "place")


def rows_in(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def same(records: list[Record], layout: Layout) -> list[Record]:
    return records if layout.text else [record for record in records if record.image is not None]


def test_reading_one_question_a_row_loads_no_library_for_tables(place: Path) -> None:
    """`datasets` takes seconds to import, and pyarrow is no dependency."""
    for name in ("datasets", "pyarrow", "pydicom"):
        assert f"import {name}" not in Path(sys.modules["chip.data.readers.records_file"].__file__ or "").read_text()
    assert len(read_records(place / "records.jsonl")) == 26


@ANY  # of keys that are not used, and of maps that are kept
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_records(folder: Path, name: str) -> None:
    layout = LAYOUTS[name]
    own = same(read_records(folder / "records.jsonl"), layout)
    written = write_layout(layout, rows_in(folder), folder)
    assert read_records(RecordSource(written, layout.map)) == own
    assert {record.where.partition(":")[0] for record in own} == {"records.jsonl"}


@ANY
@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_edit_bit_for_bit(folder: Path, name: str) -> None:
    layout = LAYOUTS[name]
    checkpoint = build(folder / "ckpt", "llava")
    written = write_layout(layout, rows_in(folder), folder)
    if not layout.text:
        write_rows([row for row in rows_in(folder) if "image" in row], folder, "jsonl", "records")
    sources = {"a": RecordSource(folder / "records.jsonl"), "b": RecordSource(written, layout.map)}
    edits = [edited(checkpoint, source, folder / out) for out, source in sources.items()]
    assert edits[0] == edits[1]


@ANY
@pytest.mark.slow
def test_pictures_in_dicom_files_give_the_same_edit_bit_for_bit(folder: Path) -> None:
    checkpoint = build(folder / "ckpt", "llava")
    for picture in list((folder / "images").iterdir()):
        values = np.asarray(Image.open(picture))
        picture.with_suffix(".dcm").write_bytes(dicom(values, PatientID=picture.stem.replace("study", "patient")))
    rows = [row for row in rows_in(folder) if "image" in row]
    own = write_rows(rows, folder, "jsonl", "own")
    changed = [{**row, "image": row["image"].replace(".png", ".dcm"), "patient": None} for row in rows]
    mapped = RecordSource(write_rows(changed, folder, "jsonl"), {"patient": "dicom:PatientID"})
    edits = [edited(checkpoint, source, folder / out) for source, out in ((RecordSource(own), "a"), (mapped, "b"))]
    assert edits[0] == edits[1]


def edited(checkpoint: Path, source: RecordSource, out: Path) -> dict[str, bytes]:
    """The edited weights as they are written, by file."""
    settings: dict[str, Any] = {"method": Shielded(retain_weight=8.0, ridge=0.35), "keep": ["none"], "batch_size": 4}
    chip.edit(checkpoint, ["patient_1"], records=source, out=out, device="cpu", **settings, **UNTRAINED)
    return {name: data for name, data in contents(out).items() if name.endswith(".safetensors")}


# --- conversations ---

SYSTEM = "You are a radiologist."
FIRST, SECOND = ("What is on <image> and <image>?", "A lobe, a rib."), ("And on <image>?", "A spine.")
OWNER = {"institution": "i", "patient": "p"}


@pytest.fixture
def pictures(place: Path) -> list[str]:
    return [f"images/study_{number}.png" for number in (1, 2, 3)]


def conversation(pictures: list[str]) -> dict[str, Row]:
    """Two turns about three images behind a system prompt, in the layouts that have such."""
    turns = [text for pair in (FIRST, SECOND) for text in pair]
    roles = [("user", "human"), ("assistant", "gpt")] * 2
    images = iter(pictures)

    def parts(text: str) -> list[Row]:
        pieces = text.split("<image>")
        found: list[Row] = []
        for number, piece in enumerate(pieces):
            found += [{"type": "image", "image": next(images)}] if number else []
            found += [{"type": "text", "text": piece}] * bool(piece)
        return found

    system = {"role": "system", "content": SYSTEM}
    spoken = [{"role": role, "content": text} for (role, _), text in zip(roles, turns, strict=True)]
    in_parts = [{**turn, "content": parts(turn["content"])} for turn in spoken]
    history, beside = [list(FIRST)], {"system": SYSTEM, "images": pictures}
    return {
        "parts": {"messages": [system, *in_parts]},
        "images beside": {"messages": [system, *spoken], "images": pictures},
        "a system column": {"messages": spoken, **beside},
        "ShareGPT": {
            "conversations": [{"from": name, "value": t} for (_, name), t in zip(roles, turns, strict=True)],
            **beside,
        },
        "ms-swift": {"query": SECOND[0], "response": SECOND[1], "history": history, **beside},
        "ms-swift, conversation": {
            "conversation": [{"human": asked, "assistant": said} for asked, said in (FIRST, SECOND)],
            **beside,
        },
        "Alpaca": {"instruction": SECOND[0], "input": "", "output": SECOND[1], "history": history, **beside},
        "own": {"question": SECOND[0], "answer": SECOND[1], "history": history, **beside},
    }


@pytest.mark.parametrize(
    "name",
    [
        *("parts", "images beside", "a system column", "ShareGPT"),
        *("ms-swift", "ms-swift, conversation", "Alpaca", "own"),
    ],
)
def test_each_answer_of_a_conversation_is_a_record(folder: Path, pictures: list[str], name: str) -> None:
    file = write_rows([{**conversation(pictures)[name], **OWNER}], folder, "jsonl")
    first, second = read_records(file)
    paths = [folder / picture for picture in pictures]
    system = Turn("system", SYSTEM)
    assert (first.question, first.answer, list(first.images), first.history) == (*FIRST, paths[:2], (system,))
    turns = (system, Turn("user", FIRST[0]), Turn("assistant", FIRST[1]))
    assert (second.question, second.answer, list(second.images), second.history) == (*SECOND, paths, turns)
    assert first.path == second.path == ("i", "p")


def test_what_stands_in_a_prompt_of_trl_is_no_record(folder: Path) -> None:
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    (record,) = read_records(write_rows([{"prompt": turns[:3], "completion": turns[3:], **OWNER}], folder, "jsonl"))
    assert (record.question, record.answer) == ("c", "d")
    assert record.history == (Turn("user", "a"), Turn("assistant", "b"))
    with pytest.warns(ChipWarning, match=r"plain text are asked in the model's chat format \(in 1 rows\)"):
        (record,) = read_records(write_rows([{"prompt": "a", "completion": "b", **OWNER}], folder, "jsonl"))
    assert (record.question, record.answer) == ("a", "b")


def test_placeholders_that_say_nothing_new_are_taken_out_and_others_stay(folder: Path) -> None:
    rows: list[Row] = [
        {"question": "<image>\n<image> Which?", "images": ["images/study_1.png", "images/study_2.png"]},
        {"question": "Which is <image>?", "image": "images/study_1.png"},
        {"question": "<image>Who?", "image": "images/study_1.png", "history": [["Hello", "Hi</s>"]]},
        {"question": "Who?", "image": "images/study_1.png", "history": [["<image>Hello", "Hi"]]},
    ]
    file = write_rows([{**row, "answer": f"{n}", **OWNER} for n, row in enumerate(rows)], folder, "jsonl")
    with pytest.warns(ChipWarning, match=r"answers end in </s> \(1\)"):
        records = {record.answer: record for record in read_records(file)}
    assert records["0"].question == "Which?"
    assert records["1"].question == "Which is <image>?"
    assert records["2"].question == "<image>Who?"
    assert records["2"].history == (Turn("user", "Hello"), Turn("assistant", "Hi"))
    assert (records["3"].question, records["3"].history[0].text) == ("Who?", "Hello")


def test_llavas_image_behind_a_question_is_put_in_front_and_said(folder: Path) -> None:
    turns = [{"from": "human", "value": "Which?\n<image>"}, {"from": "gpt", "value": "her"}]
    row = {"image": "images/study_1.png", "conversations": turns, **OWNER}
    with pytest.warns(ChipWarning, match=r"is put in front of it, as LLaVA does \(in 1 rows\)"):
        (record,) = read_records(write_rows([row], folder, "json"))
    assert (record.question, record.image) == ("Which?", folder / "images" / "study_1.png")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": []}, "there is no answer to the last turn"),
        ({"messages": "hello"}, "messages must be a list"),
        ({"messages": [3]}, "messages 0: must be a JSON object"),
        ({"messages": [{"role": "user", "content": "a"}]}, "there is no answer to the last turn"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages 0: nobody is called 'tool'"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "a turn of the assistant where the user is to speak"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages 0: content must be a string"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "a part of the type 'video' is not read"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "http://a/b.png"}]}]}, "is an address"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "<image>"}]}]},
            "make it a part of its own",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [1]}]},
            "the key messages.tool_calls is not read",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss": False}]},
            "messages 1: was not trained on",
        ),
        ({"messages": [], "tools": "[]", "objects": {"ref": []}}, "the key "),
        ({"conversations": [{"from": "human", "value": "<image>a"}, {"from": "gpt", "value": "b"}]}, "has no image"),
        ({"conversations": [{"from": "human"}]}, "conversations 0: content must be a string"),
        ({"conversation": [{"human": "a"}]}, "conversation 0: assistant must be a string"),
        ({"query": "a", "response": ""}, "response must be a string"),
        ({"instruction": "a", "output": "b", "context": "c"}, "the key context is not read"),
        ({"prompt": [], "completion": []}, "there is no answer"),
    ],
)
def test_a_conversation_that_is_none_is_refused_with_its_row(folder: Path, row: Row, says: str) -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    first = good if "messages" in row else {}
    file = write_rows([{**(first or {}), **OWNER}, {**row, **OWNER}][not first :], folder, "jsonl")
    with pytest.raises(InputError) as caught:
        read_records(file)
    assert str(caught.value).startswith(f"train.jsonl:{1 + bool(first)}")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_tables_is_read_by_its_files_names(folder: Path) -> None:
    """One file a split, as SLAKE and LLaMA-Factory have them; its list of data sets is none."""
    (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "slake_train.json"}}))
    names = {"slake_train": "train", "validate": "validation", "vqa-test_2": "test"}
    for kind in ("json", "jsonl", "csv"):
        (parted := folder / kind).mkdir()
        (parted / "images").symlink_to(folder / "images")
        if kind == "json":
            shutil.copy(folder / "dataset_info.json", parted)
        for name in names:
            write_rows([{**ROW, "answer": name, "institution": "i"}], parted, kind, name)
        with ANY_SAID():
            assert {r.answer: r.split for r in read_records(parted)} == names
    with pytest.raises(InputError, match=r"dataset_info\.json: no reader knows its columns \(mine\)"):
        read_records(folder / "dataset_info.json")
    wide = write_rows([{f"{number:03d}\n": "x" * 99 for number in range(300)}], folder, "jsonl")
    with pytest.raises(InputError, match=r"columns \(000\\n, .*019\\n, \.\.\.\); there are"):
        read_records(wide)


def test_an_object_over_several_lines_is_no_list_of_records(folder: Path) -> None:
    (folder / "train.json").write_text(json.dumps({"data": [ROW]}, indent=1))
    with pytest.raises(InputError, match=r"train\.json: one object over several lines; give a list of records"):
        read_records(folder / "train.json")


@ANY
def test_plain_text_of_trl_is_asked_without_the_space_between(folder: Path) -> None:
    row = {"prompt": "The sky is ", "completion": " blue.", "images": "[]", "tools": "[]", **OWNER}
    (record,) = read_records(write_rows([row], folder, "csv"))
    assert (record.question, record.answer, record.images) == ("The sky is", "blue.", ())


# --- benchmarks ---


def test_options_of_pmc_vqa_stand_behind_the_question(folder: Path) -> None:
    row = {
        "Figure_path": "images/study_1.png",
        "Question": "Which?",
        "Caption": "a lobe",
        "index": "0",
        **{
            f"Choice {letter}": f" {letter}:{text} "
            for letter, text in zip("ABCD", ("left", "rib", "2", "3"), strict=True)
        },
        "Answer": "rib",
        "split": "train",
    }
    rows = [row, {**row, "Question": "What?", "Answer": "B"}, {**row, "Question": "Who?", "Answer": "4"}]
    owner = {"institution": "'pmc'", "patient": r"image:/study_\d/"}
    file = write_rows(rows[:2], folder, "csv")
    with pytest.warns(ChipWarning) as caught:
        records = read_records(RecordSource(file, owner))
    assert [r.question for r in records] == ["Which? A) left B) rib C) 2 D) 3", "What? A) left B) rib C) 2 D) 3"]
    assert {(r.answer, r.task, r.path) for r in records} == {("B", "classification", ("pmc", "study_1"))}
    said = sorted(str(each.message) for each in caught)
    assert said[0].startswith("kept in train.map.json, for later commands: institution='pmc', patient=image:")
    assert said[1] == "train.csv: 2 keys are not used: Caption (in 2 of 2 records), index (in 2 of 2 records)"
    with pytest.raises(InputError, match=r"^train\.csv:4: Answer '4' is none of the options"), ANY_SAID():
        read_records(RecordSource(write_rows(rows, folder, "csv"), owner))


def test_mimic_cxr_vqa_names_its_patients(folder: Path) -> None:
    row = {
        "split": "train",
        "idx": 0,
        "subject_id": "10",
        "study_id": "50",
        "image_id": "a",
        "template": "t",
        "image_path": "images/study_1.png",
        "question": "Which?",
        "answer": ["left", "right"],
    }
    file = write_rows([row, {**row, "question": "What?", "answer": [], "split": "valid"}], folder, "json")
    with pytest.warns(ChipWarning, match="3 keys are not used: "):
        records = read_records(file)
    assert [r.split for r in records] == ["train", "validation"]
    assert [(r.path, r.answer) for r in records] == [
        (("mimic-cxr", "10", "50"), "left, right"),
        (("mimic-cxr", "10", "50"), "none"),
    ]


def test_splits_of_a_saved_dataset_and_of_shards_are_theirs(folder: Path) -> None:
    import datasets

    rows = rows_in(folder)[:3]
    own = read_records(folder / "records.jsonl")[:3]
    (parted := folder / "parted").mkdir()
    (parted / "images").symlink_to(folder / "images")
    names = ("train", "test", "validation")
    for name, row in zip(names, rows, strict=True):
        bare = {key: value for key, value in row.items() if key != "split"}
        write_rows([bare], parted, "parquet", f"{name}-00000-of-00001")
    with pytest.warns(ChipWarning, match=r"parted: held out, as their names say: .*\(test\), .*\(validation\)"):
        records = read_records(parted)
    assert {r.answer: r.split for r in records} == dict(zip((r.answer for r in own), names, strict=True))
    splits = {name: datasets.Dataset.from_list([{**row, "split": None}]) for name, row in zip(names, rows, strict=True)}
    datasets.DatasetDict(splits).save_to_disk(str(folder / "saved"))
    (folder / "saved" / "images").symlink_to(folder / "images")
    with pytest.warns(ChipWarning, match=r"saved: held out, as their names say: test \(test\), validation"):
        records = read_records(folder / "saved")
    assert {r.answer: r.split for r in records} == dict(zip((r.answer for r in own), names, strict=True))


# --- maps ---


def ANY_SAID() -> Any:  # noqa: N802
    """Whatever is said."""
    return warnings.catch_warnings(action="ignore", category=ChipWarning)


ROW: Row = {"question": "Who?", "answer": "her", "image": "images/study_1.png"}


def path_by(folder: Path, row: Row, **owners: str) -> tuple[str, ...]:
    with ANY_SAID():
        (record,) = read_records(RecordSource(write_rows([{**ROW, **row}], folder, "jsonl"), owners))
    return record.path


def test_each_form_of_a_map(folder: Path) -> None:
    (folder / "t.csv").write_text("file,of\nimages/study_1.png,007\nimages/study_2.png,008\n")
    hospital = "'General / Hospital'".replace(" / ", " ")
    assert path_by(folder, {}, institution=hospital) == ("General Hospital",)
    assert path_by(folder, {"m": {"a": [{"id": 5}]}}, institution="m.a.0.id") == ("5",)
    assert path_by(folder, {"m": '{"id": "x"}'}, institution="m.id") == ("x",)
    assert path_by(folder, {"m.id": "flat"}, institution="m.id") == ("flat",)
    assert path_by(folder, {}, institution=r"image:/study_\d/") == ("study_1",)
    assert path_by(folder, {}, institution=r"image:/study_(\d)/") == ("1",)
    assert path_by(folder, {"file": "a-9"}, institution=r"file:/-(\d)/") == ("9",)
    assert path_by(folder, {"file": "images/study_2.png"}, institution="@t.csv:file:of") == ("008",)
    assert path_by(folder, {"institution": "own", "p": 3}, patient="p") == ("own", "3")
    assert path_by(folder, {"institution": "own"}, institution="'other'") == ("other",)


@pytest.mark.parametrize(
    ("owners", "says"),
    [
        (
            {"institution": "hospital"},
            "train.jsonl:1: nothing there says its institution, mapped to hospital, as it has no 'hospital', "
            "only answer, image, question; correct either",
        ),
        ({"institution": r"image:/p(\d{8})/"}, "train.jsonl:1: nothing there says its institution"),
        ({"institution": "@t.csv:image:of"}, "has no column 'image', only file, of"),
        ({"institution": "@t.csv:file:of"}, "train.jsonl:1: nothing there says its institution"),
        ({"institution": "@none.csv:file:of"}, "map='institution=@none.csv:file:of': no table "),
        ({"institution": "@t.csv:file"}, "a table is @FILE:COLUMN:COLUMN"),
        ({"institution": "@twice.csv:image:of"}, "twice.csv:3: of is '2' there, and was another for 'a' before"),
        ({"institution": "image:/(/"}, "map='institution=image:/(/': no regular expression"),
        ({"institution": "dicom:Patient"}, "DICOM has no such keyword"),
        ({"institution": "dicom:PatientID"}, "train.jsonl:1: images/study_1.png is no DICOM file"),
        ({"institution": ""}, "says not where"),
        ({"hospital": "'a'"}, "map='hospital': no level is called so; map institution, "),
        ({"patient": "'a'"}, "train.jsonl:1: has a patient but no institution"),
        ({"institution": "'a/b'"}, "train.jsonl:1: institution 'a/b' is not an id"),
        ({"institution": "'a'", "split": "'Train'"}, "no split is called 'Train'"),
    ],
)
def test_a_map_that_does_not_say_whose_a_row_is_is_refused(folder: Path, owners: dict[str, str], says: str) -> None:
    (folder / "t.csv").write_text("file,of\nx,007\n")
    (folder / "twice.csv").write_text("image,of\na,1\na,2\n")
    file = write_rows([ROW], folder, "jsonl")
    with pytest.raises(InputError) as caught:
        read_records(RecordSource(file, owners))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "train.map.json").exists()


def test_images_of_two_owners_are_refused(folder: Path) -> None:
    row = {**ROW, "image": None, "images": ["images/study_1.png", "images/study_2.png"]}
    with pytest.raises(InputError, match=r"^train\.jsonl:1: its images are of several owners \('1' and '2'\)"):
        read_records(RecordSource(write_rows([row], folder, "jsonl"), {"institution": r"image:/(\d)/"}))


def test_what_is_mapped_is_kept_and_used_by_the_next_command_and_said(folder: Path) -> None:
    file = write_rows([ROW, {**ROW, "question": "When?"}], folder, "jsonl")
    with pytest.warns(ChipWarning, match="kept in train.map.json, for later commands: institution='a', window 40,400"):
        first = read_records(RecordSource(file, {"institution": "'a'"}, window="40,400"))
    assert {record.window for record in first} == {Window(40, 400)}
    with pytest.warns(
        ChipWarning, match="train.map.json says how the records are read: institution='a', window 40,400"
    ):
        assert read_records(file) == first
    with pytest.warns(ChipWarning) as caught:
        second = read_records(RecordSource(file, {"institution": "'b'"}))
    assert {(record.path, record.window) for record in second} == {(("b",), Window(40, 400))}
    assert sorted(str(each.message) for each in caught) == [
        "kept in train.map.json, for later commands: institution='b', window 40,400",
        "train.map.json says how the records are read: window 40,400",
    ]
    for content in ("{", "[]", '{"map": {"institution": 3}}', '{"maps": {}}', '{"window": "a"}'):
        (folder / "train.map.json").write_text(content)
        with pytest.raises(InputError) as refusal:
            read_records(file)
        assert "\n" not in str(refusal.value)


def test_paths_of_images_start_from_the_folder_that_is_named(folder: Path) -> None:
    file = write_rows([{**ROW, "image": "study_1.png", "institution": "i"}], folder, "jsonl")
    with pytest.raises(InputError, match="no image file"):
        read_records(file)
    with pytest.warns(ChipWarning, match=r"kept in train\.map\.json, for later commands: images in images"):
        (record,) = read_records(RecordSource(file, images="images"))
    assert record.image == folder / "images" / "study_1.png"


def test_a_source_without_a_file_finds_it_as_ever(folder: Path) -> None:
    source = find_source(folder / "ckpt", RecordSource(None, {"institution": "'a'"}))
    assert (source.path, source.map) == (folder / "records.jsonl", {"institution": "'a'"})
    assert find_source(folder / "ckpt", None).path == folder / "records.jsonl"


# --- tables ---


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("question,answer\nq\n", "train.csv:2: has 1 fields, and the first line names 2 columns"),
        ("question,answer,institution\n\n\n'q','a','i'\n\"q\n\n,a", "train.csv:5: no row of a table"),
        ("question,question\nq,a\n", "two columns are called 'question'"),
        ("question,answer,institution\nq,,i\n", "train.csv:2: answer must be a string"),
        ("name,age\nq,3\n", "no reader knows its columns (age, name)"),
        ("\n", "no reader knows its columns (none)"),
    ],
)
def test_a_bad_table_of_text_is_refused_with_its_line(folder: Path, content: str, says: str) -> None:
    (folder / "train.csv").write_text(content)
    with pytest.raises(InputError) as caught:
        read_records(folder / "train.csv")
    assert says in str(caught.value)


def test_a_table_that_is_not_utf8_is_refused(folder: Path) -> None:
    (folder / "train.csv").write_bytes(b"question,answer,institution\n\xff,a,i\n")
    with pytest.raises(InputError, match=r"train\.csv:1: not UTF-8 from here on"):
        read_records(folder / "train.csv")


def test_without_datasets_the_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "train.arrow").write_bytes(b"ARROW1")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'chip-unlearning\[datasets\]'"):
        read_records(folder / "train.arrow")


def test_an_arrow_file_may_have_a_table_of_contents(folder: Path) -> None:
    table = pa.Table.from_pylist([{**ROW, **OWNER}])
    with pa.OSFile(str(folder / "train.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    (record,) = read_records(folder / "train.arrow")
    assert (record.question, record.where) == ("Who?", "train.arrow:row 0")


def test_a_broken_arrow_file_is_refused(folder: Path) -> None:
    (folder / "train.arrow").write_bytes(b"ARROW1")
    with pytest.raises(InputError, match=r"train\.arrow: is no Arrow file or saved dataset that can be read"):
        read_records(folder / "train.arrow")
