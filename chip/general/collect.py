"""General data of an edit: given by the user, and made by the model itself."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import numpy as np

from chip.data.answers import normalized
from chip.data.keep import PATH, image_record, read_keep, some_of, tells_of_target, text_record, without_target
from chip.data.record import FREE_TEXT, Record
from chip.data.request import ForgetRequest
from chip.errors import ChipWarning, InputError
from chip.general import corpus
from chip.general.loss import losses_of
from chip.general.own_words import LENGTH, TO_COME, with_own_answers, write_texts
from chip.general.pictures import draw_pictures
from chip.model.loading import VLM
from chip.model.target_modules import TargetModule

AUTO, NONE = "auto", "none"

PER_INPUT = {"cuda": 10, "mps": 4}
"""Tokens to protect for each input of the widest module, by kind of device; elsewhere 2."""
MOST_GIVEN = 20
"""What is given, at most, as a multiple of what `auto` would take: more costs time and hardly changes the edit."""
CHARACTERS = 4
"""Of a token, about."""
LEAST_GIVEN = 1 << 18
"""Characters of what is given that are taken in any case: models with narrow modules are fast."""
HELD_OUT_TOKENS = 1024
IMAGES = 8
"""Pictures that are drawn, and images of retained records, at most."""
IMAGE_QUESTIONS = ("What does this image show?", "Describe this image.", "Is this a photo or a drawing?")
QUESTIONS = 16
"""Plain questions that are held out; all others are answered by the model, and its answers protected."""
PROSE = "plain prose"
"""What messages call a piece of the bundled text."""
RESERVED = 16
"""Pieces of it that no edit protects: they show what models have kept or lost."""
PROSE_TO_TRY = 8
"""Pieces of prose that show whether a model has a language at all."""


@dataclass(frozen=True)
class Keep:
    """What an edit is to leave alone beside the retained records."""

    sources: tuple[Path | str, ...] = (AUTO,)
    """Files and folders as `read_keep` takes them, and `auto`: general data that the model makes itself. `none` stands
    alone."""
    tokens: int | None = None
    """How much text `auto` takes, in tokens; by default ten for each input of the widest module that is edited on a
    GPU, two on a CPU."""
    model: Path | None = None
    """Folder of the model before it was fine-tuned: it then writes the text that `auto` takes."""

    @classmethod
    def of(cls, keep: Keep | Sequence[Path | str]) -> Keep:
        """Raises `InputError` where `none` does not stand alone, or a number or a model has nothing to say for."""
        keep = keep if isinstance(keep, Keep) else cls(tuple(keep) or (NONE,))
        check_sources(keep.sources, "keep")
        if keep.tokens is not None and keep.tokens < 1:
            raise InputError("must be at least 1", argument="keep_tokens", value=keep.tokens)
        for argument, value in (("keep_tokens", keep.tokens), ("keep_model", keep.model)):
            if value is not None and not keep.auto:
                raise InputError("says how auto makes its text; add keep auto", argument=argument, value=value)
        return keep

    @property
    def auto(self) -> bool:
        return AUTO in self.sources

    def given(self) -> list[Record]:
        """What the files and folders hold; see `read_keep`."""
        return read_sources(self.sources, "keep")


def check_sources(sources: Sequence[Path | str], argument: str) -> None:
    """Raise `InputError` where one names nothing, or `none` does not stand alone."""
    if any(not str(source).strip() for source in sources):
        raise InputError("names nothing; give auto, none, a file or a folder", argument=argument, value="''")
    if NONE in sources and len(sources) > 1:
        raise InputError("stands alone; drop it, or the others", argument=argument, value=NONE)


def read_sources(sources: Sequence[Path | str], argument: str) -> list[Record]:
    """What the files and folders among them hold; see `read_keep`."""
    return read_keep([Path(source) for source in sources if source not in (AUTO, NONE)], argument)


@dataclass(frozen=True)
class GeneralData:
    """What an edit protects, and what shows how well; all of it in memory only."""

    protected: tuple[Record, ...]
    held_out: tuple[Record, ...]
    """As the first, and none of it."""
    questions: tuple[Record, ...]
    """Plain questions, held out: what is looked at is whether the model ends its answers."""
    note: str
    """What it was made of, in a line."""


def collect(
    vlm: VLM,
    request: ForgetRequest,
    keep: Keep,
    given: Sequence[Record],
    tokens: int,
    texts: Sequence[Record] | None = None,
    seed: int = 0,
) -> GeneralData | None:
    """What is to be protected, and what of the same kind shows whether it was; None where nothing was asked for.

    A model that predicts plain prose no better than its words' frequencies do has no language to lose, and `auto` makes
    nothing for it.

    Args:
        given: what `keep.given()` has read.
        tokens: how much text `auto` makes; of what is given, `MOST_GIVEN` times as much is taken.
        texts: what `write_own_texts` gave of another model; by default `vlm` writes them.

    Raises:
        InputError: an image cannot be read.
    """
    some = some_of(given, max(LEAST_GIVEN, CHARACTERS * MOST_GIVEN * tokens), seed)
    own = with_own_answers(vlm, fitting(vlm, without_target(some, request)))
    if not keep.auto:
        protected, held_out = _split(vlm, own, seed) if own else ([], [])
        return _data(vlm, protected, held_out, f"{len(own)} given") if own else None
    if no_language := why_no_language(vlm):
        message = f"the model knows its records only: {no_language}; there is no general ability to keep"
        return GeneralData(tuple(own), (), (), message)
    texts = write_own_texts(vlm, tokens, seed) if texts is None else texts
    made, held_out, left_out = _make(vlm, request, tokens, texts, seed)
    note = f"{tokens:,} tokens of its own text, plain prose and images" + (f", and {len(own)} given" if own else "")
    if left_out:
        note += f"; {left_out} that told of the target were left out"
    return _data(vlm, [*own, *made], held_out, note)


def tokens_to_keep(vlm: VLM, keep: Keep, modules: Sequence[TargetModule]) -> int:
    """How much text `auto` makes for an edit of these modules."""
    widest = max((module.shape(vlm.model)[1] for module in modules), default=0)
    return keep.tokens or PER_INPUT.get(vlm.device.type, 2) * widest


def write_own_texts(vlm: VLM, tokens: int, seed: int = 0) -> list[Record]:
    """The half of `tokens` that a model writes itself, and what is held out of it."""
    return write_texts(vlm, int((tokens + HELD_OUT_TOKENS) / 2 / LENGTH) + 1, seed)


def why_no_language(vlm: VLM) -> str | None:
    """What shows that a model has no language to lose, in words; None where it has one."""
    known, by_frequency = prose_nats(vlm)
    if known < by_frequency:
        return None
    return f"plain prose costs it {known:.1f} nats a token, its words' frequencies alone {by_frequency:.1f}"


def reserved_prose() -> list[str]:
    """The end of the bundled prose, in the order in which `auto` takes it: no edit protects it."""
    order: list[str] = np.random.default_rng(0).permutation(corpus.prose()).tolist()
    return order[-RESERVED:]


def held_out_questions() -> list[Record]:
    """Plain questions that no edit protects the answers of; their own is still to come."""
    return [replace(question, answer=TO_COME) for question in _questions(0)[:QUESTIONS]]


def prose_nats(vlm: VLM) -> tuple[float, float]:
    """−log p of some plain prose in nats a token: as the model has it, and by the tokens' frequencies in that text."""
    pieces = corpus.prose()
    texts = fitting(vlm, [text_record(text, PROSE) for text in pieces[:: len(pieces) // PROSE_TO_TRY]])
    ids = np.concatenate([prompt.tokens for prompt in vlm.prompts.read(texts)])
    _, counts = np.unique(ids, return_counts=True)
    share = counts / counts.sum()
    total, tokens = losses_of(vlm, texts).sum(0).tolist()
    return total / tokens if tokens else inf, float(-(share * np.log(share)).sum())


def _make(
    vlm: VLM, request: ForgetRequest, tokens: int, written: Sequence[Record], seed: int
) -> tuple[list[Record], list[Record], int]:
    """What `auto` protects, what it holds out, and how many records told of the target."""
    generator = np.random.default_rng(seed)
    half = (tokens + HELD_OUT_TOKENS) / 2
    reserved = set(reserved_prose())
    everything = generator.permutation(corpus.prose()).tolist()
    prose = [text_record(text, PROSE) for text in everything if text not in reserved]
    texts = _first(vlm, written, half) + _first(vlm, prose, half)
    texts = [texts[i] for i in generator.permutation(len(texts))]
    asked = [*_asked(seed), *_about_images(request, generator, seed)]
    answered = with_own_answers(vlm, [asked[i] for i in generator.permutation(len(asked))])
    known = {normalized(record.answer) for record in request.hierarchy.records}
    answered = [record for record in answered if normalized(record.answer) not in known]  # else it is the records'
    tells = tells_of_target(request)
    clean_texts, clean_answers = ([r for r in part if not tells(r)] for part in (texts, answered))
    held_out = _first(vlm, clean_texts, HELD_OUT_TOKENS)
    few = len(clean_answers) // 8
    left_out = len(texts) + len(answered) - len(clean_texts) - len(clean_answers)
    return [*clean_texts[len(held_out) :], *clean_answers[few:]], [*held_out, *clean_answers[:few]], left_out


def fitting(vlm: VLM, records: Sequence[Record]) -> list[Record]:
    """The records, texts among them that are too long for the model's context in halves, between two words."""
    result: list[Record] = []
    for record in records:
        words = record.question.split()
        if record.task != FREE_TEXT or len(words) < 2 or len(vlm.prompts.read([record])[0].tokens) <= vlm.max_tokens:
            result.append(record)
        else:
            halves = (words[: len(words) // 2], words[len(words) // 2 :])
            result += fitting(vlm, [replace(record, question=" ".join(half)) for half in halves])
    return result


def _questions(seed: int) -> list[Record]:
    return [
        Record(question, "", PATH, None, where="general question")
        for question in np.random.default_rng(seed).permutation(corpus.questions()).tolist()
    ]


def _asked(seed: int) -> list[Record]:
    """Those that are not held out."""
    held_out = _questions(0)[:QUESTIONS]
    return [question for question in _questions(seed) if question not in held_out]


def _about_images(request: ForgetRequest, generator: np.random.Generator, seed: int) -> list[Record]:
    """General questions about drawn pictures, and about images of retained records."""
    partition, records = request.partition, request.hierarchy.records
    theirs = {image for i in partition.forget for image in records[i].images}
    pictured = ((image, i) for i in partition.retained for image in records[i].images if image not in theirs)
    windows = {image: records[i].window for image, i in pictured}
    retained = list(windows)
    some = [retained[i] for i in generator.permutation(len(retained))[:IMAGES]]
    records_asked = [
        image_record(image, "general image", IMAGE_QUESTIONS[n % len(IMAGE_QUESTIONS)])
        for n, image in enumerate((*draw_pictures(IMAGES, seed), *some))
    ]
    return [replace(record, window=windows.get(image)) for record in records_asked for image in record.images]


def _first(vlm: VLM, records: Sequence[Record], tokens: float) -> list[Record]:
    """As many of the records, from the first on, as have that many tokens together; cut as by `fitting`."""
    first: list[Record] = []
    total = 0
    for piece in itertools.chain.from_iterable(fitting(vlm, [record]) for record in records):
        if total >= tokens:
            break
        first.append(piece)
        total += len(vlm.prompts.read([piece])[0].tokens)
    return first


def _split(vlm: VLM, records: Sequence[Record], seed: int) -> tuple[list[Record], list[Record]]:
    """What is protected, and an eighth that is held out, up to `HELD_OUT_TOKENS`; nothing of a few records."""
    order = np.random.default_rng(seed).permutation(len(records))
    shuffled = [records[i] for i in order]
    held_out = _first(vlm, shuffled[: len(records) // 8], HELD_OUT_TOKENS)
    return shuffled[len(held_out) :], held_out


def _data(vlm: VLM, protected: Sequence[Record], held_out: Sequence[Record], note: str) -> GeneralData:
    if not held_out:
        message = "too little general data to hold any of it out: what the edit costs there is not measured"
        warnings.warn(message, ChipWarning, stacklevel=3)
    questions = held_out_questions() if held_out else []
    return GeneralData(tuple(protected), tuple(held_out), tuple(questions), note)
