"""A checkpoint folder as a model in memory, with the parts that the rest of chip needs to find in it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.plain import open_plain
from chip.data.record import Record
from chip.distributed import DistributedContext, local_device
from chip.errors import InputError
from chip.model.batching.batch import Batch
from chip.model.batching.batch_size import BatchSize
from chip.model.batching.batches import Batches
from chip.model.batching.packing import Cost
from chip.model.batching.sharing import sharing_holds
from chip.model.chat import Prompts
from chip.model.families import (
    answer_is_suffix,
    base_model,
    find_connectors,
    find_language,
    find_tower,
    find_tower_layers,
    image_token_id,
    logit_softcapping,
    max_tokens,
    position_inputs,
    same_size_images,
    sliding_window,
)
from chip.model.forward.trace import block_diagonal_attention, trace
from chip.model.offload import (
    DeviceMap,
    MaxMemory,
    check_device_map,
    check_loaded,
    computes_on_host,
)
from chip.model.pretrained import check_generation, load_pretrained, refusing_weights
from chip.model.processors import load_checkpoint_processor
from chip.model.quiet import quiet
from chip.model.running import running
from chip.model.skeleton import build_skeleton
from chip.model.streaming import load_streamed, needs_streaming
from chip.model.weight_checks import check_weights
from chip.model.weights import ResidentWeights, Weights


@dataclass(frozen=True)
class VLM:
    """A vision-language model for inference, on one device or spread over several."""

    model: Any
    processor: Any
    stream: Weights | None = None
    """What reads its weights layer by layer; None: they are all there."""

    @cached_property
    def weights(self) -> Weights:
        """Its parameters, wherever they are."""
        return self.stream or ResidentWeights(self.model)

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        return self.weights.device

    def place_of(self, name: str) -> torch.device:
        """Where the parameter of this name is computed with."""
        return self.weights.place_of(name)

    @property
    def core(self) -> Any:
        """The model without its head: hidden states out."""
        return base_model(self.model)

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
        return self.weights.parameter(name)

    def set_parameter(self, name: str, value: Tensor) -> Tensor:
        """Give a parameter new values, in its own dtype; the parameter as it is kept from now on."""
        return self.weights.set_parameter(name, value)

    @cached_property
    def connectors(self) -> list[Any]:
        """What turns the vision tower's hidden states into embeddings of the text model."""
        return find_connectors(self.model)

    @cached_property
    def tower(self) -> Any:
        """The vision tower."""
        return find_tower(self.model)

    @cached_property
    def tower_layers(self) -> list[Any]:
        """The layers of the vision tower."""
        return find_tower_layers(self.model)

    @cached_property
    def prompts(self) -> Prompts:
        """Records in this model's chat format; one for all passes, so that what is known stays known."""
        return Prompts(self.processor, answer_is_suffix(self.model))

    @property
    def image_token_id(self) -> int:
        """The vocabulary id that stands for a piece of an image."""
        return image_token_id(self.model)

    @property
    def max_tokens(self) -> int:
        """The longest record that the text model takes."""
        return max_tokens(self.model)

    @property
    def by_size(self) -> bool:
        """Whether all images of a batch must have one size."""
        return same_size_images(self.model)

    @property
    def logit_softcapping(self) -> float | None:
        """c, where the family makes c tanh(logits / c) of what comes out of the head; None: it leaves that as it is."""
        return logit_softcapping(self.model)

    @cached_property
    def cost(self) -> Cost:
        """Of a row of tokens; the size of its image is left to say."""
        return Cost(
            per_token=2.0 * sum(parameter.numel() for parameter in self.layers.parameters()),
            per_pair=4.0 * self.model.config.get_text_config().hidden_size * len(self.layers),
            image=0,
            longest=sliding_window(self.model) or self.max_tokens,
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
        selected = range(len(records)) if indices is None else indices
        return Batches(self, records, selected, size or BatchSize(), distributed=distributed)

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(..., B, T) int64: where each token stands, as the model itself would say; Qwen has three numbers for it."""
        names = position_inputs(self.model) if "image_grid_thw" in inputs else ()
        if names:
            given = {name: inputs[name] for name in names if name in inputs}
            with running(self.model):
                positions: Tensor = self.core.get_rope_index(**given)[0]
            return positions
        return (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)

    def hidden_states(self, batch: Batch, gradients: bool = False) -> Tensor:
        """(B, T, d): the text model's last, behind its norm; where the batch is.

        Args:
            gradients: whether they can be derived by parameters that ask for it.

        Raises:
            InputError: the model does not take what the processor makes of a record.
        """
        shown: list[Tensor] = []
        hooks = (
            block_diagonal_attention(self.layers, batch.attention_mask),
            trace(self.language, output=lambda _, output: shown.append(output.last_hidden_state), stop=True),
        )
        with torch.set_grad_enabled(gradients), running(self.model), hooks[0], hooks[1]:
            self.core(**batch.inputs, use_cache=False)
        return shown[0].to(batch.segments.device)


def default_device() -> str:
    """cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_vlm(
    folder: Path | Checkpoint,
    device: str | None = None,
    *,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    offload_folder: Path | str | None = None,
    stream: bool | None = None,
) -> VLM:
    """Load a checkpoint for inference: fp32 on the CPU, the dtype it is stored in elsewhere.

    Args:
        folder: the checkpoint's; or the checkpoint itself, which may have an adapter merged into it.
        device: by default the best there is.
        device_map: spreads a model that is larger than a device; needs accelerate.
        max_memory: what such a model may take of each device and of the host; the rest stays on the disk.
        offload_folder: for weights that stay on the disk, in another form than the checkpoint's; needed while in use.
        stream: whether layers are read one after the other, and only one is in memory; by default where not all fit.

    Raises:
        InputError: an unknown family, or weights, a device or a device map that do not fit the model. All but what the
            weights' values show is seen before the model is built.
    """
    if device is not None and device_map is not None:
        raise InputError("a device map says where the model goes; leave one out", argument="device", value=device)
    if stream and device_map is not None:
        raise InputError("a device map spreads what would be streamed; leave one out", argument="stream", value=stream)
    checkpoint = folder if isinstance(folder, Checkpoint) else open_plain(folder)
    folder = checkpoint.folder
    skeleton = build_skeleton(folder, len(checkpoint.entries))
    plan = check_weights(checkpoint, skeleton)
    check_family(skeleton)
    weights = None
    if device_map is None:
        place = _device(device)
        dtype = torch.float32 if place.type == "cpu" else None
        if needs_streaming(checkpoint, plan, dtype, place) if stream is None else stream:
            check_generation(folder)
            with refusing_weights(folder, None), quiet():
                model, weights = load_streamed(checkpoint, skeleton, plan, dtype, place)
        else:
            model = load_pretrained(folder, place.type == "cpu", {}).to(place)
    else:
        check_device_map(skeleton, device_map)
        limits = None if max_memory is None else dict(max_memory)
        options = {"device_map": device_map, "max_memory": limits, "offload_folder": offload_folder}
        model = load_pretrained(folder, computes_on_host(device_map, max_memory, default_device()), options)
        check_loaded(model)
    vlm = VLM(model.eval().requires_grad_(False), load_checkpoint_processor(checkpoint), weights)
    if weights is None:
        for name in checkpoint.merged:  # one at a time
            vlm.set_parameter(plan.taken[name], checkpoint.read(name))
    return vlm


def _device(name: str | None) -> torch.device:
    """The device of this name, by default the best there is; of several processes, this one's own."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* is no longer used as device type", UserWarning)
            device = torch.device(local_device(default_device() if name is None else name))
            torch.zeros(1, device=device).cpu()  # some are known by name, and not there
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        message = "torch finds no such device here; take cpu, cuda, cuda:1 or mps"
        raise InputError(message, argument="device", value=name) from error
    return device


def check_family(model: Any) -> None:
    """Raise `InputError` unless the model has its parts where chip looks for them, and writes behind the question."""
    find_connectors(model)
    beside = "decoder_input_ids" in inspect.signature(model.forward).parameters
    if beside and not getattr(model.config, "use_decoder_only_language_model", False):  # as InstructBLIP may have one
        what = "it writes in a decoder beside the question, and not behind it"
        raise InputError(f"{type(model).__name__}: {what}; chip does not know such families yet")
