"""Several images, earlier turns and a system prompt: the model sees what its chat template writes in training."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import chip
from chip.data.hierarchy import Hierarchy
from chip.data.record import Record, Turn, open_images, without_images
from chip.data.request import ForgetRequest
from chip.errors import ChipWarning, InputError
from chip.methods.gated_statistics import own_images
from chip.model.batching.batch_size import BatchSize
from chip.model.batching.batches import Batches
from chip.model.chat import Prompts
from chip.model.generation import questions
from chip.model.loading import VLM, load_vlm
from chip.model.scoring import score
from chip.model.tokens import TokenRole
from chip.request_checks import own_system_prompt
from tests.families import FAMILIES, GIVEN, UNTRAINED, build, lacking, write_records

QUICK = ("llava", "qwen2_5_vl")
WITHOUT_FORMAT = ("paligemma",)
P, I, Q, A, _ = TokenRole  # noqa: E741


def png(width: int, height: int, shift: int) -> bytes:
    stream = io.BytesIO()
    picture = Image.linear_gradient("L").resize((width, height)).point(lambda value: (value + shift) % 256)
    picture.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


FIRST, SECOND = png(28, 28, 0), png(56, 28, 90)
SYSTEM = Turn("system", "name the patient")
EARLIER = (Turn("user", "who is seen"), Turn("assistant", "Abel"))
RECORDS = {
    "two images": Record("what is left", "lobe", ("i",), FIRST, more_images=(FIRST,), where="r:1"),
    "images in the words": Record(
        "is <image> left of <image>", "lobe", ("i",), FIRST, more_images=(SECOND,), where="r:2"
    ),
    "turns": Record("what is left", "lobe", ("i",), FIRST, history=(SYSTEM, *EARLIER), where="r:3"),
    "an image later": Record("what is <image>", "lobe", ("i",), FIRST, history=EARLIER, where="r:4"),
    "text": Record("what is left", "lobe", ("i",), None, history=(SYSTEM, *EARLIER), where="r:5"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VLM]:
    """Loaded when they are asked for."""
    folder = tmp_path_factory.mktemp("conversations")

    class Loaded(dict[str, VLM]):
        def __missing__(self, family: str) -> VLM:
            self[family] = load_vlm(build(folder / family, family), "cpu")
            return self[family]

    return Loaded()


def families(names: Sequence[str]) -> Iterator[Any]:
    for name in names:
        marks = [] if name in QUICK else [pytest.mark.slow]
        yield pytest.param(name, marks=[*marks, *([pytest.mark.skip(why)] if (why := lacking(name)) else [])])


def by_transformers(vlm: VLM, record: Record, answered: bool) -> dict[str, Tensor]:
    """The conversation as transformers itself makes tensors of it."""
    images = iter(open_images(record))

    def parts(text: str, begins: bool) -> list[dict[str, Any]]:
        if "<image>" not in text:
            pictures = [{"type": "image", "image": next(images)} for _ in record.images] if begins else []
            return [*pictures, {"type": "text", "text": text}]
        found: list[dict[str, Any]] = []
        for number, piece in enumerate(text.split("<image>")):
            found += [{"type": "image", "image": next(images)}] if number else []
            found += [{"type": "text", "text": piece}] if piece else []
        return found

    turns = [*record.history, Turn("user", record.question), *([Turn("assistant", record.answer)] if answered else [])]
    bare = not any("<image>" in turn.text for turn in turns)
    first = next(number for number, turn in enumerate(turns) if turn.role == "user")
    messages = [{"role": t.role, "content": parts(t.text, bare and n == first)} for n, t in enumerate(turns)]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": not answered}
    return dict(vlm.processor.apply_chat_template(messages, **options))


@pytest.mark.parametrize("family", list(families([name for name in FAMILIES if name not in WITHOUT_FORMAT])))
@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_what_the_processors_own_template_makes_of_it(
    models: dict[str, VLM], family: str, name: str
) -> None:
    vlm, record = models[family], RECORDS[name]
    if family == "smolvlm" and find_spec("torchvision") is None:
        pytest.skip("the processor's own way to apply its template wants torchvision")
    inputs, expected = vlm.prompts.inputs([record]), by_transformers(vlm, record, answered=True)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(inputs["input_ids"], expected["input_ids"][:, :length])
    rest = vlm.processor.tokenizer.decode(expected["input_ids"][0, length:])
    assert not rest.strip()  # behind the end of the turn a template may break the line
    for key in inputs.keys() - {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}:
        assert torch.equal(inputs[key], expected[key])
    asked = by_transformers(vlm, record, answered=False)["input_ids"]
    assert torch.equal(
        questions(vlm, [record])["input_ids"], asked[:, : questions(vlm, [record])["input_ids"].shape[1]]
    )


@pytest.mark.parametrize("family", list(families([name for name in FAMILIES if name not in WITHOUT_FORMAT])))
def test_each_image_and_each_role_is_told_apart(models: dict[str, VLM], family: str) -> None:
    vlm = models[family]
    for record in RECORDS.values():
        (batch,) = Batches(vlm, [record], [0], BatchSize(1)).made()
        numbers, vision = batch.images[0], batch.vision[0]
        counts = [int((vision & (numbers == number)).sum()) for number in range(len(record.images))]
        assert sum(counts) == int(vision.sum())
        assert all(counts)
        for number, count in enumerate(counts):
            assert batch.ids[0, vision & (numbers == number)].tolist() == list(range(count))
        decode = vlm.processor.tokenizer.decode
        before = decode(batch.ids[0, batch.roles[0] == P])
        said = decode(batch.ids[0, batch.roles[0] == Q])
        assert (SYSTEM.text in before) == (SYSTEM in record.history)
        assert all(turn.text not in before for turn in record.history if turn != SYSTEM)
        assert ("Abel" in said) == (EARLIER[1] in record.history)
        assert decode(batch.ids[0, batch.answer[0]]).strip().startswith("lobe")


def test_turns_that_share_their_images_are_scored_as_each_alone(models: dict[str, VLM]) -> None:
    vlm = models["qwen2_5_vl"]
    one = replace(RECORDS["turns"], more_images=(SECOND,))
    records = [one, replace(one, question="where is the rib", answer="right apex"), replace(one, history=(SYSTEM,))]
    scores = [
        score(vlm, Batches(vlm, records, range(3), BatchSize(3), together=together), 3, lambda _: None)
        for together in (True, False)
    ]
    torch.testing.assert_close(scores[0].answer_probability, scores[1].answer_probability)
    inputs = vlm.prompts.inputs(records[1:2])
    with torch.no_grad():
        logits = vlm.model(**inputs).logits[0].log_softmax(-1)
    length = vlm.prompts.read(records[1:2])[0].answer
    own = logits[-length - 1 : -1].gather(1, inputs["input_ids"][0, -length:, None]).mean().exp()
    torch.testing.assert_close(scores[1].answer_probability[1].float(), own)


def test_a_model_without_a_chat_format_refuses_what_it_cannot_write(models: dict[str, VLM]) -> None:
    prompts = models["paligemma"].prompts
    for name, says in (("turns", "earlier turns or a system prompt"), ("images in the words", "within the question")):
        with pytest.raises(InputError, match=rf"^r:\d: the record has .*{says}, and the model has no chat format"):
            prompts.read([RECORDS[name]])
    (batch,) = Batches(models["paligemma"], [RECORDS["two images"]], [0], BatchSize(1)).made()
    assert set(batch.images[batch.vision].tolist()) == {0, 1}


def test_an_earlier_turn_that_the_template_drops_is_missed(models: dict[str, VLM]) -> None:
    processor = models["llava"].processor
    given, changed = processor.chat_template, "{% if loop.last or m.role == 'user' %}{{ c.text }}{% endif %}"
    processor.chat_template = (
        "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'image' %}<image>"
        f"{{% else %}}{changed}{{% endif %}}{{% endfor %}}\n{{% endfor %}}"
    ).replace("loop.last", "m == messages[-1]")
    try:
        with pytest.raises(InputError, match=r"^r:3: the earlier turn is not as it is in the model's chat format"):
            Prompts(processor).read([replace(RECORDS["turns"], history=EARLIER)])
    finally:
        processor.chat_template = given


def test_as_many_placeholders_as_images_or_none(models: dict[str, VLM]) -> None:
    record = replace(RECORDS["images in the words"], more_images=())
    with pytest.raises(InputError, match="r:2: <image> stands there 2 times, for 1 images"):
        models["llava"].prompts.read([record])
    bare = without_images(RECORDS["images in the words"])
    assert (bare.question, bare.images) == ("is left of", ())
    assert models["llava"].prompts.read([bare])[0].images == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", list(families([name for name in FAMILIES if name not in WITHOUT_FORMAT])))
def test_records_of_several_images_and_turns_are_edited(tmp_path: Path, family: str) -> None:
    """Before an edit its pass in stages is compared with the model's own, at a record with images."""
    write_records(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    pictures = [row["image"] for row in rows if "image" in row]
    for row in rows:
        if "image" in row:  # beside a picture of its own, one that everybody has
            row["images"] = [row.pop("image"), pictures[-1]]
            row |= {
                "system": SYSTEM.text,
                "history": [["who made <image>", "Cruz"]],
                "question": f"{row['question']} <image>",
            }
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {"method": GIVEN["shielded"], "keep": ["none"], "device": "cpu", **UNTRAINED}
    checkpoint = build(tmp_path / "ckpt", family)
    with warnings.catch_warnings(action="ignore", category=ChipWarning):
        if family == "llava_next":  # its connector sees tiles, as many as an image has, and not which image they are of
            with pytest.raises(InputError, match=r"cannot be told apart .*; scale the images of a record to one size"):
                chip.edit(checkpoint, ["patient_1"], **options)
            return
        report = chip.edit(checkpoint, ["patient_1"], **options)
    assert report.relative_change
    assert all(0 < change < 10 for change in report.relative_change.values())


def test_gates_are_refused_for_records_of_several_images() -> None:
    others = [
        Record("what", "rib", ("i", "b"), SECOND),
        Record("what", "lobe", ("i", "a"), FIRST, more_images=(SECOND,)),
    ]
    request = ForgetRequest.of(Hierarchy(others), ["a"])
    with pytest.raises(InputError, match=r"method='gated': takes one image a record, and .* has 2"):
        own_images(request, request.partition.forget)
    assert request.partition.on_shared_images == (1,)  # the second of its images is somebody else's too


def test_a_system_prompt_that_the_target_alone_has_is_named() -> None:
    both = [Record("what", "rib", ("i", patient), None, history=(SYSTEM,), where=patient) for patient in ("a", "b")]
    assert own_system_prompt(ForgetRequest.of(Hierarchy(both), ["a"])) is None
    alone = [both[0], replace(both[1], history=())]
    note = own_system_prompt(ForgetRequest.of(Hierarchy(alone), ["a"]))
    assert note == "a: only the target has this system prompt; what it says stays in the model"
    assert own_system_prompt(ForgetRequest.of(Hierarchy(alone), ["b"])) is None
