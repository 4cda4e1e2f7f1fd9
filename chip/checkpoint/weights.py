"""One digest for all weights of a folder, as `sha256sum *.safetensors | sha256sum` gives it there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from chip.checkpoint.hashing import digest_all
from chip.checkpoint.layout import CONFIG, Checkpoint
from chip.progress import ProgressCallback, silent


def combined_digest(files: Mapping[str, str]) -> str:
    """SHA-256 of the lines that sha256sum writes of the files of weights, sorted by their names.

    Args:
        files: path relative to the folder -> SHA-256 of its bytes, in hexadecimal; other files count nothing.
    """
    lines = (f"{files[name]}  {name}\n" for name in sorted(files) if name.endswith(".safetensors"))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def weights_digest(checkpoint: Checkpoint, progress: ProgressCallback = silent) -> str:
    """`combined_digest` of the shards, all of which are read, in the folder as a user knows it."""
    given = _as_given(checkpoint)
    jobs = [(given.folder / shard, ()) for shard in given.shards]
    with progress(f"hashing {given.folder.name}", len(jobs)) as advance:
        digests = digest_all(jobs, advance)
    return combined_digest({name: one.whole for name, one in zip(given.shards, digests, strict=True)})


def weight_files(checkpoint: Checkpoint) -> dict[str, str]:
    """Name -> SHA-256 in hexadecimal, of `config.json` and the shards in the folder as a user knows it."""
    given = _as_given(checkpoint)
    names = (CONFIG, *given.shards)
    digests = digest_all([(given.folder / name, ()) for name in names])
    return {name: digest.whole for name, digest in zip(names, digests, strict=True)}


def _as_given(checkpoint: Checkpoint) -> Checkpoint:
    """A quantized checkpoint itself, and not its dequantized copy."""
    return checkpoint if checkpoint.quantized is None else checkpoint.quantized.checkpoint
