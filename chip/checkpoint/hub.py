"""A model by its name on the Hugging Face Hub: in the Hub's cache, or fetched into it."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from chip.checkpoint.json_file import read_json
from chip.checkpoint.layout import ADAPTER_CONFIG, CONFIG, INDEX, SINGLE
from chip.errors import ChipWarning, InputError, foreign_code, reason

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_FETCHED = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "*.md", "LICENSE*", "NOTICE*")
"""What an edit reads and copies (`chip.checkpoint.contents`), by its name: safetensors, texts and vocabularies."""
_NOT_FETCHED = ("*/*.safetensors", "consolidated*.safetensors")
"""The same weights once more, in other layouts."""
_PROCESSORS = ("tokenizer_config.json", "tokenizer.json", "processor_config.json")
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")

_offline_by_chip = False


def keep_libraries_offline() -> None:
    """Have no library ask the Hub by itself: `checkpoint_folder` alone does, unless the user has forbidden it."""
    global _offline_by_chip
    if not any(name in os.environ for name in _OFFLINE):
        os.environ[_OFFLINE[0]] = "1"
        _offline_by_chip = True


def is_hub_id(name: str) -> bool:
    """Whether it is written as a repository on the Hub is, and leads into no folder that is here."""
    return _ID.fullmatch(name) is not None and not Path(name).parent.is_dir()


def checkpoint_folder(model: Path | str, revision: str | None = None, *, argument: str = "checkpoint") -> Path:
    """The folder of a model: `model` itself, or the snapshot of a repository `organization/name` in the Hub's cache.

    A folder of that name wins. The cache comes first, also where the Hub has something newer; what it lacks is fetched,
    which is said: safetensors, configuration, tokenizer and processor, never a pickle or code. A path into a folder
    that is there is never taken for a name of the Hub.

    Args:
        revision: branch, tag or commit; by default `main`.
        argument: what an error calls `model`.

    Raises:
        InputError: the repository is not in the cache and cannot be fetched: there is none, it is private or gated, it
            lacks the revision, or the Hub cannot be reached. Or `revision` is given for a folder.
    """
    name, path = str(model), Path(model)
    if path.is_dir() or not is_hub_id(name):
        if revision is not None:
            message = "is of a repository on the Hub, and the model here is a path; leave it out"
            raise InputError(message, argument="revision", value=revision)
        return path
    found = _in_cache(name, revision)
    return found if found is not None and _is_whole(found) else _fetched(name, revision, argument)


def recorded_commit(hub: Mapping[str, str] | None, model: Path | str) -> str | None:
    """The commit of the repository `model`, where a receipt's `hub` has it as what was edited, or as its adapter."""
    commits = dict(recorded.split("@", 1) for recorded in (hub or {}).values() if "@" in recorded)
    return commits.get(str(model)) if is_hub_id(str(model)) else None


def _snapshot(name: str, revision: str | None, *, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    allowed, ignored = list(_FETCHED), list(_NOT_FETCHED)
    folder = snapshot_download(
        name, revision=revision, local_files_only=local, allow_patterns=allowed, ignore_patterns=ignored
    )
    return Path(folder)


def _in_cache(name: str, revision: str | None) -> Path | None:
    """The snapshot, or as much of it as the cache holds."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _snapshot(name, revision, local=True)
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def _is_whole(snapshot: Path) -> bool:
    """Whether nothing that a model needs is missing: other programs fetch files one by one."""
    if os.path.lexists(snapshot / ADAPTER_CONFIG):
        return any(snapshot.glob("adapter_model*"))
    needed = [CONFIG, SINGLE]
    if (snapshot / INDEX).exists():
        weight_map = read_json(snapshot, INDEX)[0].get("weight_map")
        needed = [CONFIG, *(set(map(str, weight_map.values())) if isinstance(weight_map, dict) else ())]
    processor = any((snapshot / name).exists() for name in _PROCESSORS)
    return processor and all((snapshot / name).exists() for name in needed)


def _fetched(name: str, revision: str | None, argument: str) -> Path:
    """The snapshot, once all of it is in the cache."""
    from huggingface_hub import constants

    with _refusing(name, revision, argument), _online():
        if not constants.HF_HUB_OFFLINE:
            where = f"{name} is not in the Hub's cache as a whole, and is fetched from {constants.ENDPOINT}"
            warnings.warn(where, ChipWarning, stacklevel=3)
        return _snapshot(name, revision, local=False)


@contextmanager
def _refusing(name: str, revision: str | None, argument: str) -> Iterator[None]:
    """What the Hub says no with, as one line each."""
    from huggingface_hub import constants, errors

    known = (
        errors.HFValidationError,
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.LocalEntryNotFoundError,
    )
    place, fetch = f"{constants.ENDPOINT}/{name}", f"fetch it with `hf download {name}`, or give a folder"
    try:
        with foreign_code(name, "cannot be fetched from the Hub", fetch, lambda error: isinstance(error, known)):
            yield
    except known as error:
        match error:
            case errors.HFValidationError():
                message = "no such folder, and no name of a repository on the Hub; check it"
            case errors.GatedRepoError():
                message = f"a gated repository; accept its terms at {place}, and log in with `hf auth login`"
            case errors.RepositoryNotFoundError():
                message = "no folder here, and no repository on the Hub that you may read; check it, or `hf auth login`"
            case errors.RevisionNotFoundError():
                message, argument = f"{name} has no such branch, tag or commit; see {place}/commits", "revision"
                name = revision or constants.DEFAULT_REVISION
            case _:
                cause = "" if error.__cause__ is None else f" ({reason(error.__cause__)})"
                message = f"no folder here, not whole in the Hub's cache, and the Hub cannot be reached{cause}; {fetch}"
        raise InputError(message, argument=argument, value=name) from error


@contextmanager
def _online() -> Iterator[None]:
    """Lifts what `keep_libraries_offline` has set; what the user has set stays."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before and not _offline_by_chip
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
