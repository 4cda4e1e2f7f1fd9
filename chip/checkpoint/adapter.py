"""The folder of a PEFT adapter: read with the same care as a checkpoint's, no weights, never a pickle; and written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chip.checkpoint.file_signature import FileSignature
from chip.checkpoint.hashing import digest
from chip.checkpoint.header import FLOATS, TensorEntry, read_header
from chip.checkpoint.hub import checkpoint_folder, is_hub_id
from chip.checkpoint.json_file import read_json
from chip.checkpoint.layout import ADAPTER_CONFIG, INDEX, SINGLE, read_tensor
from chip.checkpoint.paths import input_error, listed, quoted, resolve_inside
from chip.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_WEIGHTS = "adapter_model.safetensors"
CHAT_TEMPLATES = frozenset({"chat_template.jinja", "chat_template.json"})
"""One of them is the template: an adapter's takes the place of whichever its base has."""
PROCESSOR_FILES = CHAT_TEMPLATES | {
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tekken.json", "spiece.model", "sentencepiece.bpe.model"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
}
"""Names under which transformers saves a processor, that a training leaves beside its adapter."""

_TRAINING = re.compile(r"(adapter_model|training_args|dl_state_dict|(optimizer|scheduler|sampler)(_\d+)?)\.bin")
"""Files beside an adapter that look like weights, and hold none but it: its training's state, or the same again."""

_LORA = "LORA"
_MERGE = "merge it with peft (merge_and_unload), and save the whole model"


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter's folder, whose settings and header have been read."""

    folder: Path
    config: Mapping[str, Any] = field(repr=False)
    """`adapter_config.json`, parsed."""
    entries: Mapping[str, TensorEntry] = field(repr=False)
    processor_files: Mapping[str, Path] = field(repr=False)
    """Name -> where it lies: what of the processor was saved beside the adapter."""
    signatures: Mapping[str, FileSignature] = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> Adapter:
        """Read `adapter_config.json` and the header of the weights.

        Raises:
            InputError: there is no adapter, it is of another kind than LoRA, its weights are a pickle or no floats,
                more was trained than they hold, or a file is damaged or lies elsewhere.
        """
        if not os.access(folder, os.R_OK | os.X_OK) or not folder.is_dir():
            raise input_error(folder, "no such folder, or none you may read", "give the local folder of an adapter")
        if not os.path.lexists(folder / ADAPTER_CONFIG):
            check_no_adapter_inside(folder)
            raise input_error(folder, f"no {ADAPTER_CONFIG}", "give the folder that peft's save_pretrained wrote")
        signatures: dict[str, FileSignature] = {}
        config, signatures[ADAPTER_CONFIG] = read_json(folder, ADAPTER_CONFIG)
        if (kind := config.get("peft_type")) != _LORA:
            raise input_error(folder, f"an adapter of the kind {quoted(str(kind))}, and chip merges LoRA alone", _MERGE)
        _check_is_safetensors(folder)
        _check_is_all(folder)
        entries, signatures[ADAPTER_WEIGHTS] = read_header(folder, ADAPTER_WEIGHTS)
        if not entries:
            raise input_error(folder / ADAPTER_WEIGHTS, "it holds no tensor", "save the adapter again")
        for entry in entries:
            if entry.dtype not in FLOATS:
                what = f"tensor {quoted(entry.name)} is stored as {entry.dtype}"
                raise input_error(folder / ADAPTER_WEIGHTS, what, "save the adapter as BF16 or F32")
        beside = {name: folder / name for name in sorted(PROCESSOR_FILES) if os.path.lexists(folder / name)}
        processor_files = {name: resolve_inside(folder, name) for name in beside}
        return cls(folder, config, {entry.name: entry for entry in entries}, processor_files, signatures)

    def read(self, name: str) -> Tensor:
        """The tensor `name` in its stored shape and dtype, on the CPU. Raises `InputError` as `Checkpoint.read`."""
        return read_tensor(self.folder, self.entries[name])

    def replaces(self, name: str) -> bool:
        """Whether the base's file of this name is not the merged model's: the adapter brings its own."""
        return name in self.processor_files or (name in CHAT_TEMPLATES and self._brings_template)

    @cached_property
    def _brings_template(self) -> bool:
        """Whether it has a chat template: a file, or a setting of the tokenizer, as older transformers save it."""
        path = self.processor_files.get("tokenizer_config.json")
        config = {} if path is None else read_json(path.parent, path.name)[0]
        return bool(config.get("chat_template")) or not CHAT_TEMPLATES.isdisjoint(self.processor_files)

    def digests(self) -> dict[str, str]:
        """Name -> SHA-256 in hexadecimal, of all files that the merged model is made of."""
        names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *self.processor_files)
        return {name: digest(resolve_inside(self.folder, name)).whole for name in names}


def holds_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter's, and no model's that has one lying in it."""
    model = any(os.path.lexists(folder / name) for name in (SINGLE, INDEX))
    return os.path.lexists(folder / ADAPTER_CONFIG) and not model


def check_no_adapter_inside(folder: Path) -> None:
    """Raise `InputError` for a folder that holds the folders of adapters, where peft saves those that have a name."""
    if inside := sorted(path.parent for path in folder.glob(f"*/{ADAPTER_CONFIG}")):
        raise input_error(folder, "no adapter itself, though one lies in it", f"give {quoted(str(inside[0]))}")


def find_base(adapter: Adapter) -> Path:
    """The folder of the model that the adapter says it was trained on: a path, or a repository on the Hub.

    Raises:
        InputError: it names none, or one that is not here and cannot be fetched, as `checkpoint_folder` says.
    """
    name, revision = adapter.config.get("base_model_name_or_path"), adapter.config.get("revision")
    if not isinstance(name, str) or not name:
        message = f"{adapter.folder}: its {ADAPTER_CONFIG} names no base; give the base's folder"
        raise InputError(message, argument="base")
    for path in (Path(name), adapter.folder / name):
        if path.is_dir():
            return path
    if not is_hub_id(name):
        message = f"{adapter.folder}: its base {quoted(name)} is no folder here; give its folder"
        raise InputError(message, argument="base")
    return checkpoint_folder(name, revision if isinstance(revision, str) else None, argument="base")


def write_adapter(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Make `folder`, with the settings and the weights of an adapter as peft's own `save_pretrained` writes them."""
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(dict(tensors), folder / ADAPTER_WEIGHTS, {"format": "pt"})


def _check_is_safetensors(folder: Path) -> None:
    if os.path.lexists(folder / ADAPTER_WEIGHTS):
        return
    if any(any(folder.glob(pattern)) for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl")):
        raise input_error(folder, "its weights are a pickle", "save it with peft as safetensors (save_pretrained)")
    raise input_error(folder, f"no {ADAPTER_WEIGHTS}", "give the folder that peft's save_pretrained wrote")


def _check_is_all(folder: Path) -> None:
    """Raise `InputError` where weights lie beside the adapter's, as some trainers save what they trained besides."""
    weights = (path.name for path in folder.iterdir() if path.suffix in (".bin", ".safetensors"))
    if beside := sorted(name for name in weights if name != ADAPTER_WEIGHTS and not _TRAINING.fullmatch(name)):
        hint = "merge all of it with what trained it, and save the whole model; or move away what the model has not"
        raise input_error(folder, f"weights lie beside the adapter ({listed(beside)})", hint)
