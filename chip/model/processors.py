"""A checkpoint's processor: its tokenizer, and what makes pixels of images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers
from transformers import AutoProcessor
from transformers.processing_utils import ProcessorMixin

from chip.checkpoint.contents import folder_contents
from chip.checkpoint.layout import Checkpoint
from chip.errors import InputError, foreign_code, reason
from chip.model.lazy_image import remember_results
from chip.model.quiet import quiet

_CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Where the class of a processor may be named, in the order in which transformers looks."""
_UNNEEDED = "video_processor"
"""The part of a processor that is left out where it asks for a package that is missing."""

_SIZES, _SIDES = ("size", "crop_size", "pad_size"), ("shortest_edge", "longest_edge", "height", "width")
LONGEST_SIDE = 1 << 14
"""Pixels of a side that a picture is made to, at most: of far more, the picture alone takes all memory."""

_BROKEN, _HINT = "its processor cannot be loaded", "put the base model's tokenizer and processor files there"
_SAFE = {"local_files_only": True, "trust_remote_code": False}


def load_checkpoint_processor(checkpoint: Checkpoint) -> Any:
    """The checkpoint's processor, of its own folder and of its adapter's: that one's files come first.

    Raises:
        InputError: as `load_processor` does.
    """
    if checkpoint.adapter is None or not checkpoint.adapter.processor_files:
        return load_processor(checkpoint.folder)
    with TemporaryDirectory(prefix="chip-") as name:
        for path, relative in folder_contents(checkpoint).copied:
            if path.suffix != ".safetensors":
                (Path(name) / relative).parent.mkdir(parents=True, exist_ok=True)
                (Path(name) / relative).symlink_to(path.resolve())
        try:
            return load_processor(Path(name))
        except InputError as error:  # of the files of both folders; what is at hand is the adapter's
            raise InputError(error.message.replace(name, str(checkpoint.adapter.folder))) from error


def load_processor(folder: Path) -> Any:
    """The checkpoint's processor; where torchvision is missing, without its part for videos.

    What it made of large images it need not make again: see `remember_results`.

    Code that comes with the checkpoint is never run.

    Raises:
        InputError: files of the tokenizer or the image processor are missing or broken, or a package is missing.
    """
    class_name = _class_name(folder)
    _check_packages(folder)
    with _refusing(folder), quiet():
        processor = _load(folder, class_name)
    if not isinstance(processor, ProcessorMixin):  # transformers then takes the tokenizer, or what it can get
        raise InputError(f"{folder}: {_BROKEN} ({class_name or 'none'} is no processor transformers knows); {_HINT}")
    if (image_processor := getattr(processor, "image_processor", None)) is not None:
        _check_sizes(folder, image_processor)
        remember_results(image_processor)
    return processor


def _check_sizes(folder: Path, image_processor: Any) -> None:
    """Raise `InputError` where pictures would be scaled to what nobody has memory for.

    Qwen's edges are numbers of pixels of the whole picture, which it keeps to its context by itself.
    """
    counts_pixels = hasattr(image_processor, "merge_size") or hasattr(image_processor, "min_pixels")
    for name in _SIZES:
        size = getattr(image_processor, name, None)
        sides = {} if size is None or counts_pixels else {side: _side(size, side) for side in _SIDES}
        for side, pixels in sides.items():
            if pixels > LONGEST_SIDE:
                message = f"its processor makes pictures of {pixels:,.0f} pixels ({name}, {side})"
                raise InputError(f"{folder}: {message}, more than {LONGEST_SIDE:,}; {_HINT}")


def _side(size: Any, side: str) -> float:
    """A side's pixels; 0 where the size, a mapping or an object of transformers', does not say them."""
    value = size.get(side) if isinstance(size, dict) else getattr(size, side, None)
    return float(value) if isinstance(value, (int, float)) else 0.0


def _load(folder: Path, class_name: str | None) -> Any:
    try:
        return AutoProcessor.from_pretrained(folder, **_SAFE)
    except (ImportError, OSError, ValueError, RecursionError):  # the last where a video processor is looked for first
        if class_name is None:
            raise
        processor_class: Any = getattr(transformers, class_name)
        if _UNNEEDED not in processor_class.get_attributes():
            raise  # the trouble is another
        without_video: Any = type(class_name, (processor_class, _WithoutVideo), {})
        return without_video.from_pretrained(folder, **_SAFE)


def _check_packages(folder: Path) -> None:
    """transformers says of an image processor whose package is missing only that it could not load one."""
    for name in _CONFIGS:
        config = _config(folder, name)
        inner = config.get("image_processor")
        for section in (config, inner if isinstance(inner, dict) else {}):
            named = section.get("image_processor_type")
            lacking = _lacking_packages(named) if isinstance(named, str) else []
            if lacking:
                packages = " and ".join(lacking)
                raise InputError(f"{folder}: its {named} asks for a missing package; pip install {packages}")


def _lacking_packages(class_name: str) -> list[str]:
    """What all forms of an image processor's class ask for, and is missing; none where transformers knows no form."""
    base = class_name.removesuffix("Fast").removesuffix("Pil")
    with quiet():
        forms = [getattr(transformers, f"{base}{form}", None) for form in ("", "Fast", "Pil")]
    known = [form for form in forms if form is not None]
    if not all(getattr(form, "is_dummy", False) for form in known):
        return []
    return sorted({package for form in known for package in form._backends if find_spec(package) is None})


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Whatever transformers raises at the processor's files becomes an `InputError`; see `foreign_code`."""
    with foreign_code(folder, _BROKEN, _HINT):
        try:
            yield
        except ImportError as error:
            raise InputError(f"{folder}: its processor asks for another package; {reason(error)}") from error


def _class_name(folder: Path) -> str | None:
    """The class of the processor, as the first of its files says that names one."""
    named = (_config(folder, name).get("processor_class") for name in _CONFIGS)
    return next((class_name for class_name in named if isinstance(class_name, str)), None)


def _config(folder: Path, name: str) -> dict[str, Any]:
    """What a file says; nothing where it is missing or no JSON object: transformers then tells of it."""
    try:
        config = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


class _WithoutVideo(ProcessorMixin):  # type: ignore[misc]
    """A processor class without its video processor, which alone would need torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if name != _UNNEEDED]

    @classmethod
    def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
        """What `__init__` is called with: some classes insist on a video processor, so they get None."""
        arguments: list[Any] = super()._get_arguments_from_pretrained(*args, **kwargs)
        arguments.insert(super().get_attributes().index(_UNNEEDED), None)
        return arguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop(_UNNEEDED, None)
        names = ProcessorMixin.get_attributes.__func__(type(self))
        needed = [arg for name, arg in zip(names, args, strict=False) if name != _UNNEEDED]
        super().__init__(*needed, **kwargs)
