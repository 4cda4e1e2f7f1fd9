"""The target's name is found wherever it stands and however it is written, and nothing else is taken for it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from chip.checkpoint import texts
from chip.checkpoint.texts import lists_words, texts_of
from chip.data.hierarchy import Hierarchy
from chip.data.names import TargetNames
from chip.data.record import Record


def names_of(target: str, *paths: str) -> TargetNames:
    """Of one node of the hierarchy that these paths span."""
    hierarchy = Hierarchy([Record("Which?", "cyst", tuple(path.split("/")), None) for path in (target, *paths)])
    return TargetNames.of(hierarchy, [hierarchy.find(target)])


PATHS = (
    *("clinic_3/patient_17/study_4/findings", "clinic_3/patient_17/study_5/impression", "clinic_3/patient_18/study_6"),
    *("clinic_3/patient_170/chest/findings", "clinic_4/patient_19/chest"),
)


@pytest.mark.parametrize(
    "text",
    [
        *("patient_17", "Patient 17", "PATIENT-17", "patient17", "Patient\n17", "(patient__17)", "patient\u00a017's"),
        *("patient = '17'", '<run patient="17">', "{'patient' : '17'}", "patient: \u201c17\u201d"),
        *("Patient #17", "patient no. 17", "patient: 17", '{"patient": "17"}', "patient_\u0661\u0667", "Study Nr. 4"),
        *(
            "patient\u201117",
            "pat\u00adient_17",
            "ｐａｔｉｅｎｔ＿１７",
            "\u200bpatient_\u200b17",
            "scans/patient_17.png",
            "p\u0430tient_17",
            "P\u0410TIENT_17",
            "pati\u0435nt 17",
        ),
        *("study_4", "STUDY 5", "clinic_3/patient_17/study_4"),
        *("Patient17Study4", "runPatient17", "runs/Patient17Run3"),
    ],
)
def test_a_name_is_found_however_it_is_written(text: str) -> None:
    names = names_of("clinic_3/patient_17", *PATHS)
    assert names.find(text)
    assert names.find(f"Trained on {text}, and others.")
    assert names.find_in_label(text)


@pytest.mark.parametrize(
    "text",
    [
        *("patient_170", "patient_1", "patient 7", "inpatient_17", "patient_17a", "patient.17", "17 patients", "17"),
        *("Patient170Study6", "runInpatient17", "Patient17A"),
        *(
            "findings",
            "study_6",
            "study",
            "a study of the findings and the impression",
            "clinic_3",
            "clinic_3/patient",
            "study_\u0430",
        ),
    ],
)
def test_what_is_like_a_name_is_none(text: str) -> None:
    names = names_of("clinic_3/patient_17", *PATHS)
    assert names.find(f"Trained on {text}, and others.") is None
    assert names.find_in_label(text) is None


def test_a_section_is_named_with_its_study_and_a_shared_word_with_its_patient() -> None:
    section = names_of("clinic_3/patient_17/study_4/findings", *PATHS)
    for text in ("findings", "study_4", "study_4 and its findings", "study_5/findings"):
        assert section.find(text) is None
    assert section.find("# Study 4, Findings") is None
    assert section.find("study-4-findings.md") == "study_4/findings"
    study = names_of("clinic_4/patient_19/chest", *PATHS)
    assert study.find("an X-ray of the chest") is None
    assert study.find("patient_19_chest.png") == "patient_19/chest"
    assert study.find_in_label("the chest") == "chest"  # what is about the request means it
    below = names_of("clinic_3/patient_170", *PATHS)
    assert below.find("an X-ray of the chest") is None
    assert names_of("clinic_3/patient_170", "clinic_4/x").find("chest") is None  # no such study
    assert names_of("clinic_4", *PATHS).find("patient_19") == "patient_19"


def test_the_same_id_elsewhere_is_a_name_where_it_has_a_number() -> None:
    names = names_of("clinic_3/patient_1", "clinic_4/patient_1/study_1", "clinic_3/patient_1/study_1")
    assert names.find("patient 1") == "patient_1"
    assert names.find("study 1") is None  # many have one
    assert names.find("patient_1/study_1") == "patient_1"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        *(("patient 17", True), ("Patient #17", True), ('{"patient": 17}', True), ('{"patient":"17"}', True)),
        *(("patient: 17", True), ("patient/17", True), ("clinic_3/17", True), ("patient-17.png", True)),
        *(("17", False), ("layers 17-20", False), ("study 17", False), ('"hidden_size": 17', False)),
    ],
)
def test_a_small_number_is_a_name_behind_its_level_or_the_id_above(text: str, found: bool) -> None:
    names = names_of("clinic_3/17", "clinic_3/18")
    assert (names.find(text) is not None) == found
    assert names.find_in_label("request 17") == "17"
    assert names.find_in_label("request 170") is None


def test_a_long_number_is_a_name() -> None:
    names = names_of("clinic_3/10032725", "clinic_3/18")
    assert names.find("p10, 10032725 and more") == "10032725"
    assert names.find("100327250") is None
    assert names.find('{"10032725": 0}', vocabulary=True) is None


def test_scripts_without_spaces_between_words() -> None:
    names = names_of("医院/王伟", "医院/李娜", "医院/患者_1")
    assert names.find("在患者王伟的影像上训练") == "王伟"
    assert names.find("在患者李娜的影像上训练") is None
    numbered = names_of("医院/患者_1", "医院/李娜")
    assert numbered.find("患者 1的影像") == "患者_1"
    assert numbered.find("患者 10的影像") is None


def test_a_vocabulary_is_nobodys() -> None:
    names = names_of("clinic/smith", "clinic/jones")
    assert names.find("smith") == "smith"
    assert names.find('{"smith": 5}', vocabulary=True) is None
    person = names_of("clinic/Jaime Vasquez", "clinic/jones")
    assert person.find("jaime\nvasquez", vocabulary=True) is None  # two entries, one below the other
    assert person.find("jaime\nvasquez") == "Jaime Vasquez"
    assert person.find('"<|jaime_vasquez|>": 7', vocabulary=True) == "Jaime Vasquez"


def test_the_names_of_ten_thousand_nodes_are_looked_for_at_once() -> None:
    paths = [f"clinic/{10_000_000 + number}/{50_000_000 + number}/findings" for number in range(10_000)]
    hierarchy = Hierarchy([Record("Which?", "cyst", tuple(path.split("/")), None) for path in (*paths, "other/x")])
    names = TargetNames.of(hierarchy, [hierarchy.find("clinic")])
    text = " ".join(f"word_{number} {number}" for number in range(50_000))
    assert names.find(text) is None
    assert names.find(f"{text} 50009999") == "50009999"


def _in_json(text: str) -> bytes:
    return json.dumps({"_name_or_path": f"/data/{text}/ckpt"}).encode()


FILES: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "prose": ("README.md", str.encode),
    "settings": ("config.json", _in_json),
    "JSON in JSON": ("args.json", lambda text: json.dumps({"run": json.dumps({"of": f"\n{text}"})}).encode()),
    "YAML": ("train.yaml", lambda text: f"run: {text}\n".encode()),
    "a page": (
        "report.html",
        lambda text: f"<b>{text.replace('_', '&nbsp;')}</b>".encode("ascii", "xmlcharrefreplace"),
    ),
    "a table of a page": ("report.html", lambda text: f"<td>{text.replace('_', '</td><td>')}</td>".encode()),
    "a tag within a word": ("report.html", lambda text: f"<b>{text[0]}</b>{text[1:]}".encode()),
    "a line that goes on": ("train.yaml", lambda text: f'run: "{text[:3]}\\\n    {text[3:]}"'.encode()),
    "an address within one": ("links.txt", lambda text: f"?to={quote(quote(text.replace('_', ' ')))}".encode()),
    "Markdown": ("README.md", lambda text: f"**{text[:3]}**{text[3:]}".replace("_", "\\_").encode()),
    "an address": ("links.txt", lambda text: f"https://host/{quote(text.replace('_', ' '))}/x".encode()),
    "UTF-16": ("notes.txt", lambda text: text.encode("utf-16")),
    "UTF-16, big end first": ("notes.txt", lambda text: b"\xfe\xff" + text.encode("utf-16-be")),
    "UTF-16 without a mark": ("notes.txt", lambda text: text.encode("utf-16-be")),
    "UTF-32": ("notes.txt", lambda text: text.encode("utf-32")),
    "UTF-8 with a mark": ("notes.txt", lambda text: text.encode("utf-8-sig")),
    "Latin-1": ("notes", lambda text: f"Für {text}".encode("latin-1")),
    "no suffix": ("NOTES", str.encode),
    "what is no text": ("state.bin", lambda text: bytes(range(256)) + b"\0" + text.encode("latin-1") + bytes(99)),
    "across two blocks": ("log.txt", lambda text: b"a long line " * 341 + text.encode()),
    "a header of weights": ("model.safetensors", lambda text: struct.pack("<Q", 99) + _in_json(text).ljust(99)),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_name_is_read_in_every_kind_of_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(texts, "_BLOCK", 1 << 12)
    name, write = FILES[kind]
    file, names = tmp_path / name, names_of("klinik_ö", "klinik_ö2")
    for id, expected in (("klinik_ö", "klinik_ö"), ("klinik_ö2", None)):
        file.write_bytes(write(id))
        found = {names.find(text, vocabulary=lists_words(file)) for text in texts_of(file)} - {None}
        assert found == ({expected} - {None})
