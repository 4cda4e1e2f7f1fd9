"""A checkpoint's processor: its tokenizer, and what makes pixels of images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoProcessor
from transformers.processing_utils import ProcessorMixin

from chip.errors import InputError, foreign_code, reason
from chip.model.families import UNNEEDED_PROCESSOR
from chip.model.quiet import quiet

_CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Where the class of a processor may be named, in the order in which transformers looks."""

_BROKEN, _HINT = "its processor cannot be loaded", "put the base model's tokenizer and processor files there"
_SAFE = {"local_files_only": True, "trust_remote_code": False}


def load_processor(folder: Path) -> Any:
    """The checkpoint's processor; where torchvision is missing, without its part for videos.

    Code that comes with the checkpoint is never run.

    Raises:
        InputError: files of the tokenizer or the image processor are missing or broken, or a package is missing.
    """
    class_name = _class_name(folder)
    with _refusing(folder), quiet():
        processor = _load(folder, class_name)
    if not isinstance(processor, ProcessorMixin):  # transformers then takes the tokenizer, or what it can get
        raise InputError(f"{folder}: {_BROKEN} ({class_name or 'none'} is no processor transformers knows); {_HINT}")
    return processor


def _load(folder: Path, class_name: str | None) -> Any:
    try:
        return AutoProcessor.from_pretrained(folder, **_SAFE)
    except (ImportError, OSError, ValueError):
        if class_name is None:
            raise
        without_video: Any = type(class_name, (getattr(transformers, class_name), _WithoutVideo), {})
        return without_video.from_pretrained(folder, **_SAFE)


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
    for name in _CONFIGS:
        try:
            config = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # missing, or no JSON: transformers says so
            continue
        class_name = config.get("processor_class") if isinstance(config, dict) else None
        if isinstance(class_name, str):
            return class_name
    return None


class _WithoutVideo(ProcessorMixin):  # type: ignore[misc]
    """A processor class without its video processor, which alone would need torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if name != UNNEEDED_PROCESSOR]

    @classmethod
    def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
        """What `__init__` is called with: some classes insist on a video processor, so they get None."""
        arguments: list[Any] = super()._get_arguments_from_pretrained(*args, **kwargs)
        arguments.insert(super().get_attributes().index(UNNEEDED_PROCESSOR), None)
        return arguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop(UNNEEDED_PROCESSOR, None)
        names = ProcessorMixin.get_attributes.__func__(type(self))
        needed = [arg for name, arg in zip(names, args, strict=False) if name != UNNEEDED_PROCESSOR]
        super().__init__(*needed, **kwargs)
