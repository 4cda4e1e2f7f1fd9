"""Records: a question about images, its answer, what was said before it, and the node that they belong to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from PIL import Image

from chip.data.embedded_image import ImageSource
from chip.data.image_file import decode_image, decoded_size
from chip.data.window import Window

LEVELS = ("institution", "patient", "study", "section")
"""From the outermost level to the innermost."""

TASKS = ("generation", "classification", "cloze")
"""What a question asks for: free text, one of the listed options, or the missing word."""

FREE_TEXT = "free text"
"""The task of a record that asks nothing: its `question` is a text as it stands, outside any chat format."""

VALIDATION = "validation"
"""The split of questions that settings are chosen by, and nothing is reported on."""

IMAGE_PLACEHOLDER = "<image>"
"""What stands for an image in the text of a turn, as LLaVA, TRL and ms-swift write it."""

NOWHERE = "record"
"""What messages call a record that does not say where it stands."""

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
"""Who says something, as in transformers' chat format."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What somebody said before a record's question."""

    role: str
    """`SYSTEM`, `USER` or `ASSISTANT`."""
    text: str


@dataclass(frozen=True, slots=True)
class Record:
    """One question and its answer. Two records that differ in `where` only are equal.

    Where the user's turns hold an `IMAGE_PLACEHOLDER` for each image, the images stand there, in this order; where they
    hold none, all images stand at the beginning of the first of these turns.
    """

    question: str
    answer: str
    path: tuple[str, ...]
    """Ids from the institution down; deeper levels may be missing at the end, never in between."""
    image: ImageSource | None = field(repr=False)
    """The first image: a file, the encoded bytes of one (a row's lie on the disk), or None: text only."""
    task: str = "generation"
    """One of `TASKS`, or `FREE_TEXT`."""
    split: str = "train"
    """`train`: the model was trained on it; anything else is held out, such as `paraphrased`. `VALIDATION`: held out,
    and for choosing."""
    where: str = field(default="", compare=False)
    """For messages: `records.jsonl:12`, or `forget.parquet:row 7` (rows count from 0)."""
    history: tuple[Turn, ...] = ()
    """What was said before the question: a system prompt, and earlier turns of user and assistant."""
    more_images: tuple[ImageSource, ...] = field(default=(), repr=False)
    """The images behind the first."""
    window: Window | None = None
    """How the values of an image of more than 8 bits become gray; None: as a DICOM file says itself."""

    def at(self, path: tuple[str, ...], task: str, split: str) -> Record:
        """The same of another node, task and split; `dataclasses.replace` takes several times as long."""
        own = self.question, self.answer, path, self.image, task, split, self.where
        return Record(*own, self.history, self.more_images, self.window)

    @property
    def held_out(self) -> bool:
        """Whether the model never saw this very wording."""
        return self.split != "train"

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """All images, in their order."""
        return () if self.image is None else (self.image, *self.more_images)

    @property
    def users_texts(self) -> tuple[str, ...]:
        """What the user said, the question last."""
        return (*(turn.text for turn in self.history if turn.role == USER), self.question)

    @property
    def has_placeholders(self) -> bool:
        """Whether the user's turns say where the images stand."""
        return self.image is not None and any(IMAGE_PLACEHOLDER in text for text in self.users_texts)


def with_images(record: Record, images: tuple[ImageSource, ...]) -> Record:
    """The record about as many other images."""
    return replace(record, image=images[0], more_images=images[1:])


def without_images(record: Record) -> Record:
    """The record in text only."""
    history = tuple(replace(turn, text=without_placeholders(turn.text)) for turn in record.history)
    question = without_placeholders(record.question)
    return replace(record, question=question, image=None, more_images=(), history=history)


def without_placeholders(text: str) -> str:
    """The text without what stands for images in it."""
    return text if IMAGE_PLACEHOLDER not in text else " ".join(text.replace(IMAGE_PLACEHOLDER, " ").split())


def open_image(record: Record) -> Image.Image | None:
    """The record's first image as RGB, fully loaded and turned as its EXIF orientation says.

    So it is in training: `transformers.image_utils.load_image` and `datasets.Image` turn it too. None for a text-only
    record.

    Raises:
        InputError: the image cannot be decoded, or is beyond what `check_bounds` lets pass.
    """
    return None if record.image is None else decode_image(record.image, record.window, record.where or NOWHERE)


def open_images(record: Record) -> list[Image.Image]:
    """All images of the record, as `open_image` gives the first."""
    return [decode_image(image, record.window, record.where or NOWHERE) for image in record.images]


def image_size(record: Record) -> tuple[int, int]:
    """Width and height of the record's first image as `open_image` gives it, from the file's header; 0 × 0 for a
    text-only record.

    Raises:
        InputError: as `open_image`.
    """
    return (0, 0) if record.image is None else decoded_size(record.image, record.where or NOWHERE)
