"""Records as batches of rows: planned, made ahead of their use, and made smaller where they do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from chip.data.embedded_image import ImageSource
from chip.data.record import FREE_TEXT, Record, image_size
from chip.distributed import DistributedContext
from chip.errors import InputError
from chip.model.batching.assembly import assemble
from chip.model.batching.batch import Batch, guard_memory
from chip.model.batching.batch_size import BatchSize
from chip.model.batching.image_lengths import image_lengths
from chip.model.batching.model_inputs import ModelInputs
from chip.model.batching.packing import PackedSequence, alone, cut, pack
from chip.model.chat import Prompt

_MOST_IMAGES = 1 << 30  # behind all that have images come those that have none


def group_by_image_size(model: ModelInputs, records: Sequence[Record]) -> list[list[int]]:
    """Which of the records can stand in one batch: those with as many images, text-only ones last, free text behind."""
    sizes: dict[ImageSource, tuple[int, int]] = {}
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, record in enumerate(records):
        shape: tuple[int, ...] = (_MOST_IMAGES + (record.task == FREE_TEXT), 0, 0)
        if record.image is not None:
            for image in record.images if model.by_size else ():
                if image not in sizes:
                    sizes[image] = image_size(replace(record, image=image))
            each = (sizes.get(image, (0, 0)) for image in record.images)
            shape = (len(record.images), *(side for size in each for side in size))
        groups.setdefault(shape, []).append(index)
    return [groups[shape] for shape in sorted(groups)]


class Batches:
    """Records as batches of similar length; how they are packed and batched changes what is computed by rounding alone.

    The next batch is read, decoded and tokenized while this one is computed.
    """

    def __init__(
        self,
        model: ModelInputs,
        records: Sequence[Record],
        indices: Sequence[int],
        size: BatchSize,
        together: bool | None = None,
        distributed: DistributedContext | None = None,
    ) -> None:
        """
        Args:
            indices: which of the records, each once.
            together: whether questions share an image; by default where the model allows it.
            distributed: these processes share the rows.
        """
        self.distributed = distributed or DistributedContext()
        self._model, self._records, self.size = model, records, size
        self._prompts = dict(zip(indices, model.prompts.read([records[i] for i in indices]), strict=True))
        self._image = self._image_tokens()
        together = model.shares_images if together is None else together
        shapes = group_by_image_size(model, [records[i] for i in indices])
        groups = (self.distributed.shard(self._rows([indices[k] for k in group], together)) for group in shapes)
        self._groups = [rows for rows in groups if rows]

    def __len__(self) -> int:
        """How many records this process has of them."""
        return sum(len(row.records) for rows in self._groups for row in rows)

    @property
    def device(self) -> torch.device:
        """Where the batches go."""
        return self._model.device

    def plan(self) -> Iterator[list[PackedSequence]]:
        """The rows of one batch after the other, each as large as the size then says."""
        images = self._model.prompts.images
        for rows in self._groups:
            image = self._image * self._prompts[rows[0].records[0]].images
            yield from cut(rows, self.size, image, lambda row: images.pixels(self._records[row.records[0]]))

    def made(self, plan: Iterable[list[PackedSequence]] | None = None) -> Iterator[Batch]:
        """The batches of a plan, by default of one that is made as they are, on the model's device.

        Raises:
            InputError: an image cannot be read, or a record does not fit into the model's context.
            BatchTooLargeError: the device has no memory left for a batch.
        """
        with ThreadPoolExecutor(1) as worker:
            ready: Future[Batch] | None = None
            for rows in self.plan() if plan is None else plan:
                coming = worker.submit(self.make, rows)
                if ready is not None:
                    yield self._on_device(ready.result())
                ready = coming
            if ready is not None:
                yield self._on_device(ready.result())

    def _on_device(self, batch: Batch) -> Batch:
        with guard_memory(batch):
            return batch.to(self.device)

    def where(self, row: PackedSequence) -> str:
        """Where the row's first record stands."""
        return self._records[row.records[0]].where

    def _image_tokens(self) -> int:
        """What an image's placeholder becomes, less one, in the first record with one; others are about as large."""
        for index, prompt in self._prompts.items():
            if prompt.images:
                length = self._model.prompts.inputs([self._records[index]])["input_ids"].shape[1]
                return (length - len(prompt.tokens)) // prompt.images
        return 0

    def _rows(self, indices: Sequence[int], together: bool) -> list[PackedSequence]:
        """Rows, the shortest first; those of one length by what they hold, whatever the order of the records."""
        prompts = {index: self._prompts[index] for index in indices}
        rows = self._packed(prompts) if together else alone(prompts)
        return sorted(rows, key=lambda row: (row.tokens, *self._content(row.records[0]), row.records))

    def _content(self, index: int) -> tuple[tuple[int, ...], list[tuple[str, bytes]]]:
        """The record's tokens and images, as something that can be sorted."""
        images = self._records[index].images
        named = [("", image) if isinstance(image, bytes) else (str(image), b"") for image in images]
        return self._prompts[index].tokens, named

    def _packed(self, prompts: Mapping[int, Prompt]) -> list[PackedSequence]:
        about: dict[tuple[ImageSource, ...], dict[int, Prompt]] = {}
        for index, prompt in prompts.items():
            about.setdefault(self._records[index].images, {})[index] = prompt
        rows = []
        for images, group in about.items():
            cost = replace(self._model.cost, image=self._image * len(images))
            rows += pack(group, cost, self.size.records)
        return rows

    def make(self, rows: Sequence[PackedSequence]) -> Batch:
        """The rows as tensors, on the host."""
        heads = self._model.prompts.inputs([self._records[row.records[0]] for row in rows])
        lengths = heads["attention_mask"].sum(1).tolist()
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            self._check_head(row.records[0], heads["input_ids"][number, :length])
            own = self._prompts[row.records[0]].tokens[row.shared :]
            if len(row.records) > 1 and tuple(heads["input_ids"][number, length - len(own) : length].tolist()) != own:
                # The question stands before the image, or what the processor puts around the image ran into it.
                split = alone({record: self._prompts[record] for record in row.records})
                return self.make([*rows[:number], *split, *rows[number + 1 :]])
            self._check_length(row, length)
        return assemble(self._model, rows, self._prompts, heads, self._image_lengths(rows, heads["input_ids"]))

    def _image_lengths(self, rows: Sequence[PackedSequence], ids: Tensor) -> dict[int, list[int]]:
        """How many tokens each image has, of the records at the head of rows that have several."""
        image = ids == self._model.image_token_id
        first = [row.records[0] for row in rows]
        several = [(n, index) for n, index in enumerate(first) if self._prompts[index].images > 1]
        return {index: image_lengths(self._model, self._records[index], image[n]) for n, index in several}

    def _check_head(self, index: int, ids: Tensor) -> None:
        """Raise `InputError` unless a record's ids (T,) end in its answer, and hold an image where it has one."""
        record, prompt = self._records[index], self._prompts[index]
        answer = prompt.tokens[len(prompt.tokens) - prompt.answer :]
        if record.task != FREE_TEXT and (not answer or tuple(ids[-len(answer) :].tolist()) != answer):
            trouble = "its answer is not at the end of what the model's processor makes of it"
        elif bool((ids == self._model.image_token_id).any()) != (record.image is not None):
            trouble = f"the model's processor gives it {'an image' if record.image is None else 'no image'}"
        else:
            return
        raise InputError(f"{record.where}: {trouble}; check the checkpoint's processor files and chat template")

    def _check_length(self, row: PackedSequence, length: int) -> None:
        """`length`: of the row's first record, with its image."""
        image = length - len(self._prompts[row.records[0]].tokens)
        for index in row.records:
            tokens, record = len(self._prompts[index].tokens) + image, self._records[index]
            if tokens > self._model.max_tokens:
                what = "tokens" if record.image is None else "tokens with its image"
                hint = "shorten the question or answer, or scale the image down"
                hint = "break the text up" if record.task == FREE_TEXT else hint
                message = f"{record.where}: {tokens} {what}, the model takes {self._model.max_tokens}; {hint}"
                raise InputError(message)
