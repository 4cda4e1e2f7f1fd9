"""General data: what is collected, what is left out, and how an edit is watched by it."""

from __future__ import annotations

import hmac
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

import chip
from chip.checkpoint.receipt import RECEIPT, read_receipt
from chip.data.hierarchy import Hierarchy
from chip.data.keep import IMAGE_QUESTION, read_keep
from chip.data.readers import read_records
from chip.data.record import FREE_TEXT, Record
from chip.data.request import ForgetRequest
from chip.errors import ChipWarning, InputError
from chip.general import collect as collecting
from chip.general import corpus
from chip.general.collect import Keep, collect, fitting, held_out_questions
from chip.general.held_out import held_out_data
from chip.general.loss import GeneralReference, losses_of
from chip.general.own_words import is_varied
from chip.general.prepare import digest_of
from chip.methods import Shielded
from chip.methods.base import Method, Search
from chip.methods.search import hold_general
from chip.model.loading import VLM, load_vlm
from chip.model.scoring import Head, head_logits
from chip.report.text.reproduce import print_reproduction
from tests.families import build, write_records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("general")
    write_records(path)
    return build(path / "ckpt", "llava")


@pytest.fixture(scope="module")
def vlm(folder: Path) -> VLM:
    return load_vlm(folder, "cpu")


def _request(folder: Path, forget: str = "patient_1") -> ForgetRequest:
    return ForgetRequest.of(Hierarchy(read_records(folder.parent / "records.jsonl")), [forget])


def _texts(texts: Sequence[str]) -> list[Record]:
    return [Record(text, "", ("general",), None, FREE_TEXT) for text in texts]


def test_lines_may_hold_a_conversation_or_an_image_and_folders_images(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "scan.png")
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A scan."},
        {"role": "user", "content": "Sure?"},
    ]
    lines = [{"messages": turns, "image": "scan.png"}, {"image": "scan.png"}, {"image": "scan.png", "text": "Black."}]
    file = tmp_path / "keep.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.warns(ChipWarning, match="2 later and system turns of conversations are left out"):
        talk, bare, caption = read_keep([file])
    assert (talk.question, talk.answer, talk.image) == ("What is it?", "A scan.", tmp_path / "scan.png")
    assert (bare.question, bare.answer) == (IMAGE_QUESTION, "")
    assert caption.answer == "Black."
    with pytest.warns(ChipWarning, match="1 of 2 files are no images"):
        (image,) = read_keep([tmp_path])
    assert image.image == tmp_path / "scan.png"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"image": "none.png"}, "no image 'none.png'; give its path"),
        ({"messages": [{"role": "assistant", "content": "Hello."}]}, "no turn of 'user' with one of 'assistant'"),
    ],
)
def test_lines_that_hold_nothing_to_keep_are_refused(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    file = tmp_path / "keep.jsonl"
    file.write_text(json.dumps(line))
    with pytest.raises(InputError, match=f"keep.jsonl:1: {message}"):
        read_keep([file])


@pytest.mark.parametrize(
    ("keep", "argument"),
    [
        (["none", "auto"], "keep"),
        (Keep(tokens=0), "keep_tokens"),
        (Keep(("none",), tokens=5), "keep_tokens"),
        (Keep(("a.txt",), model=Path("base")), "keep_model"),
    ],
)
def test_what_contradicts_itself_is_refused(keep: Keep | list[str], argument: str) -> None:
    with pytest.raises(InputError) as error:
        Keep.of(keep)
    assert error.value.argument == argument


def test_a_model_without_language_has_nothing_to_keep(vlm: VLM, folder: Path) -> None:
    data = collect(vlm, _request(folder), Keep(), [], tokens=64)
    assert data is not None
    assert data.protected == data.held_out == ()
    assert "knows its records only" in data.note


def test_long_texts_are_cut_to_the_context_and_nothing_is_lost(vlm: VLM) -> None:
    text = " ".join(corpus.prose()[:8])
    pieces = fitting(vlm, _texts([text]))
    assert len(pieces) > 1
    assert " ".join(piece.question for piece in pieces) == " ".join(text.split())
    assert max(len(prompt.tokens) for prompt in vlm.prompts.read(pieces)) <= vlm.max_tokens


def test_divergence_is_that_of_the_whole_model(folder: Path) -> None:
    vlm, texts = load_vlm(folder, "cpu"), _texts(["one two three four five", "six seven eight"])
    reference = GeneralReference(vlm, texts, ())
    assert reference.compare(vlm).kl == pytest.approx(0, abs=1e-9)
    before = _logits(vlm, texts)
    with torch.no_grad():
        vlm.layers[0].mlp.down_proj.weight.mul_(3)
    after = _logits(vlm, texts)
    expected = (before.exp() * (before - after)).sum(-1).mean()
    loss = reference.compare(vlm)
    assert loss.kl == pytest.approx(float(expected), rel=1e-4)
    assert loss.kl > 1e-6
    assert loss.tokens == len(before)


def test_a_model_with_another_head_is_compared_with_the_original_ones(folder: Path) -> None:
    """As one that was trained anew; the original need not be there any more."""
    vlm, texts = load_vlm(folder, "cpu"), _texts(["one two three four five", "six seven eight"])
    reference = GeneralReference(vlm, texts, held_out_questions(), head=Head.of(vlm))
    before = _logits(vlm, texts)
    with torch.no_grad():
        vlm.layers[0].mlp.down_proj.weight.mul_(3)
        vlm.model.get_output_embeddings().weight.mul_(1.5)
    after = _logits(vlm, texts)
    rows = reference.compare_texts(vlm)
    kl = (before.exp() * (before - after)).sum(-1)
    lengths = [len(prompt.tokens) - 1 for prompt in vlm.prompts.read(texts)]
    assert rows[:, 3].tolist() == lengths
    expected = [float(part.sum()) for part in (kl[: lengths[0]], kl[lengths[0] :])]
    assert rows[:, 0].tolist() == pytest.approx(expected, rel=1e-4)
    assert rows[:, 1].tolist() == pytest.approx(losses_of(vlm, texts)[:, 0].tolist(), rel=1e-6)
    assert len(reference.answers) == len(reference.answer(vlm)) == len(held_out_questions())


def test_what_is_measured_on_is_never_protected(vlm: VLM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "prose", lambda: [f"Alice saw {n} cats, and more behind them." for n in range(30)])
    monkeypatch.setattr(collecting, "prose_nats", lambda _: (1.0, 5.0))
    monkeypatch.setattr(
        collecting, "with_own_answers", lambda _, records: [replace(r, answer="Well.") for r in records]
    )
    request = _request(folder)
    measured = held_out_data(vlm, request, True, [], "general")
    assert (len(measured.held_out), measured.note) == (collecting.RESERVED, "")
    for seed in (0, 1):
        data = collect(vlm, request, Keep(), [], tokens=10**6, texts=[], seed=seed)
        assert data is not None
        kept = {record.question for record in (*data.protected, *data.held_out)}
        assert len([question for question in kept if question.startswith("Alice")]) == 30 - collecting.RESERVED
        assert not kept & {record.question for record in (*measured.held_out, *measured.questions)}
    monkeypatch.setattr(corpus, "prose", lambda: [f"All of {request.partition.targets[0].id}."] * 30)
    with pytest.warns(ChipWarning, match="16 of 16 general texts hold an answer, an id or a name of the target"):
        assert held_out_data(vlm, request, True, [], "general").questions == ()


def test_a_digest_tells_general_data_apart(tmp_path: Path) -> None:
    text, image = _texts(["The sea."]), tmp_path / "a.png"
    image.write_bytes(b"one")
    pictured = [replace(text[0], image=image)]
    digest = digest_of(pictured)
    assert digest_of([]) is None
    assert digest == digest_of([replace(text[0], image=b"one")])  # wherever it lies
    assert len({digest, digest_of(text), digest_of(_texts(["The lake."])), digest_of(text * 2)}) == 4
    image.write_bytes(b"two")
    assert digest != digest_of(pictured)
    with pytest.raises(InputError, match=r"b\.png: No such file or directory; give an image"):
        digest_of([replace(text[0], image=tmp_path / "b.png")])


def _logits(vlm: VLM, texts: Sequence[Record]) -> torch.Tensor:
    """(n, vocabulary) log-probabilities of each text's later tokens, one text at a time."""
    rows = []
    for text in texts:
        (batch,) = vlm.batches([text]).made()
        rows.append(head_logits(vlm, vlm.hidden_states(batch)[0, :-1]).log_softmax(-1))
    return torch.cat(rows).detach()


def test_what_a_model_says_is_protected_unless_it_tells_of_a_record(
    vlm: VLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = _request(folder)
    mine = next(request.hierarchy.records[i] for i in request.partition.forget)
    monkeypatch.setattr(collecting, "prose_nats", lambda _: (1.0, 5.0))
    monkeypatch.setattr(
        collecting, "with_own_answers", lambda _, records: [replace(r, answer=mine.answer) for r in records]
    )
    texts = _texts([f"All about {request.partition.targets[0].id}.", "All about the sea."])
    data = collect(vlm, request, Keep(), [], tokens=200, texts=texts)
    assert data is not None
    everything = [*data.protected, *data.held_out]
    assert not any(record.answer for record in everything)  # the answers were a record's
    assert texts[1] in everything
    assert texts[0] not in everything
    assert "1 that told of the target were left out" in data.note
    assert not set(data.protected) & set(data.held_out)


def test_the_report_says_what_general_data_lost_and_the_output_does_not_tell_of_it(
    folder: Path, tmp_path: Path
) -> None:
    keep = tmp_path / "keep.txt"
    keep.write_text("\n\n".join(f"The lighthouse keeper counted {n} ships that evening." * 25 for n in range(16)))
    report = chip.edit(
        folder, ["patient_1"], keep=[keep], out=tmp_path / "out", method=Shielded(retain_weight=8.0), force=True
    )
    assert report.general is not None
    assert report.general.kl >= 0
    assert report.general.nats_before > 0
    assert report.outcome.general_kl == report.general.kl
    assert report.general_note == "64 given"  # in pieces that the model takes
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or b"lighthouse" not in file.read_bytes()
    receipt, digest = read_receipt(tmp_path / "out"), report.general_digest
    assert digest is not None
    assert receipt.general == hmac.new(bytes.fromhex(receipt.source_digest), digest, "sha256").hexdigest()
    assert digest.hex() not in (tmp_path / "out" / RECEIPT).read_text()


@pytest.mark.slow
def test_an_edit_that_is_made_again_tells_whether_it_protects_the_same(folder: Path, tmp_path: Path) -> None:
    keep, other = tmp_path / "keep.txt", tmp_path / "other.txt"
    keep.write_text("\n\n".join(f"The lighthouse keeper counted {n} ships." * 25 for n in range(12)))
    other.write_text(keep.read_text().replace("ships", "boats"))
    given = Shielded(retain_weight=8.0)
    chip.edit(folder, ["patient_1"], keep=[keep], out=tmp_path / "out", method=given, force=True, batch_size=8)
    for again, said in ((keep, "the same"), (other, "not the same, and other weights follow from that")):
        result = chip.reproduce(tmp_path / "out", folder, ["patient_1"], keep=[again])
        assert result.same_general_data == result.equal == (again == keep)
        shown = io.StringIO()
        print_reproduction(result, Console(file=shown, width=120))
        assert f"general data that was protected: {said}\n" in shown.getvalue()


def test_varied_text_does_not_go_round_in_circles() -> None:
    assert is_varied(corpus.prose()[0])
    assert not is_varied("and so on " * 20)
    assert not is_varied("too short")


def test_the_hold_is_tightened_until_the_model_moves_little() -> None:
    tried: list[float] = []

    def divergence(method: Method) -> float:
        assert isinstance(method, Shielded)
        tried.append(method.max_general_change or 0.02)
        return 100 * tried[-1] ** 2  # 0.04 at first, where 0.01 is allowed

    method = hold_general(Shielded(), Search("retain_weight", (1.0, 2.0), 0.02, 0.01), divergence)
    assert isinstance(method, Shielded)
    assert method.max_general_change == pytest.approx(0.009)
    assert tried == pytest.approx([0.02, 0.009])
