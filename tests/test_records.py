"""What is written comes back, and what is wrong is refused with its line and a mend."""

import io
import json
import pickle
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image

from chip.data.embedded_image import EmbeddedImage, ImageSource
from chip.data.readers import READERS, RecordsFile, find_records, read_records, register_reader, registry
from chip.data.record import LEVELS, TASKS, Record, image_size, open_image
from chip.errors import ChipWarning, InputError

GOOD = {"question": "Who?", "answer": "P17", "institution": "i2", "patient": "p17"}
IDS = {"institution_id": "i2", "patient_id": "p17", "study_id": "s40", "section_name": "findings"}


def encoded(mode: str = "RGB", kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (4, 2), 7 if mode in ("L", "I;16") else (200, 10, 30)).save(stream, kind, **options)
    return stream.getvalue()


def jsonl(folder: Path, *lines: object) -> Path:
    file = folder / "records.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def parquet(file: Path, *rows: dict[str, Any]) -> Path:
    usual = {
        "image": {"bytes": encoded()},
        "image_path": "x.png",
        "metadata": json.dumps([{"Question": "Who?", "Answer": "P17"}]),
        "hierarchy_metadata": json.dumps(IDS),
    }
    pq.write_table(pa.Table.from_pylist([usual | row for row in rows]), file)
    return file


# --- JSON lines ---

texts = st.text(min_size=1).filter(
    lambda text: any(each.isprintable() and not each.isspace() for each in text) and "<image>" not in text  # refused
)
ids = texts.filter(lambda text: "/" not in text and text == text.strip())


@pytest.mark.filterwarnings("ignore::chip.errors.ChipWarning")  # of what hypothesis repeats
@given(
    st.lists(
        st.builds(
            Record,
            question=texts,
            answer=texts,
            path=st.lists(ids, min_size=1, max_size=4).map(tuple),
            image=st.none(),
            task=st.sampled_from(TASKS),
            split=texts,
        ),
        min_size=1,
    ),
    st.booleans(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_comes_back(tmp_path: Path, records: list[Record], ascii_only: bool) -> None:
    lines = [
        json.dumps(
            {"question": r.question, "answer": r.answer, "task": r.task, "split": r.split, "image": None}
            | dict(zip(LEVELS, r.path, strict=False)),
            ensure_ascii=ascii_only,
        )
        for r in records
    ]
    file = tmp_path / "records.jsonl"
    file.write_bytes("\n\n".join(lines).encode())
    assert read_records(file) == records
    assert [r.where for r in read_records(file)] == [f"records.jsonl:{1 + 2 * i}" for i in range(len(records))]


def test_defaults_integers_and_nulls(tmp_path: Path) -> None:
    line = GOOD | {"patient": 17, "study": None, "task": None, "split": None, "messages": None}
    (record,) = read_records(jsonl(tmp_path, line))
    assert record == Record("Who?", "P17", ("i2", "17"), None)
    assert (record.task, record.split, record.held_out) == ("generation", "train", False)


def test_keys_that_are_not_used_are_counted_and_said_once(tmp_path: Path) -> None:
    other, third = ({"question": question} for question in ("When?", "Why?"))
    with pytest.warns(ChipWarning) as caught:
        records = read_records(
            jsonl(tmp_path, GOOD | {"age": 3}, GOOD | other, GOOD | third | {"age": 4, "patient_id": "x"})
        )
    assert len(records) == 3
    (message,) = (str(each.message) for each in caught)
    assert message == ("records.jsonl: 2 keys are not used: age (in 2 of 3 records), patient_id (in 1 of 3 records)")


def test_an_id_may_be_the_name_of_an_images_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    with pytest.warns(ChipWarning, match="1 key is not used: id "):
        (record,) = read_records(jsonl(tmp_path, GOOD | {"image": "a.png", "id": "a.png"}))
    assert record.image == tmp_path / "a.png"


def test_a_mark_at_the_start_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n")
    assert len(read_records(file)) == 1


def test_the_image_path_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encoded())
    (record,) = read_records(jsonl(tmp_path, GOOD | {"image": "images/a.png"}))
    assert record.image == tmp_path / "images" / "a.png"


DATA: dict[str, object] = {
    "audio_path": "a.wav",
    "video_url": "x",
    "systemMessage": "Be brief.",
    "videoFile1": "x",
    "thumbnail": "data:image/png;base64,AA",
    "scan": "iVBORw0KGgoAAAA",
    "frames": ["a.png"],
}
"""Keys of no use to chip that hold data."""


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"question": ', "not JSON"),
        ("[" * 100_000, "not usable JSON"),
        ('{"question": ' + "1" * 10_000 + "}", "not usable JSON"),
        ("[1]", "JSON object"),
        ({"answer": "a", "institution": "i"}, "question must be a string"),
        (GOOD | {"question": " "}, "question must be a string"),
        *((GOOD | {"answer": value}, "answer must be a string") for value in (3, True, 1.5, ["a"], {"a": "b"}, None)),
        *((GOOD | {"answer": value}, "answer must be a string") for value in ("", " \n\t", "\u200b", "\x00")),
        (GOOD | {"question": "\ud800"}, r"question holds half a character ('\ud800')"),
        ('{"question": "a", "question": "b", "answer": "a", "institution": "i"}', "'question' stands there twice"),
        ({"question": "q", "answer": "a"}, "belongs nowhere"),
        ({"question": "q", "answer": "a", "patient": "p"}, "has a patient but no institution"),
        ({"question": "q", "answer": "a", "institution": "i", "study": "s"}, "has a study but no patient"),
        (GOOD | {"patient": ""}, "patient '' is not an id"),
        (GOOD | {"patient": True}, "patient True is not an id"),
        (GOOD | {"patient": 1.5}, "patient 1.5 is not an id"),
        (GOOD | {"patient": "a/b"}, "patient 'a/b' is not an id"),
        (GOOD | {"patient": "p17 "}, "patient 'p17 ' begins or ends with a space"),
        (GOOD | {"task": "essay"}, "'essay'; use generation, classification, cloze"),
        (GOOD | {"task": ["cloze"]}, "task must be a string"),
        (GOOD | {"split": 1}, "split must be a string"),
        *((GOOD | {"split": word}, f"split is called {word!r}; did you mean train?") for word in ("Train", "training")),
        (GOOD | {"split": "val"}, "split is called 'val'; did you mean validation?"),
        (GOOD | {"image": "gone.png"}, "gone.png"),
        (GOOD | {"image": "."}, "no image file"),
        (GOOD | {"image": "x" * 5000}, "no image file"),
        (GOOD | {"image": 7}, "image must be a string"),
        (GOOD | {"images": ["a.png"]}, "no image file"),
        (GOOD | {"image_path": "a.png"}, "no image file"),
        (GOOD | {"image": "a.png", "images": ["a.png"]}, "image and images both hold images"),
        (GOOD | {"image": "https://a.org/a.png"}, "is an address; fetch it"),
        (GOOD | {"image": "data:image/png;base64,?"}, "is not base64"),
        (GOOD | {"Images ": ["a.png"]}, "the key Images  is not read; give its path as image, several as images"),
        (GOOD | {"photo": "a.JPG"}, "the key photo is not read, and holds an image"),
        (GOOD | {"scans": [{"bytes": "x"}]}, "the key scans is not read, and holds an image"),
        (GOOD | {"options": ["left", "right"]}, "the key options is not read; write them into the question"),
        (GOOD | {"response": "a"}, "the key response is not read; give what was asked as question"),
        (GOOD | {"question": "<image>Who?"}, "the question holds <image>; the record has no image"),
        (GOOD | {"answer": "<image>"}, "the answer holds <image>; the record has no image"),
        (GOOD | {"answer": "</s>\n"}, "the answer is </s> alone"),
        (GOOD | {"video": "a.mp4"}, "the key video is not read"),
        (GOOD | {"system": 7}, "system must be a string"),
        (GOOD | {"system_prompt": "You are a doctor."}, "the key system_prompt is not read"),
        (GOOD | {"history": [["Who?"]]}, "history must be a list of pairs"),
        (GOOD | {"history": "Who?"}, "history must be a list"),
        ({"messages": [], "institution": "i"}, "the key messages is not read"),
        ({"conversations": [], "institution": "i"}, "the key conversations is not read"),
        ({"question": "q", "answer": "a", "institution": "i", "patinet": "p"}, "'patinet'; did you mean patient?"),
        ({"question": "q", "answer": "a", "institution": "i", "patient_id": "p"}, "did you mean patient?"),
        ({"question": "q", "answer": "a", "Institution": "i"}, "'Institution'; did you mean institution?"),
        (GOOD | {"study": "s", "section_name": "findings"}, "did you mean section?"),
        ({"question": "q", "answer": "a", "institution": "i", "subject_id": "p"}, "did you mean patient?"),
        ({"question": "q", "answer": "a", "hospital": "i"}, "'hospital'; did you mean institution?"),
        (GOOD | {"fold": "test"}, "'fold'; did you mean split?"),
        *(({**GOOD, key: value}, f"the key {key} is not read") for key, value in DATA.items()),
        (GOOD | {"is_train": False}, "'is_train'; did you mean split?"),
        *(
            ({"question": "q", "answer": "a", "institution": "i", key: "p"}, f"'{key}'; did you mean patient?")
            for key in ("patient_number", "patientNo", "PatientID", "dicom_patient", "Person Code", "subject-uid")
        ),
        (GOOD | {"StudyInstanceUID": "1.2"}, "did you mean study?"),
        (GOOD | {"study": "s", "report_section": "findings"}, "did you mean section?"),
    ],
)
def test_a_bad_line_is_refused_in_one_line_that_names_it(tmp_path: Path, line: object, says: str) -> None:
    with pytest.raises(InputError) as caught:
        read_records(jsonl(tmp_path, GOOD, "", line))
    assert str(caught.value).startswith("records.jsonl:3: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_json_array_is_read_item_by_item(tmp_path: Path) -> None:
    file = tmp_path / "records.json"
    file.write_text(json.dumps([GOOD, GOOD | {"question": "When?"}], indent=1))
    assert [(r.question, r.where) for r in read_records(file)] == [
        ("Who?", "records.json:item 0"),
        ("When?", "records.json:item 1"),
    ]
    file.write_text(json.dumps([GOOD, GOOD | {"answer": 3}]))
    with pytest.raises(InputError, match=r"^records\.json:item 1: answer must be a string"):
        read_records(file)


@pytest.mark.parametrize("question", ["<image>Who?", " <image>\nWho?"])
def test_one_placeholder_at_the_start_of_a_question_stands_for_its_image(tmp_path: Path, question: str) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    (record,) = read_records(jsonl(tmp_path, GOOD | {"question": question, "image": "a.png"}))
    assert (record.question, record.image) == ("Who?", tmp_path / "a.png")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"question": "<image><image>Who?"}, "the user's turns hold <image> 2 times, for 1 image"),
        ({"question": "<image>Who is <image>?"}, "the user's turns hold <image> 2 times"),
        ({"question": "<image> \n"}, "the question is <image> alone"),
        ({"answer": "<image>her"}, "the answer holds <image>; take it out"),
        ({"system": "<image>"}, "the system prompt holds <image>; take it out"),
    ],
)
def test_any_other_placeholder_is_refused(tmp_path: Path, change: dict[str, str], says: str) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    with pytest.raises(InputError, match=rf"^records\.jsonl:1: {says}"):
        read_records(jsonl(tmp_path, GOOD | {"image": "a.png"} | change))


def test_what_ends_a_turn_is_taken_from_the_end_of_an_answer_and_said(tmp_path: Path) -> None:
    answers = ["P17</s>", "P18 <|im_end|>\n", "P19</s></s>", "<s>P20</s>", "P21"]
    lines = [GOOD | {"question": f"Who {number}?", "answer": answer} for number, answer in enumerate(answers)]
    with pytest.warns(ChipWarning) as caught:
        records = read_records(jsonl(tmp_path, *lines))
    assert [r.answer for r in records] == ["P17", "P18", "P19", "<s>P20</s>", "P21"]
    (message,) = (str(each.message) for each in caught)
    assert message == (
        "records.jsonl: answers end in </s> (1), <|im_end|> (1), </s></s> (1), which is left out: "
        "the model's chat format writes it"
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            [{}, {}, {"question": "b"}, {"split": "test"}],
            r"copies .* like these \(1; records\.jsonl:1 and records\.jsonl:2 ",
        ),
        (
            [{}, {"answer": "P18"}, {"patient": "p18"}],
            r"has several answers \(1 times; records\.jsonl:1, .*jsonl:3 ask one",
        ),
        ([{}, {"question": "b", "patient": "P17"}], r"i2/p17 and i2/P17 differ in case or form alone"),
        ([{"patient": "é"}, {"question": "b", "patient": "e\u0301"}], "differ in case or form alone"),
    ],
)
def test_what_is_there_twice_or_in_two_ways_is_said(tmp_path: Path, changes: list[dict[str, str]], says: str) -> None:
    with pytest.warns(ChipWarning, match=says) as caught:
        records = read_records(jsonl(tmp_path, *(GOOD | change for change in changes)))
    assert len(records) == len(changes)
    assert len(caught) == 1


def test_bytes_that_are_not_utf8_are_refused_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b'\n{"question": "\xff"}\n')
    with pytest.raises(InputError, match=r"^records\.jsonl:2: not UTF-8"):
        read_records(file)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("records.jsonl", b"", "holds no records"),
        ("records.jsonl", b"\n \n", "holds no records"),
        ("records.csv", b"", r"no reader knows its columns \(none\)"),
        ("records.txt", b"", r"use \.jsonl, \.csv, \.parquet"),
        ("records.jsonl", None, "No such file"),
        ("records.parquet", None, "No such file"),
        ("records.parquet", b"PAR1", "not a whole parquet file"),
        ("records.parquet", b"PAR1" + b"\xff" * 40 + struct.pack("<I", 40) + b"PAR1", "cannot be read"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_records(tmp_path / name)
    assert "\n" not in str(caught.value)


# --- MedForget ---


def test_a_row_is_one_record_for_each_question(tmp_path: Path) -> None:
    metadata = [
        {"Question": "Which view?", "Answer": ["frontal", "AP"]},
        {"Question": "The heart is [blank].", "Answer": "large"},
        {"Question": "Which? A) left B) right C) both", "Answer": "A"},
    ]
    file = parquet(tmp_path / "forget.parquet", {}, {"metadata": json.dumps(metadata)})
    records = read_records(file)[1:]
    assert [(r.answer, r.task) for r in records] == [
        ("frontal", "generation"),
        ("large", "cloze"),
        ("A", "classification"),
    ]
    assert {r.where for r in records} == {"forget.parquet:row 1"}
    assert {r.path for r in records} == {("i2", "p17", "s40", "findings")}
    assert {r.image for r in records} == {EmbeddedImage.of(encoded())}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"section_name": None}, ("i2", "p17", "s40")),
        ({"section_name": "", "study_id": ""}, ("i2", "p17")),
        ({"patient_id": 17, "hierarchy_level": "section"}, ("i2", "17", "s40", "findings")),
        ({"hierarchy_level": "patient"}, ("i2", "p17")),
        ({"hierarchy_level": "patient_level"}, ("i2", "p17", "s40", "findings")),
    ],
)
def test_a_row_belongs_to_the_level_it_asks_about(
    tmp_path: Path, change: dict[str, object], path: tuple[str, ...]
) -> None:
    file = parquet(tmp_path / "a.parquet", {"hierarchy_metadata": json.dumps(IDS | change)})
    assert [r.path for r in read_records(file)] == [path]


def test_an_image_is_bytes_or_a_struct_or_a_file_or_absent(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded())

    def image_of(**row: Any) -> ImageSource | None:
        return read_records(parquet(tmp_path / "a.parquet", row))[0].image

    assert image_of() == image_of(image=encoded()) == EmbeddedImage.of(encoded())
    assert image_of(image=None) == image_of(image={"bytes": None}) == tmp_path / "x.png"
    assert image_of(image=None, image_path=None) is None
    with pytest.raises(InputError, match=r"^a\.parquet:row 0: no image file .*gone\.png"):
        image_of(image=None, image_path="gone.png")
    with pytest.raises(InputError, match="encoded bytes"):
        image_of(image="x.png")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"metadata": "{"}, "row 0, metadata: not JSON"),
        ({"metadata": None}, "row 0, metadata: must hold JSON text"),
        ({"metadata": "{}"}, "must be a JSON list"),
        ({"metadata": "[3]"}, "must be a JSON object"),
        ({"metadata": '[{"Question": "q"}]'}, "Answer must be a string"),
        ({"metadata": '[{"Question": "q", "Answer": []}]'}, "Answer must be a string"),
        ({"hierarchy_metadata": "[]"}, "must be a JSON object"),
        ({"hierarchy_metadata": "{}"}, "belongs nowhere"),
        ({"hierarchy_metadata": '{"institution_id": "i", "study_id": "s"}'}, "has a study but no patient"),
    ],
)
def test_a_bad_row_is_refused_with_its_number(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_records(parquet(tmp_path / "a.parquet", row))
    assert str(caught.value).startswith("a.parquet:row 0")


def test_parquet_of_another_shape_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["q"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: no reader knows its columns \(question\); there are records, "):
        read_records(tmp_path / "a.parquet")


def test_a_table_is_read_by_its_columns(tmp_path: Path) -> None:
    """Questions and answers alone may be TOFU's; with a hierarchy, an image or a task beside them they are not."""
    (tmp_path / "x.png").write_bytes(encoded())
    rows = [
        GOOD | {"image": {"bytes": encoded("L"), "path": "a.png"}, "task": "cloze", "split": "paraphrased"},
        GOOD | {"image": {"bytes": None, "path": "x.png"}, "study": "s"},
        GOOD,
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "forget10.parquet")
    assert read_records(tmp_path / "forget10.parquet") == [
        Record("Who?", "P17", ("i2", "p17"), EmbeddedImage.of(encoded("L")), "cloze", "paraphrased"),
        Record("Who?", "P17", ("i2", "p17"), tmp_path / "x.png"),
        Record("Who?", "P17", ("i2", "p17"), None),
    ]


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ("image", "row 0: no image file"),
        ("task", "row 0: belongs nowhere"),
        ("patient", "row 0: has a patient but no institution"),
        ("patinet", "row 0: .*did you mean patient"),
        ("images", "row 0: no image file"),
        ("messages", "row 0: the key messages is not read"),
        ("age", "row 0: belongs nowhere"),
    ],
)
def test_a_table_with_more_than_tofu_has_is_never_taken_for_it(tmp_path: Path, column: str, says: str) -> None:
    pq.write_table(pa.table({"question": ["q"], "answer": ["a"], column: ["cloze"]}), tmp_path / "forget10.parquet")
    with pytest.raises(InputError, match=rf"^forget10\.parquet:{says}"):
        read_records(tmp_path / "forget10.parquet")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    columns = [pa.array([text]) for text in ("q", "p", "a", "i")]
    table = pa.Table.from_arrays(columns, names=["question", "question", "answer", "institution"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: two columns are called 'question'"):
        read_records(tmp_path / "a.parquet")


def test_what_medforget_does_not_read_is_said(tmp_path: Path) -> None:
    pairs, ids = [{"Question": "Who?", "Answer": "P17", "Source": "A"}], IDS | {"ward": 3}
    row = {"sex": "f", "metadata": json.dumps(pairs), "hierarchy_metadata": json.dumps(ids), "split": "train"}
    listed = r"sex \(in 1 of 2 records\), hierarchy_metadata\.ward \(in 1 of 2 .* metadata\.Source \(in 1 of 2 "
    with pytest.warns(ChipWarning, match=rf"^a\.parquet: 3 keys are not used: {listed}"):
        read_records(parquet(tmp_path / "a.parquet", row, {"split": "test"}))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"system": "Be brief."}, "the key system is not read"),
        (
            {"metadata": '[{"Question": "q", "Answer": "a", "Options": ["a", "b"]}]'},
            r"key metadata\.Options is not read",
        ),
        ({"hierarchy_metadata": '{"institution_id": "i", "patientId": "p"}'}, "did you mean patient_id"),
        ({"hierarchy_metadata": '{"institution_id": "i", "patient_uid": "p"}'}, "did you mean patient_id"),
        (
            {"hierarchy_metadata": '{"institution_id": "i", "mrn": "p", "hierarchy_level": "patient"}'},
            "asks about a patient, and has no patient_id",
        ),
        ({"split": "Train"}, "did you mean train"),
    ],
)
def test_nothing_of_a_medforget_row_is_passed_over(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_records(parquet(tmp_path / "a.parquet", row))


def test_a_row_of_any_format_says_what_is_held_out(tmp_path: Path) -> None:
    (record,) = read_records(parquet(tmp_path / "a.parquet", {"split": "validation"}))
    assert record.split == "validation"
    records = read_records(person(tmp_path / "b.parquet", split="validation", institution="press"))
    assert {(record.split, record.path) for record in records} == {("validation", ("press", "017"))}


def test_a_folder_keeps_what_its_files_share_once(tmp_path: Path) -> None:
    other = {"hierarchy_metadata": json.dumps(IDS | {"patient_id": "p18"})}
    parquet(tmp_path / "forget.parquet", {})
    parquet(tmp_path / "retain.parquet", other, {}, other)
    for name in ("more.jsonl", "more.json", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.warns(ChipWarning) as caught:
        wheres = [r.where for r in read_records(tmp_path)]
    copies, unread = sorted(str(each.message).removeprefix(f"{tmp_path.name}: ") for each in caught)
    assert copies == (
        "copies of other records count like these (1; retain.parquet:row 0 and retain.parquet:row 2 are the same)"
    )
    assert unread == "of this folder only .parquet files are read, and not more.json, more.jsonl"
    assert wheres == ["forget.parquet:row 0", "retain.parquet:row 0", "retain.parquet:row 2"]


def test_a_folder_without_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.parquet, \.json, \.jsonl, \.csv file"):
        read_records(tmp_path)


def test_without_pyarrow_the_mend_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = parquet(tmp_path / "a.parquet", {})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'chip-unlearning\[datasets\]'"):
        read_records(file)


# --- MLLMU-Bench ---

CHOICE = {"Question": "Which job?", "Options": {"A": "baker", "B": "pilot"}, "Correct_Answer": "B"}
PERSON = {
    "ID": "017",
    "image": {"bytes": encoded(), "path": "017.png"},
    "biography": "P17 flies.",
    "question": "Who is this?",
    "answer": "P17, a pilot.",
    "Classification_Task": {"Image_Textual_Questions": [CHOICE], "Pure_Text_Questions": [CHOICE]},
    "Generation_Task": [
        {"Type": "Image_Textual", "Question": "Where born?", "Ground_Truth": "In Lorn."},
        {"Type": "Pure_Text", "Question": "Where did P17 grow up?", "Ground_Truth": "In Esk."},
    ],
    "Mask_Task": [{"Type": "Image_Textual", "Question": "The person is a __.", "Ground_Truth": "pilot"}],
}


def person(file: Path, **change: Any) -> Path:
    pq.write_table(pa.Table.from_pylist([PERSON | change]), file)
    return file


def test_a_person_is_asked_in_every_task(tmp_path: Path) -> None:
    records = read_records(person(tmp_path / "forget_5.parquet"))
    assert [(r.task, r.question, r.answer, r.image is not None) for r in records] == [
        ("generation", "Who is this?", "P17, a pilot.", True),
        ("classification", "Which job? A) baker B) pilot", "B", True),
        ("classification", "Which job? A) baker B) pilot", "B", False),
        ("generation", "Where born?", "In Lorn.", True),
        ("generation", "Where did P17 grow up?", "In Esk.", False),
        ("cloze", "The person is a __.", "pilot", True),
    ]
    assert {r.path for r in records} == {("people", "017")}
    assert {r.where for r in records} == {"forget_5.parquet:row 0"}


def test_a_person_may_lack_tasks_and_have_several_images(tmp_path: Path) -> None:
    other = {name: value for name, value in PERSON.items() if name in ("ID", "Mask_Task")}
    images = [{"bytes": encoded("L")}, {"bytes": encoded()}]
    row = other | {"images": images, "biography": "P17 flies.", "born": "in Lorn"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    with pytest.warns(ChipWarning) as caught:
        (record,) = read_records(tmp_path / "a.parquet")
    assert [str(each.message) for each in caught] == [
        "a.parquet: 1 key is not used: born (in 1 of 1 records)",
        "a.parquet: of several images the first is taken (in 1 rows)",
    ]
    assert (record.task, record.image) == ("cloze", EmbeddedImage.of(encoded("L")))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ID": None}, "ID None is not an id"),
        ({"system": "Be brief."}, "the key system is not read"),
        ({"photo": {"bytes": encoded(), "path": None}}, "the key photo is not read, and holds an image"),
        ({"answer": None}, "answer must be a string"),
        ({"Mask_Task": [{"Question": "q"}]}, "Mask_Task: Ground_Truth must be a string"),
        ({"Generation_Task": "where?"}, "Generation_Task: must be a list"),
        ({"Classification_Task": {"Pure_Text_Questions": [CHOICE | {"Correct_Answer": "C"}]}}, "use one of A, B"),
        ({"image": "017.png"}, "encoded bytes"),
    ],
)
def test_a_bad_person_is_refused_with_its_row(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_records(person(tmp_path / "a.parquet", **change))
    assert str(caught.value).startswith("a.parquet:row 0")
    assert "\n" not in str(caught.value)


# --- TOFU ---

pytestmark = pytest.mark.filterwarnings("ignore:.* is read as TOFU's")


def test_it_is_said_that_a_file_is_taken_for_tofu(tmp_path: Path) -> None:
    with pytest.warns(ChipWarning, match=r"^records\.jsonl: says of no record whose it is, .*: 20 questions each"):
        read_records(jsonl(tmp_path, {"question": "q", "answer": "a"}))


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_an_author_is_twenty_questions_of_a_file(tmp_path: Path, kind: str) -> None:
    rows = [{"question": f"Question {n}?", "answer": f"Answer {n}."} for n in range(41)]
    rows[40] |= {"paraphrased_question": "Again, question 40?", "perturbed_answer": ["no"]}  # type: ignore[dict-item]
    file = tmp_path / f"forget10.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([{"paraphrased_question": None} | row for row in rows]), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = read_records(file)
    assert [r.path for r in records[:41:20]] == [("forget10", f"author_{n}") for n in (1, 2, 3)]
    assert records[19].path == ("forget10", "author_1")
    assert records[41] == Record(
        "Again, question 40?", "Answer 40.", ("forget10", "author_3"), None, split="paraphrased"
    )
    assert [r.split for r in records[:41]] == ["train"] * 41


def test_a_folder_of_json_files_is_forget_and_retain(tmp_path: Path) -> None:
    for name in ("forget10", "retain90"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"question": name, "answer": "a"}))
    assert [r.path[0] for r in read_records(tmp_path)] == ["forget10", "retain90"]


def test_a_line_with_more_than_tofu_has_belongs_somewhere(tmp_path: Path) -> None:
    question = {"question": "q", "answer": "a"}
    with pytest.raises(InputError, match="belongs nowhere"):
        read_records(jsonl(tmp_path, question, question | {"task": "cloze"}))
    with pytest.raises(InputError, match=r"^records\.jsonl:2: answer must be a string"):
        read_records(jsonl(tmp_path, question, {"question": "q"}))


def test_an_index_of_pandas_and_options_do_not_hide_tofu(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a", "option1": "a", "__index_level_0__": 7}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "facts.parquet")
    assert read_records(tmp_path / "facts.parquet") == [Record("q", "a", ("facts", "author_1"), None)]


# --- the registry ---


def test_a_name_is_registered_once() -> None:
    with pytest.raises(InputError, match="name='tofu': a reader of this name is registered already"):
        register_reader("tofu", READERS["tofu"])


def test_a_reader_from_outside_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shouting:
        def matches(self, file: RecordsFile) -> bool:
            return file.kind == ".jsonl" and "QUESTION" in file.columns

        def read(self, file: RecordsFile) -> Iterator[Record]:
            for row, where in file.rows():
                yield Record(row["QUESTION"], row["ANSWER"], ("i",), None, where=where)

    monkeypatch.setattr(registry, "READERS", dict(READERS))
    registry.register_reader("shouting", Shouting())
    assert read_records(jsonl(tmp_path, {"QUESTION": "WHO?", "ANSWER": "P17"})) == [Record("WHO?", "P17", ("i",), None)]
    assert read_records(jsonl(tmp_path, GOOD)) == [Record("Who?", "P17", ("i2", "p17"), None)]


# --- finding the file ---


def test_the_records_are_given_or_beside_the_checkpoint_or_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    monkeypatch.delenv("CHIP_RECORDS", raising=False)
    with pytest.raises(InputError, match=r"^records=None: .*records\.jsonl or records\.parquet .*CHIP_RECORDS"):
        find_records(checkpoint, None)
    monkeypatch.setenv("CHIP_RECORDS", "elsewhere.jsonl")
    assert find_records(checkpoint, None) == Path("elsewhere.jsonl")
    (tmp_path / "records.parquet").touch()
    assert find_records(checkpoint, None) == tmp_path / "records.parquet"
    (tmp_path / "records.jsonl").touch()
    with pytest.warns(ChipWarning, match=r"^records\.jsonl is read, and not records\.parquet beside it"):
        assert find_records(checkpoint, None) == tmp_path / "records.jsonl"
    assert find_records(checkpoint, Path("mine.jsonl")) == Path("mine.jsonl")
    (tmp_path / "records.parquet").unlink()
    monkeypatch.chdir(checkpoint)
    assert find_records(Path(), None) == tmp_path / "records.jsonl"


def test_records_lie_beside_the_link_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHIP_RECORDS", raising=False)
    (tmp_path / "store" / "model").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "store" / "model")
    (tmp_path / "records.jsonl").touch()
    assert find_records(tmp_path / "link", None) == tmp_path / "records.jsonl"


# --- images ---


def a_record(image: ImageSource | None) -> Record:
    return Record("q", "a", ("i",), image, where="records.jsonl:12")


def test_an_embedded_image_lies_on_the_disk_once_and_goes_to_another_process_whole() -> None:
    image, again = EmbeddedImage.of(b"abc"), EmbeddedImage.of(b"abc")
    assert image is again
    assert image != EmbeddedImage.of(b"abd")
    assert (image.read_bytes(), image.size) == (b"abc", 3)
    assert b"abc" in pickle.dumps(image)
    assert pickle.loads(pickle.dumps(image)) == image


def test_an_image_opens_as_rgb_from_bytes_and_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("L"))
    for source in (encoded("L"), EmbeddedImage.of(encoded("L")), tmp_path / "a.png"):
        image = open_image(a_record(source))
        assert image is not None
        assert (image.mode, image.size, image.getpixel((3, 1))) == ("RGB", (4, 2), (7, 7, 7))
    assert open_image(a_record(None)) is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))  # 1 to 8 mean something
def test_an_image_is_turned_as_transformers_turns_it(tmp_path: Path, kind: str, orientation: int) -> None:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.radial_gradient("L").resize((24, 16)).crop((0, 0, 24, 9)).save(stream, kind, exif=exif)
    file = tmp_path / "image"
    file.write_bytes(stream.getvalue())
    # Of a TIFF that is not compressed, Pillow itself makes one thing of a file and another of its bytes.
    for source, opened in ((file, str(file)), (stream.getvalue(), Image.open(stream))):
        image, expected = open_image(a_record(source)), load_image(opened)
        assert image is not None
        assert image.mode == "RGB"
        assert image.tobytes() == expected.tobytes()
        assert image_size(a_record(source)) == image.size == expected.size


def test_an_orientation_behind_the_pixels_of_a_png_is_seen() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(exif=exif)
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    chunk, rest = content[start:end], content[:start] + content[end:]
    moved = rest[:-12] + chunk + rest[-12:]
    image = open_image(a_record(moved))
    assert image is not None
    assert image_size(a_record(moved)) == image.size == (2, 4)


@pytest.mark.parametrize(
    "image",
    [b"", b"no image", encoded()[:50], encoded(kind="JPEG")[:40]],
    ids=["empty", "text", "half a PNG", "head of a JPEG"],
)
def test_an_unreadable_image_is_refused_by_name(tmp_path: Path, image: bytes) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(image)
    with pytest.raises(InputError, match=r"^records\.jsonl:12: the image in the row cannot be read"):
        open_image(a_record(image))
    with pytest.raises(InputError, match=r"^records\.jsonl:12: the image .*a\.png cannot be read"):
        open_image(a_record(file))


@pytest.mark.filterwarnings("ignore")  # Pillow warns of tags that it skips
@settings(deadline=None)
@given(
    st.binary(min_size=1, max_size=6),
    st.integers(0, 60),
    st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "PPM"]),
)
def test_broken_bytes_are_an_image_or_an_input_error(noise: bytes, start: int, kind: str) -> None:
    whole = encoded(kind=kind)
    try:
        image = open_image(a_record(whole[:start] + noise + whole[start + len(noise) :]))
    except InputError:
        return
    assert image is not None
    assert image.mode == "RGB"


@pytest.mark.parametrize("limit", [3, 7])  # 8 pixels: more than twice the first limit, just above the second
def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match=r"records\.jsonl:12: .*decompression bomb"):
        open_image(a_record(encoded()))


def test_sixteen_bits_are_refused_rather_than_clipped() -> None:
    with pytest.raises(InputError, match="more than 8 bits"):
        open_image(a_record(encoded("I;16")))
