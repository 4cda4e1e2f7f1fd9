"""A bill of materials of an edited folder, as CycloneDX has it for models: https://cyclonedx.org/capabilities/mlbom/.

All of it is said by the folder's receipt and its configuration: what the model was made of, what was changed, and what
was measured. The library writes and checks the form; the model card, which it does not know, is added to what it wrote.

Importing this raises `InputError` where the library is missing.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from chip._version import __version__
from chip.checkpoint.adapter import Adapter, holds_adapter
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.model_card import settings_line
from chip.checkpoint.receipt import Receipt, read_receipt
from chip.checkpoint.statement import EDIT
from chip.checkpoint.weights import combined_digest
from chip.errors import ChipWarning, InputError, reason

try:
    from cyclonedx.exception import MissingOptionalDependencyException
    from cyclonedx.model import AttachedText, HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType, Diff, Patch, PatchClassification, Pedigree
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
except ImportError as missing:
    raise InputError("a bill of materials needs cyclonedx: pip install 'chip-unlearning[bom]'") from missing

_MODEL, _ADAPTER = "model", "LoRA adapter"
_SHORT = 12  # characters of a digest that stand for a version


def bom(edited: Path | str) -> str:
    """The bill of materials of a folder that `chip edit` has written, as JSON of CycloneDX 1.6.

    The same folder gives the same text. It is checked against the schema where `jsonschema` is installed.

    Raises:
        InputError: there is no receipt, or it has been damaged; a library is missing.
    """
    config, receipt = _config(Path(edited)), read_receipt(Path(edited))
    try:
        made, card = _bom(receipt, _name(config)), _model_card(receipt, config)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        message = f"{edited}: its receipt says what no edit writes ({reason(error)}); take the folder again"
        raise InputError(message) from error
    content = json.loads(make_outputter(made, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string())
    content["metadata"]["component"]["modelCard"] = card
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    _check(text)
    return text


def _config(folder: Path) -> Mapping[str, Any]:
    """What `config.json` says; of an adapter, that it is one."""
    if holds_adapter(folder):
        Adapter.open(folder)
        return {"architectures": [_ADAPTER], "model_type": "lora"}
    return Checkpoint.open(folder).config


def _name(config: Mapping[str, Any]) -> str:
    """The class of the model: a folder may be named after somebody."""
    classes = config.get("architectures")
    return str(classes[0]) if isinstance(classes, list) and classes else _MODEL


def _bom(receipt: Receipt, name: str) -> Bom:
    edits = list(_edits(receipt))
    before = name if receipt.base is None else _MODEL
    merged = [_model(_ADAPTER, combined_digest(edit.adapter)) for edit in edits if edit.adapter]
    files = [_file(name, each.sha256) for name, each in receipt.files.items()]
    pedigree = Pedigree(
        ancestors=[*(_model(before, digest) for digest in reversed(receipt.chain)), *merged],
        patches=[_patch(edit) for edit in edits],
        notes="edited by chip, without training; lines of a patch: tensor, SHA-256 before, SHA-256 after",
    )
    made = Bom(
        serial_number=uuid5(NAMESPACE_URL, f"{EDIT} {receipt.created} {receipt.result_digest}"), components=files
    )
    made.metadata.component = _model(name, receipt.result_digest, pedigree, list(_properties(receipt)))
    made.metadata.timestamp = datetime.fromisoformat(receipt.created)
    made.metadata.tools.components.add(Component(name="chip", type=ComponentType.APPLICATION, version=__version__))
    made.register_dependency(made.metadata.component, files)
    return made


def _file(name: str, digest: str) -> Component:
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
    return Component(name=name, type=ComponentType.FILE, bom_ref=f"{name}@{digest}", hashes=hashes)


def _model(name: str, digest: str, pedigree: Pedigree | None = None, properties: Sequence[Property] = ()) -> Component:
    """A model by the digest of its weights, which is not of one file, as CycloneDX's hashes are."""
    own = Property(name="chip:sha256sum *.safetensors | sha256sum", value=digest)
    return Component(
        name=name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=digest[:_SHORT],
        bom_ref=f"{name}@{digest}",
        pedigree=pedigree,
        properties=[own, *properties],
    )


def _edits(receipt: Receipt) -> Iterator[Receipt]:
    """This edit and those before it, the last one first."""
    earlier: Receipt | None = receipt
    while earlier is not None:
        yield earlier
        earlier = earlier.earlier


def _patch(receipt: Receipt) -> Patch:
    lines = (f"{name} {tensor.before} {tensor.after}\n" for name, tensor in receipt.tensors.items())
    diff = Diff(text=AttachedText(content="".join(lines), content_type="text/plain"))
    return Patch(type=PatchClassification.UNOFFICIAL, diff=diff)


def _properties(receipt: Receipt) -> Iterator[Property]:
    sequence, values = receipt.sequence, {"chip": receipt.chip, "method": receipt.method, "label": receipt.label}
    values |= {"settings": settings_line(receipt.settings), "edited": receipt.created}
    if sequence is not None:
        values |= {"edits": str(sequence.number)}
        values |= (
            {} if sequence.total is None else {"largest distance from the original": f"{sequence.total:.4g} norms"}
        )
    values |= {name: str(value) for name, value in (receipt.environment or {}).items()}
    return (Property(name=f"chip:{name}", value=value) for name, value in values.items() if value)


def _model_card(receipt: Receipt, config: Mapping[str, Any]) -> dict[str, Any]:
    """`modelCard` of CycloneDX 1.6."""
    card: dict[str, Any] = {
        "modelParameters": {
            "task": "image-text-to-text",
            "architectureFamily": str(config.get("model_type", "unknown")),
            "modelArchitecture": _name(config),
            "inputs": [{"format": "image"}, {"format": "text"}],
            "outputs": [{"format": "text"}],
        }
    }
    if metrics := list(_metrics(receipt.figures or {})):
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    if receipt.limits:
        card["considerations"] = {"technicalLimitations": receipt.limits}
    return card


def _metrics(figures: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Of each group and wording how much is answered, before the edit and after it."""
    for group, splits in (figures.get("groups") or {}).items():
        for split, result in splits.items():
            for measure in ("exact_match", "answer_probability"):
                for when, value in result[measure].items():
                    if value is not None:
                        where = f"{group}, {split}, {when} the edit"
                        yield {"type": measure, "value": f"{value:.4f}", "slice": where}


def _check(text: str) -> None:
    """Raise `InputError` where the text is not what the schema asks for; a warning where it cannot be checked."""
    try:
        error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    except MissingOptionalDependencyException:
        message = "the bill of materials was not checked against its schema: pip install 'chip-unlearning[bom]'"
        warnings.warn(message, ChipWarning, stacklevel=3)
        return
    if error is not None:
        raise InputError(f"the bill of materials does not follow its schema ({' '.join(str(error).split())[:200]})")
