"""A small checkpoint as the hub's cache keeps one, a part of the demo, and folders as what they hold."""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from chip.checkpoint.edit import Edit
from chip.checkpoint.layout import INDEX, Checkpoint
from chip.checkpoint.receipt import Receipt, write_receipt
from chip.checkpoint.writer import write_patched

COMMIT = 10 * "0f1e"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def make_snapshot(parent: Path) -> Checkpoint:
    """Two shards, one of them a link to the hub's blobs, with files and folders of other kinds around them."""
    torch.manual_seed(0)
    folder = parent / "hub" / "snapshots" / "revision"
    folder.mkdir(parents=True)
    save_file({"a": torch.randn(6, 5).bfloat16(), "b": torch.randn(7)}, folder / SHARDS[0])
    save_file({"c": torch.randn(3, 4).half(), "d": torch.randn(2).double(), "i": torch.arange(3)}, folder / SHARDS[1])
    weight_map = dict.fromkeys("ab", SHARDS[0]) | dict.fromkeys("cdi", SHARDS[1])
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    (folder / "processor" / "inner").mkdir(parents=True)
    (folder / "processor" / "inner" / "tokens.txt").write_bytes(2 * bytes(range(128, 256)))
    (folder / ".gitattributes").touch()
    for name in (".git", ".cache"):
        (folder / name).mkdir()
        (folder / name / "history").write_text("of the source alone")
    blobs = parent / "hub" / "blobs"
    blobs.mkdir()
    (folder / SHARDS[1]).rename(blobs / "0123")
    (folder / SHARDS[1]).symlink_to(blobs / "0123")
    return Checkpoint.open(folder)


def into_cache(folder: Path, cache: Path, name: str = "org/name", commit: str = COMMIT, branch: str = "main") -> Path:
    """A copy of `folder` in a cache of the Hub, as `snapshot_download` leaves it: blobs, and links to them."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs, refs = repository / "snapshots" / commit, repository / "blobs", repository / "refs"
    for made in (snapshot, blobs, refs):
        made.mkdir(parents=True, exist_ok=True)
    (refs / branch).write_text(commit)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        link, blob = snapshot / path.relative_to(folder), blobs / f"{commit}-{len(list(blobs.iterdir()))}"
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(blob)
    return snapshot


def write_signed(source: Checkpoint, output: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write `output` with these tensors, and a receipt: what another edit may replace."""
    edit = Edit("any", {}, None, dict.fromkeys(tensors, 0.5), {})
    write_receipt(output, Receipt.of(source, edit, write_patched(source, output, tensors)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copied(folder: Path) -> dict[str, bytes]:
    """What a copy of `folder` should hold."""
    return {name: data for name, data in contents(folder).items() if not name.startswith((".git/", ".cache/"))}


def write_part(hospital: Path, institutions: Collection[int], folder: Path) -> Path:
    """Write the records of some of the demo's institutions; returns the records file."""
    folder.mkdir(exist_ok=True)
    (folder / "images").symlink_to(hospital / "images")
    names = {f"institution_{number}" for number in institutions}
    lines = (hospital / "records.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    file = folder / "records.jsonl"
    file.write_text("".join(line for line in lines if json.loads(line)["institution"] in names), encoding="utf-8")
    return file
