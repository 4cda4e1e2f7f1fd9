"""A checkpoint folder as a model in memory, with the parts that the rest of chip needs to find in it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.processing_utils import ProcessorMixin

from chip.data.record import Record
from chip.distributed import DistributedContext, local_device
from chip.errors import InputError
from chip.model.batching.batch import Batch
from chip.model.batching.batch_size import BatchSize
from chip.model.batching.batches import Batches
from chip.model.batching.packing import Cost
from chip.model.batching.sharing import sharing_holds
from chip.model.chat import Prompts
from chip.model.forward.trace import block_diagonal_attention
from chip.model.offload import (
    DeviceMap,
    MaxMemory,
    check_device_map,
    check_loaded,
    input_device,
    on_host,
    place_of,
    read_parameter,
    write_parameter,
)
from chip.model.target_modules import find_connectors, find_language, find_tower_layers


@dataclass(frozen=True)
class VLM:
    """A vision-language model for inference, on one device or spread over several."""

    model: Any
    processor: Any

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        return input_device(self.model)

    def place_of(self, name: str) -> torch.device:
        """Where the parameter of this name is computed with."""
        return place_of(self.model, name)

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

    def parameter(self, name: str) -> Tensor:
        """The parameter of this name below the whole model, where it is computed with."""
        return read_parameter(self.model, name)

    def set_parameter(self, name: str, value: Tensor) -> Tensor:
        """Give a parameter new values, in its own dtype; the parameter as it is kept from now on."""
        return write_parameter(self.model, name, value)

    @cached_property
    def connectors(self) -> list[Any]:
        """What turns the vision tower's hidden states into embeddings of the text model."""
        return find_connectors(self.model)

    @cached_property
    def tower_layers(self) -> list[Any]:
        """The layers of the vision tower."""
        return find_tower_layers(self.model)

    @cached_property
    def prompts(self) -> Prompts:
        """Records in this model's chat format; one for all passes, so that what is known stays known."""
        return Prompts(self.processor)

    @property
    def image_token_id(self) -> int:
        return int(self.model.config.image_token_id)

    @property
    def max_tokens(self) -> int:
        """The longest record that the text model takes."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def by_size(self) -> bool:
        """Whether all images of a batch must have one size: such a family cuts off, behind the connector, what padded
        an image, and the size says how many tokens stay."""
        return hasattr(self.model.config, "image_grid_pinpoints")

    @cached_property
    def cost(self) -> Cost:
        config = self.model.config.get_text_config()
        windowed = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        return Cost(
            per_token=2.0 * sum(parameter.numel() for parameter in self.layers.parameters()),
            per_pair=4.0 * config.hidden_size * len(self.layers),
            image=0,
            longest=config.sliding_window if windowed else self.max_tokens,
        )

    @cached_property
    def shares_images(self) -> bool:
        """Whether questions about one image can share it: measured, on two questions together and alone."""
        return self.prompts.causal and sharing_holds(self)

    def batches(
        self,
        records: Sequence[Record],
        indices: Sequence[int] | None = None,
        size: BatchSize | None = None,
        distributed: DistributedContext | None = None,
    ) -> Batches:
        """Records (all, or those at `indices`) as this model takes them; several processes share them."""
        chosen = range(len(records)) if indices is None else indices
        return Batches(self, records, chosen, size or BatchSize(), distributed=distributed)

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(..., B, T) int64: where each token stands, as the model itself would say; Qwen has three numbers for it."""
        if "image_grid_thw" in inputs:
            names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
            positions: Tensor = self.core.get_rope_index(**{name: inputs[name] for name in names})[0]
            return positions
        return (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)

    def hidden_states(self, batch: Batch) -> Tensor:
        """(B, T, d): the text model's last, behind its norm; where the batch is."""
        with torch.no_grad(), block_diagonal_attention(self.layers, batch.attention_mask):
            states: Tensor = self.core(**batch.inputs, use_cache=False).last_hidden_state
        return states.to(batch.segments.device)


def default_device() -> str:
    """cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_vlm(
    folder: Path,
    device: str | None = None,
    *,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    offload_folder: Path | str | None = None,
) -> VLM:
    """Load a checkpoint for inference: fp32 on the CPU, the dtype it is stored in elsewhere.

    Args:
        device: by default the best there is.
        device_map: spreads a model that is larger than a device; needs accelerate.
        max_memory: what such a model may take of each device and of the host; the rest stays on the disk.
        offload_folder: for weights that stay on the disk, but not as the checkpoint has them. They are read from it for
            as long as the model is used.

    Raises:
        InputError: an unknown family, weights that do not fit the model (missing or unexpected names), or a device map
            that does not.
    """
    if device_map is None:
        place = torch.device(local_device(device or default_device()))
        options, wide, trouble = {}, place.type == "cpu", _UNKNOWN
    else:
        if device is not None:
            raise InputError(f"--device {device}: --device-map says where the model goes; leave one of them out")
        check_device_map(skeleton(folder), device_map)
        limits = None if max_memory is None else dict(max_memory)
        options = {"device_map": device_map, "max_memory": limits, "offload_folder": offload_folder}
        wide, trouble = on_host(device_map, max_memory, default_device()), "cannot be spread by this --device-map"
    with _Quiet(), _refusing(folder, trouble):
        model, info = transformers.AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=torch.float32 if wide else "auto",
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    for trouble in ("missing_keys", "mismatched_keys"):
        if info[trouble]:
            raise InputError(
                f"{folder}: {trouble.replace('_', ' ')} {sorted(info[trouble])[:3]}; the checkpoint is incomplete"
            )
    check_family(model)
    check_loaded(model)
    model.eval().requires_grad_(False)
    return VLM(model if device_map is not None else model.to(place), load_processor(folder))


def check_family(model: Any) -> None:
    """Raise `InputError` unless the model has its parts where chip looks for them."""
    find_connectors(model)


def skeleton(folder: Path) -> Any:
    """The checkpoint's model without weights, on the meta device.

    Raises:
        InputError: an unknown family.
    """
    with _Quiet(), torch.device("meta"), _refusing(folder, _UNKNOWN):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForImageTextToText.from_config(config)
    check_family(model)
    return model


_UNKNOWN = "not a vision-language model that transformers knows"


@contextmanager
def _refusing(folder: Path, trouble: str) -> Iterator[None]:
    """Says it in one line where transformers does not take what it is given."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{folder}: {trouble}; {_brief(error)}") from error


def _brief(error: Exception) -> str:
    """The first sentence of what transformers says, on one line."""
    return " ".join(str(error).split()).partition(". ")[0][:200]


class _Quiet:
    """Silences progress bars and remarks of transformers and accelerate on loading; errors are raised all the same."""

    _accelerate = logging.getLogger("accelerate")

    def __enter__(self) -> None:
        self._levels = transformers.logging.get_verbosity(), self._accelerate.level
        self._bars = transformers.logging.is_progress_bar_enabled()
        transformers.logging.set_verbosity(logging.ERROR)
        transformers.logging.disable_progress_bar()
        self._accelerate.setLevel(logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", "The following device_map keys", UserWarning)  # its own map's, no modules

    def __exit__(self, *_: object) -> None:
        transformers.logging.set_verbosity(self._levels[0])
        self._accelerate.setLevel(self._levels[1])
        self._warnings.__exit__(None, None, None)
        if self._bars:
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
