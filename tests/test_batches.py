"""What a batch says of its tokens: their roles, whose they are, and what they may see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from chip.data.hierarchy import Hierarchy
from chip.data.record import Record, open_image
from chip.distributed import DistributedContext
from chip.errors import InputError
from chip.methods import Chip
from chip.methods.apply import default_modules
from chip.model.batching.assembly import token_ids, token_roles
from chip.model.batching.batch import Batch
from chip.model.batching.batch_size import BatchSize
from chip.model.batching.batches import Batches
from chip.model.batching.packing import PackedSequence
from chip.model.chat import Prompts
from chip.model.forward.observer import StageObserver, connector_tokens
from chip.model.forward.runner import ForwardRunner
from chip.model.forward.start import Pixels
from chip.model.loading import VLM
from chip.model.scoring import answer_logits
from chip.model.stages import at_once
from chip.model.tokens import SegmentRecords, TokenRole, Tokens

P, I, Q, A, _ = TokenRole  # noqa: E741


class Shown:
    """Statistics that keep the tokens they are shown."""

    def update(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def merge(self, distributed: DistributedContext) -> None:
        assert distributed.world_size == 1


def shown(vlm: VLM, records: list[Record], batch: Batch) -> dict[str, Tokens]:
    """Target module -> its tokens of a batch, in one pass from the pixels."""
    (stage,) = at_once(default_modules(vlm, Chip(), ["connector", "down"], "all"))
    observer = StageObserver(vlm, records, stage, lambda _: Shown(), needs_outputs=True)
    ForwardRunner(vlm).run(batch, Pixels(), observe=observer.hooks(batch))
    return {module.name: each.tokens for module, each in observer.merged(DistributedContext()).items()}


def batch_of(vlm: VLM, text: str, images: list[Any], answers: list[str], turns: int = 1) -> Batch:
    """One row by hand, of so many records: each sees all before it. Each of `answers` is the end of one of them."""
    inputs = dict(vlm.processor(text=[text], images=[images], add_special_tokens=False, return_tensors="pt"))
    ids: Tensor = inputs["input_ids"]
    image, real = ids == vlm.image_token_id, torch.ones_like(ids, dtype=torch.bool)
    numbers = torch.where(image, (image.cumsum(1) - 1) * len(images) // image.sum(), 0)
    answer, segments = torch.zeros_like(real), torch.zeros_like(ids)
    end = 0
    for number, given in enumerate(answers):
        own = vlm.processor.tokenizer(f"{given}</s>", add_special_tokens=False)["input_ids"]
        end = next(n for n in range(end + len(own), ids.shape[1] + 1) if ids[0, n - len(own) : n].tolist() == own)
        answer[0, end - len(own) : end] = True
        segments[0, end:] = min(number + 1, turns - 1)
    pairs = torch.tensor([(segment, record) for segment in range(turns) for record in range(segment, turns)])
    return Batch(
        inputs,
        token_roles(real, image, numbers, answer, torch.zeros_like(real)),
        token_ids(ids, image, numbers),
        numbers,
        segments,
        answer,
        SegmentRecords(pairs[:, 0], pairs[:, 1], turns),
        torch.arange(turns),
        (PackedSequence(tuple(range(turns)), 0, ids.shape[1]),),
    )


@pytest.fixture
def two(hierarchy: Hierarchy) -> list[Record]:
    """Two records with unlike images."""
    first = hierarchy.records[0]
    return [first, next(record for record in hierarchy.records if record.image != first.image)]


def test_roles_follow_the_order_of_a_record() -> None:
    image = torch.tensor([[0, 1, 0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]).bool()
    answer = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]]).bool()
    real = torch.tensor([[1] * 8 + [0] * 2, [1] * 5 + [0] * 5]).bool()
    roles = token_roles(real, image, torch.zeros_like(image, dtype=torch.int64), answer, torch.zeros_like(image))
    assert roles[0].tolist() == [P, I, P, I, Q, A, A, A, _, _]
    assert roles[1].tolist() == [Q, Q, Q, A, A, _, _, _, _, _]


def test_a_token_before_an_answer_that_is_of_an_image_stays_one() -> None:
    image, answer = torch.tensor([[True, True, False]]), torch.tensor([[False, False, True]])
    roles = token_roles(
        torch.ones_like(image), image, torch.zeros(1, 3, dtype=torch.int64), answer, torch.zeros_like(image)
    )
    assert roles.tolist() == [[I, I, A]]


def test_every_token_of_the_demo_has_the_role_it_has_in_its_record(vlm: VLM, hierarchy: Hierarchy) -> None:
    decode = vlm.processor.tokenizer.decode
    batches = Batches(vlm, hierarchy.records, range(0, 400, 25), BatchSize(4), together=False)
    for batch in batches.made():
        for number, (index,) in enumerate(row.records for row in batch.rows):
            record, ids = hierarchy.records[index], batch.ids[number]
            role = batch.roles[number]
            assert decode(ids[role == P]).strip() == "<s>USER:"
            assert record.question in decode(ids[(role == Q) | (role == A)])
            assert decode(ids[batch.answer[number]]).removesuffix("</s>").strip() == record.answer
            assert ids[role == I].tolist() == list(range(int((role == I).sum())))
            assert ((role == A).sum() - batch.answer[number].sum()) == 1
        assert (batch.ids >= 0).all()
        assert (batch.segments >= 0).all()
        assert torch.equal(batch.real, batch.inputs["attention_mask"].bool())


def test_two_images_of_one_row_are_told_apart(vlm: VLM, two: list[Record]) -> None:
    images = [open_image(record) for record in two]
    batch = batch_of(vlm, "<s>USER: <image>before<image>Which? ASSISTANT:both</s>", images, ["both"])
    each = int(batch.vision.sum()) // 2
    assert batch.ids[batch.vision].tolist() == [*range(each), *range(each)]
    first, last = (int(place) for place in batch.vision[0].nonzero()[:, 0][[0, -1]])
    assert set(batch.roles[0, :first].tolist()) == {P}
    assert set(batch.roles[0, first : last + 1].tolist()) == {I, Q}  # what stands between has seen the first image

    tokens = shown(vlm, two, batch)
    alone = [shown(vlm, [record], next(Batches(vlm, [record], [0], BatchSize(1)).made())) for record in two]
    connectors = [name for name in tokens if "projector" in name]
    assert connectors
    for name in connectors:
        expected = torch.cat([of[name].inputs for of in alone])
        torch.testing.assert_close(tokens[name].inputs, expected)
        assert tokens[name].ids.tolist() == [*range(each), *range(each)]
    assert all(len(of.inputs) == batch.roles.numel() for name, of in tokens.items() if name not in connectors)
    assert tokens[connectors[0]].weights(torch.ones(1, len(TokenRole))).sum() == pytest.approx(1)


def test_pooled_images_of_one_row_have_equal_shares(vlm: VLM, two: list[Record]) -> None:
    batch = batch_of(vlm, "<s>USER: <image><image>Which? ASSISTANT:both</s>", [open_image(r) for r in two], ["both"])
    tokens = connector_tokens("pooled", torch.zeros(1, 6, 5), None, batch)
    assert tokens.ids.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_turn_sees_the_turns_before_it_and_answers_are_their_own_records(vlm: VLM, two: list[Record]) -> None:
    text = "<s>USER: <image>Who? ASSISTANT:her</s>USER: When? ASSISTANT:then</s>USER: Why? ASSISTANT:so</s>"
    batch = batch_of(vlm, text, [open_image(two[0])], ["her", "then", "so"], turns=3)
    assert batch.attention_mask is not None
    length = batch.roles.shape[1]
    assert torch.equal(batch.attention_mask[0, 0].tril(), torch.ones(length, length).tril().bool())
    records, _, wanted = answer_logits(vlm, batch, vlm.hidden_states(batch))
    answers = [vlm.processor.tokenizer.decode(wanted[records == record]) for record in range(3)]
    assert answers == ["her</s>", "then</s>", "so</s>"]
    with torch.no_grad():
        plain = vlm.core(**batch.inputs, use_cache=False).last_hidden_state
    torch.testing.assert_close(vlm.hidden_states(batch), plain)


def test_records_see_what_all_their_owners_own() -> None:
    """Two records go on from one turn in unlike ways; padding sees all, and nobody sees it."""
    segments = torch.tensor([[0, 1, 2, 3, 0]])
    roles = torch.tensor([[Q, Q, Q, Q, _]])
    owners = SegmentRecords(torch.tensor([0, 0, 0, 1, 1, 2, 3]), torch.tensor([5, 7, 9, 5, 7, 7, 9]), 4)  # 9 forks off
    none, zeros = torch.zeros(1, 5).bool(), torch.zeros(1, 5, dtype=torch.int64)
    rows = (PackedSequence((5, 7, 9), 1, 4),)
    mask = Batch({}, roles, zeros, zeros, segments, none, owners, torch.tensor([5, 5, 7, 9]), rows).attention_mask
    assert mask is not None
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda ids, image: ids.masked_fill(ids == image, 5), "the model's processor gives it no image"),
        (lambda ids, _: ids.roll(-1, 1), "its answer is not at the end of what the model's processor makes of it"),
    ],
)
def test_what_a_processor_loses_is_missed(
    vlm: VLM, two: list[Record], change: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Prompts.inputs

    def losing(prompts: Prompts, records: Sequence[Record]) -> dict[str, Tensor]:
        inputs = whole(prompts, records)
        return inputs | {"input_ids": change(inputs["input_ids"], vlm.image_token_id)}

    batches = Batches(vlm, two, [1], BatchSize(), together=False)
    monkeypatch.setattr(Prompts, "inputs", losing)
    with pytest.raises(InputError, match=rf"^{two[1].where}: {says}"):
        next(batches.made())


def test_an_image_that_no_record_has_is_missed(vlm: VLM, two: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    text = replace(two[0], image=None)
    batches = Batches(vlm, [text], [0], BatchSize())
    monkeypatch.setattr(type(vlm), "image_token_id", vlm.prompts.read([text])[0].tokens[1])
    with pytest.raises(InputError, match="the model's processor gives it an image"):
        next(batches.made())
