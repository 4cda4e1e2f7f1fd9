"""General text: how it is read, what of it is left out, and that an edit leaves the model alone on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import chip
from chip.data.hierarchy import Hierarchy
from chip.data.keep import LONGEST, cut_prose, read_keep, some_of, text_record, without_target
from chip.data.record import FREE_TEXT, Record
from chip.data.request import ForgetRequest
from chip.errors import ChipWarning, InputError
from chip.methods import Chip, Shielded
from chip.model.loading import load_vlm
from tests.families import build, write_records

PROSE = "\n\n".join(f"The river number {n} is wide, and its banks are green in spring." * 5 for n in range(12))


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_plain_text_is_cut_between_paragraphs_and_json_lines_are_pieces(tmp_path: Path) -> None:
    plain = _write(tmp_path / "prose.txt", PROSE)
    two = (json.dumps({"text": "One."}), "", json.dumps({"text": "Two.", "n": 1}))
    lines = _write(tmp_path / "texts.jsonl", "\n".join(two))
    records = read_keep([plain, lines])
    assert {record.task for record in records} == {FREE_TEXT}
    assert "\n\n".join(record.question for record in records if record.where == "prose.txt") == PROSE
    assert [record.question for record in records[-2:]] == ["One.", "Two."]
    assert [record.where for record in records[-2:]] == ["texts.jsonl:1", "texts.jsonl:3"]
    assert max(len(r.question) for r in read_keep([_write(tmp_path / "long", "word " * 5000)])) <= LONGEST


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "  \n\n ", "holds no text and no images"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.txt", "A \0 text", "holds bytes that no text has"),
        ("a.json", '[{"text": "A text."}]', "would be read as prose; give JSON lines"),
        ("a.jsonl", "{", "a.jsonl:1: no JSON"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1: no JSON"),
        ("a.jsonl", '{"text": 3}', "a.jsonl:1: no text under 'text'"),
        ("a.jsonl", '["text"]', "a.jsonl:1: neither 'text' nor 'messages' nor 'image'"),
    ],
)
def test_files_that_hold_no_text_are_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_keep([_write(tmp_path / name, content)])
    with pytest.raises(InputError, match=r"keep='.*missing'"):
        read_keep([tmp_path / "missing"])


def test_texts_that_tell_of_the_target_are_left_out_and_said() -> None:
    answers = {("i", "anna"): ["Rare Syndrome", "yes"], ("i", "bert"): ["common cold", "yes"]}
    records = [Record(f"{n}?", answer, path, None) for path, said in answers.items() for n, answer in enumerate(said)]
    request = ForgetRequest.of(Hierarchy(records), ["anna"])
    given = ("It was a rare  syndrome, they said.", "Rarely a syndrome, yes.", "Dr. Anna spoke.", "Joanna spoke.")
    texts = [Record(text, "", ("general",), None, FREE_TEXT) for text in given]
    with pytest.warns(ChipWarning, match="2 of 4 general texts hold an answer, an id or a name of the target"):
        kept = without_target(texts, request)
    assert [text.question for text in kept] == ["Rarely a syndrome, yes.", "Joanna spoke."]
    with pytest.raises(InputError, match="every text"):
        without_target(texts[:1], request)


def test_a_picture_of_the_target_is_left_out_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keep").mkdir()
    own, others = _write(tmp_path / "own.png", b"one picture"), _write(tmp_path / "other.png", b"another one")
    for name, content in (("a.png", b"one picture"), ("b.png", b"another one"), ("c.png", b"A picture.")):
        _write(tmp_path / "keep" / name, content)
    records = [
        Record("who", n, ("i", n), image) for n, image in (("anna", own), ("bert", others), ("carl", b"A picture."))
    ]
    given = read_keep([Path("keep")])
    for forget, left in ((["anna"], ["b.png", "c.png"]), (["carl"], ["a.png", "b.png"])):
        with pytest.warns(ChipWarning, match="1 of 3 general texts"):
            kept = without_target(given, ForgetRequest.of(Hierarchy(records), forget))
        assert [record.where for record in kept] == left


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path)
    return build(tmp_path / "ckpt", "llava")


def test_of_far_too_much_some_is_taken() -> None:
    given = [text_record(f"{number:04} {'word ' * 19}", "a.txt") for number in range(1000)]  # 100 characters each
    assert some_of(given, 100_000, seed=0) == given
    with pytest.warns(ChipWarning, match="50 of 1,000 pieces to keep are taken"):
        some = some_of(given, 5000, seed=0)
    assert len(some) == 50
    assert some == sorted(some, key=lambda record: record.question)


def test_prose_is_cut_at_blank_lines_in_time_that_grows_with_it() -> None:
    paragraph = "one\n two \n\n \t\n" * 2  # 8 characters each, and a blank line between them
    pieces = cut_prose(f"\n\n{paragraph * 100}")
    assert pieces[0].startswith("one\n two\n\none\n two")
    assert [len(piece) >= 1000 for piece in pieces] == [True, False]
    assert len(cut_prose("a\n\n" * 300_000)) == 600  # a thousand make two; quadratic, it takes a minute


def test_an_edit_moves_the_model_less_on_what_it_is_to_keep(folder: Path, tmp_path: Path) -> None:
    short = (json.dumps({"text": text[:200]}) for text in PROSE.split("\n\n"))
    prose = _write(tmp_path / "prose.jsonl", "\n".join(short))
    texts = read_keep([prose])
    moved = {}
    for name, keep in (("free", ()), ("kept", (prose,))):
        method = Shielded(retain_weight=1.0, max_general_change=1e-3 if keep else None)
        report = chip.edit(
            folder, ["patient_1"], keep=keep, out=tmp_path / name, method=method, device="cpu", force=True
        )
        states = [_states(path, texts) for path in (folder, tmp_path / name)]
        moved[name] = float(torch.linalg.norm(states[1] - states[0]) / torch.linalg.norm(states[0]))
        assert report.relative_change
    assert 0 < moved["kept"] < 0.2 * moved["free"]


def _states(folder: Path, texts: list[Record]) -> torch.Tensor:
    vlm = load_vlm(folder, "cpu")
    return torch.cat([vlm.hidden_states(batch)[batch.real] for batch in vlm.batches(texts).made()])


def test_a_method_that_has_no_use_for_text_refuses_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="method chip has no use for general data"):
        chip.edit(folder, ["patient_1"], keep=[_write(tmp_path / "a.txt", PROSE)], method=Chip(), device="cpu")
