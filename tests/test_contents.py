"""A copy takes over what loads the model and its processor, and no second copy of the weights, whatever its name."""

from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from chip.checkpoint.contents import describe_left_out, folder_contents
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.writer import write_patched
from tests.folders import contents, copied

WEIGHTS = np.random.default_rng(0).normal(size=64).astype(np.float32)


def _pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.from_numpy(WEIGHTS)}, buffer)
    return buffer.getvalue()


def _zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("config.json", "{}")
    return buffer.getvalue()


def _numpy() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=WEIGHTS)
    return buffer.getvalue()


def _sentencepiece(longest: int = 5) -> bytes:
    """A model of two pieces, as protocol buffers have it, and the settings of its training."""
    pieces = [b"\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02", b"\x0a" + bytes([longest]) + b"a" * longest]
    return b"".join(b"\x0a" + bytes([len(piece)]) + piece for piece in pieces) + b"\x12\x02\x18\x02"


OTHER_WEIGHTS: dict[str, Callable[[], bytes]] = {
    "pytorch_model.bin": _pickled,
    "PYTORCH_MODEL.BIN": _pickled,
    "weights": _pickled,
    "readme.md": _pickled,
    "training_args.bin": lambda: pickle.dumps({"lr": 1e-4}),
    "model.ckpt": _pickled,
    "consolidated.00.pth": _pickled,
    "rust_model.ot": _pickled,
    "checkpoint-500/optimizer.pt": _pickled,
    "adapter_model.safetensors": lambda: save({"a": torch.from_numpy(WEIGHTS)}),
    "checkpoint-500/model.safetensors": lambda: save({"a": torch.from_numpy(WEIGHTS)}),
    "model-00001-of-00002.safetensors.bak": lambda: save({"a": torch.from_numpy(WEIGHTS)}),
    "flax_model.msgpack": lambda: b"\x81\xa1a\xc5\x01\x00" + WEIGHTS.tobytes(),
    "tf_model.h5": lambda: b"\x89HDF\r\n\x1a\n" + WEIGHTS.tobytes(),
    "onnx/model.onnx": lambda: b"\x08\x08\x12\x07pytorch" + WEIGHTS.tobytes(),
    "openvino_model.bin": WEIGHTS.tobytes,
    "model.gguf": lambda: b"GGUF" + struct.pack("<I", 3) + WEIGHTS.tobytes(),
    "weights.npz": _numpy,
    "model.zip": _zipped,
    "model.safetensors.gz": lambda: gzip.compress(WEIGHTS.tobytes()),
    "tokenizer.model": lambda: b"\x0a\x05aaaaa" + WEIGHTS.tobytes(),
    "weights.txt": lambda: (" ".join(map(str, WEIGHTS)) * 2000).encode(),
    "weights.json": lambda: json.dumps({"a": WEIGHTS.tolist() * 20}).encode(),
    "vocab.json": lambda: json.dumps({"a": WEIGHTS.tolist() * 20}, indent=2).encode(),
    "weights.yaml": lambda: "".join(f"- - {value}\n" for value in WEIGHTS.tolist() * 20).encode(),
    "weights.csv": lambda: "".join(f"{value:.4f},0,-1\n" for value in WEIGHTS.tolist() * 20).encode(),
    "weights.p0": lambda: pickle.dumps(WEIGHTS.tolist(), protocol=0),
    "tekken.json": lambda: base64.b64encode(WEIGHTS.tobytes() * 40),
    "weights.b85": lambda: base64.b85encode(WEIGHTS.tobytes() * 40),
    "model.hex": lambda: (WEIGHTS.tobytes() * 40).hex().encode(),
    "model.uri": lambda: json.dumps(
        {"a": f"data:;base64,{base64.b64encode(WEIGHTS.tobytes() * 40).decode()}"}
    ).encode(),
    "weights.plist": lambda: base64.encodebytes(WEIGHTS.tobytes() * 40).replace(b"\n", b"\n\t"),
    "own.tiktoken": lambda: (
        base64.b64encode(WEIGHTS.tobytes()[:48]) + b" 7\n" + base64.encodebytes(WEIGHTS.tobytes() * 40)
    ),
    "model.pbtxt": lambda: "raw_data: '{}'".format("".join(f"\\{each:03o}" for each in bytes(3000))).encode(),
    "pytorch_model.bin.index.json": lambda: json.dumps({"weight_map": {"a": "pytorch_model.bin"}}).encode(),
}
"""File -> its bytes: the weights in other forms, in pieces, or told of."""

NEEDED: dict[str, Callable[[], bytes]] = {
    "tokenizer.json": lambda: json.dumps({"model": {"vocab": {f"word {i}": i for i in range(80_000)}}}).encode(),
    "spiece.model": _sentencepiece,
    "tokenizer.model.v3": _sentencepiece,
    "qwen.tiktoken": lambda: b"IQ== 0\nIg== 1\n" * 100_000,
    "vocab.txt": b"[PAD]\n\x01\n\x7f\n\xc2\x80\n".strip,
    "chat_template.jinja": b"{{ messages }}".strip,
    "qformer_tokenizer/vocab.txt": "[PAD]\n#\u00e9\n".encode,
    "t5/tokenizer.json": lambda: b'{"precompiled_charsmap": "' + base64.b64encode(bytes(99_999)) + b'"}',
    "unigram/tokenizer.json": lambda: json.dumps([[f"w{n}", -n / 7] for n in range(9999)], indent=2).encode(),
    "README.md": lambda: b"![a](data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(99_999)) + b")",
    "spaces.jinja": lambda: b"{{ messages }}" + b" " * 99_999 + b"-" * 9999,
    "trainer_state.json": lambda: json.dumps([{"step": n, "loss": 1 / (1 + n)} for n in range(999)]).encode(),
    "LICENSE": "Copyright \u00a9".encode,
    "LICENSE.latin-1": "Copyright \u00a9".encode("latin-1").strip,
    "modeling_own.py": b"import torch\n".strip,
    ".gitattributes": lambda: b"",
}
"""File -> its bytes: what tokenizers and processors read, and people."""


@pytest.mark.parametrize("name", OTHER_WEIGHTS)
def test_no_other_copy_of_the_weights_is_copied(source: Checkpoint, tmp_path: Path, name: str) -> None:
    expected = copied(source.folder)
    path = source.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(OTHER_WEIGHTS[name]())
    assert folder_contents(source).left_out == (name,)
    write_patched(source, tmp_path / "out", {})
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("name", NEEDED)
def test_what_tokenizers_and_processors_read_is_copied(source: Checkpoint, tmp_path: Path, name: str) -> None:
    path = source.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(NEEDED[name]())
    assert folder_contents(source).left_out == ()
    write_patched(source, tmp_path / "out", {})
    assert contents(tmp_path / "out") == copied(source.folder)


@pytest.mark.parametrize("broken", [b"\x0a", b"\x0a\xff", b"\x0a\x05ab", b"\x0a\x02ab\x30\x01", b"\x0a\x02ab\x07"])
def test_what_only_begins_like_a_sentencepiece_model_is_none(source: Checkpoint, broken: bytes) -> None:
    (source.folder / "tokenizer.model").write_bytes(broken + b"\0")
    assert folder_contents(source).left_out == ("tokenizer.model",)


def test_what_stays_behind_is_one_line() -> None:
    names = ["onnx/model.onnx", "onnx/model.onnx_data", *(f"part-{number}.bin" for number in range(6))]
    line = describe_left_out(names)
    assert line.startswith(
        "not copied: 8 files ('onnx/', 'part-0.bin', 'part-1.bin', 'part-2.bin', 'part-3.bin', ...); what is"
    )
    assert describe_left_out(names[:1]).startswith("not copied: 1 file ")
