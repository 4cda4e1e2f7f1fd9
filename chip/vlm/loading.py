"""A checkpoint folder as a model in memory, with the parts that the rest of chip needs to find in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.processing_utils import ProcessorMixin

from chip.errors import InputError
from chip.vlm.prompts import Prompts
from chip.vlm.sites import find_connectors, find_language


@dataclass(frozen=True)
class VLM:
    """A vision-language model for inference, on one device."""

    model: Any
    processor: Any

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def core(self) -> Any:
        """The model without its head: hidden states out."""
        return self.model.model

    @property
    def language(self) -> Any:
        """The text model: embeddings in, hidden states out."""
        return find_language(self.model)

    @property
    def layers(self) -> Any:
        """The text model's layers, an `nn.ModuleList`."""
        return self.language.layers

    @cached_property
    def connectors(self) -> list[Any]:
        """What turns the vision tower's hidden states into embeddings of the text model."""
        return find_connectors(self.model)

    @cached_property
    def prompts(self) -> Prompts:
        """Records as inputs of this model; one for all passes, so that an image stays decoded between them."""
        config = self.model.config
        return Prompts(
            self.processor,
            config.image_token_id,
            config.get_text_config().max_position_embeddings,
            # Such a family cuts off, behind the connector, what padded an image: its size says how many tokens stay.
            by_size=hasattr(config, "image_grid_pinpoints"),
        )


def default_device() -> str:
    """cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_vlm(folder: Path, device: str | None = None) -> VLM:
    """Load a checkpoint for inference: fp32 on the CPU, the dtype it is stored in elsewhere.

    Raises:
        InputError: an unknown family, or weights that do not fit the model (missing or unexpected names).
    """
    place = torch.device(device or default_device())
    with _Quiet(), _known_family(folder):
        model, info = transformers.AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=torch.float32 if place.type == "cpu" else "auto",
            local_files_only=True,
            output_loading_info=True,
        )
    for trouble in ("missing_keys", "mismatched_keys"):
        if info[trouble]:
            raise InputError(
                f"{folder}: {trouble.replace('_', ' ')} {sorted(info[trouble])[:3]}; the checkpoint is incomplete"
            )
    check_family(model)
    return VLM(model.eval().requires_grad_(False).to(place), load_processor(folder))


def check_family(model: Any) -> None:
    """Raise `InputError` unless the model has its parts where chip looks for them."""
    find_connectors(model)


def skeleton(folder: Path) -> Any:
    """The checkpoint's model without weights, on the meta device.

    Raises:
        InputError: an unknown family.
    """
    with _Quiet(), torch.device("meta"), _known_family(folder):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForImageTextToText.from_config(config)
    check_family(model)
    return model


@contextmanager
def _known_family(folder: Path) -> Iterator[None]:
    """Says it in one line where no class of transformers takes the configuration."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{folder}: not a vision-language model that transformers knows; {_brief(error)}") from error


def _brief(error: Exception) -> str:
    """The first sentence of what transformers says, on one line."""
    return " ".join(str(error).split()).partition(". ")[0][:200]


class _Quiet:
    """Silences transformers' progress bars and remarks while it loads; errors are raised all the same."""

    def __enter__(self) -> None:
        self._level = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity(logging.ERROR)
        transformers.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers.logging.set_verbosity(self._level)
        transformers.logging.enable_progress_bar()


class _WithoutVideo(ProcessorMixin):  # type: ignore[misc]
    """A processor class without its video processor, which alone would need torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if name != "video_processor"]

    @classmethod
    def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
        """What `__init__` is called with: some classes insist on a video processor, so they get None."""
        loaded: list[Any] = super()._get_arguments_from_pretrained(*args, **kwargs)
        loaded.insert(super().get_attributes().index("video_processor"), None)
        return loaded

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("video_processor", None)
        names = ProcessorMixin.get_attributes.__func__(type(self))
        kept = [arg for name, arg in zip(names, args, strict=False) if name != "video_processor"]
        super().__init__(*kept, **kwargs)


def load_processor(folder: Path) -> Any:
    """The checkpoint's processor; where torchvision is missing, without its part for videos.

    Raises:
        InputError: files of the tokenizer or the image processor are missing or broken.
    """
    with _Quiet():
        try:
            return _load_processor(folder)
        except ImportError as error:
            raise InputError(f"{folder}: its processor asks for another package; {_brief(error)}") from error
        except (OSError, ValueError) as error:
            raise InputError(
                f"{folder}: its processor cannot be loaded, put the base model's tokenizer and processor files there; "
                f"{_brief(error)}"
            ) from error


def _load_processor(folder: Path) -> Any:
    try:
        return transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (ImportError, OSError, ValueError):
        for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
            file = folder / name
            wanted = json.loads(file.read_text()).get("processor_class") if file.exists() else None
            if wanted:
                without: Any = type(wanted, (getattr(transformers, wanted), _WithoutVideo), {})
                return without.from_pretrained(folder, local_files_only=True)
        raise
