"""Models by their names on the Hub: from its cache, from the Hub, or one line that says why not. No test asks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, errors
from huggingface_hub.utils._paths import filter_repo_objects

from chip.checkpoint import hub
from chip.checkpoint.contents import folder_contents
from chip.checkpoint.hub import checkpoint_folder
from chip.checkpoint.layout import INDEX, Checkpoint
from chip.checkpoint.model_card import CARD, Metadata, card_text, license_of, write_card
from chip.checkpoint.paths import hub_revision, shown_name
from chip.errors import ChipWarning, InputError
from chip.request_checks import resolve_output
from tests.folders import COMMIT, SHARDS, into_cache

PLAIN: dict[str, Any] = {"method": "any", "settings": {}, "label": None, "changed_tensors": 1, "figures": ()}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, and nothing in it; the current folder is empty too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache"


@pytest.fixture
def model(source: Checkpoint) -> Path:
    """A folder that lacks nothing that makes a snapshot whole."""
    (source.folder / "tokenizer.json").write_text("{}")
    return source.folder


def test_a_name_is_looked_up_in_the_cache(cache: Path, model: Path) -> None:
    snapshot, older = into_cache(model, cache), into_cache(model, cache, commit=10 * "abcd", branch="v1")
    assert checkpoint_folder("org/name") == snapshot == checkpoint_folder(Path("org/name"), COMMIT)
    assert checkpoint_folder("org/name", "v1") == older
    assert hub_revision(older) == "org/name@" + 10 * "abcd"
    assert (shown_name(older), shown_name(model)) == ("org/name", "revision")
    assert hub_revision(model) is None
    opened = Checkpoint.open(snapshot)
    assert opened.place == Path("name")
    assert [path.read_bytes() for path, _ in folder_contents(opened).copied] == [
        path.read_bytes() for path, _ in folder_contents(Checkpoint.open(model)).copied
    ]


def test_a_folder_wins_and_a_path_is_no_name(cache: Path, model: Path) -> None:
    into_cache(model, cache)
    for path in ("name", "./org/name", "/org/name", "a/b/c", "~/model", "../org"):
        assert checkpoint_folder(path) == Path(path)
    Path("org").mkdir()
    assert checkpoint_folder("org/name") == Path("org/name")  # a typing error: nobody hears of it
    Path("org/name").mkdir()
    assert checkpoint_folder("org/name") == Path("org/name")
    with pytest.raises(InputError, match=r"^revision='v1': is of a repository on the Hub"):
        checkpoint_folder("org/name", "v1")


@pytest.mark.parametrize("lacking", [SHARDS[0], INDEX, "config.json", "tokenizer.json"])
def test_what_the_cache_holds_in_part_is_fetched(
    lacking: str, cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = into_cache(model, cache)
    (snapshot / lacking).unlink()
    asked: list[bool] = []

    def fetch(name: str, *, revision: str | None, local_files_only: bool, **_: Any) -> str:
        asked.append(local_files_only)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.warns(ChipWarning, match=r"^org/name is not in the Hub's cache as a whole, and is fetched from https:"):
        assert checkpoint_folder("org/name") == snapshot
    assert asked == [True, False]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RepositoryNotFoundError, "^base='org/name': no folder here, and no repository on the Hub that you may"),
        (errors.GatedRepoError, "^base='org/name': a gated repository; accept its terms at https://.*/org/name"),
        (errors.RevisionNotFoundError, "^revision='v9': org/name has no such branch, tag or commit; see https://"),
        (errors.LocalEntryNotFoundError, "^base='org/name': no folder here, not whole .* cannot be reached; fetch it"),
        (errors.HFValidationError, "^base='org/name': no such folder, and no name of a repository"),
        (
            ConnectionResetError,
            r"^org/name: cannot be fetched from the Hub \(ConnectionResetError\); fetch it with `hf d",
        ),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    error: type[Exception], message: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: Any, local_files_only: bool, **__: Any) -> str:
        raise errors.LocalEntryNotFoundError("not here") if local_files_only else error.__new__(error)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(InputError, match=message) as refused:
        checkpoint_folder("org/name", "v9", argument="base")
    assert "\n" not in str(refused.value)


def test_nothing_is_asked_where_the_user_forbids_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache's own answer, with no network: offline as the user, and not as the command, has set it."""
    with pytest.raises(InputError, match=r"the Hub cannot be reached \(.*offline mode is enabled"):
        checkpoint_folder("org/name")
    monkeypatch.setattr(hub, "_offline_by_chip", True)
    with hub._online():
        assert not constants.HF_HUB_OFFLINE
    assert constants.HF_HUB_OFFLINE


def test_no_pickle_no_code_and_nothing_twice_is_fetched() -> None:
    wanted = ["README.md", "chat_template.jinja", "config.json", "merges.txt", "model-00001-of-00002.safetensors"]
    wanted += ["LICENSE", "qwen.tiktoken", "tokenizer.model", "additional_chat_templates/tool.jinja"]
    others = ["modeling.py", "pytorch_model.bin", "model.pt", "x.pkl", "model.gguf", "model.onnx", "flax_model.msgpack"]
    others += ["consolidated.safetensors", "original/consolidated.00.pth", "original/model.safetensors", "run.sh"]
    kept = filter_repo_objects(
        wanted + others, allow_patterns=list(hub._FETCHED), ignore_patterns=list(hub._NOT_FETCHED)
    )
    assert list(kept) == wanted


def test_hard_links_into_the_cache_are_said(cache: Path, model: Path) -> None:
    source = Checkpoint.open(into_cache(model, cache))
    assert resolve_output(source, None, {}) == Path("name-edited")
    with pytest.warns(ChipWarning, match="second names of files in the Hub's cache"):
        resolve_output(source, None, {"link_unchanged": True})


def test_metadata_that_cannot_be_read_stay(tmp_path: Path) -> None:
    for card in (b"---\n{a: [\n---\n# A model\n", b"---\nlicense: \xff\n---\n", b"---\n- a\n---\n"):
        (tmp_path / CARD).write_bytes(card)
        assert license_of(tmp_path) == {}
        with pytest.warns(ChipWarning, match=r"^README.md: its metadata cannot be read .*is not added to them"):
            write_card(tmp_path, **PLAIN, metadata=Metadata("finetune", "transformers", "org/name"))
        assert (tmp_path / CARD).read_bytes().startswith(card)


def test_metadata_are_added_below_nothing(tmp_path: Path) -> None:
    for start in (b"", b"\xef\xbb\xbf"):
        (tmp_path / CARD).write_bytes(start + b"# A model\n---\n")
        write_card(tmp_path, **PLAIN, metadata=Metadata("adapter", "peft", None, {"license": "mit"}))
        text = (tmp_path / CARD).read_bytes()
        assert card_text(text).startswith(b"# A model\n---\n\n## Edited to forget\n")
        assert license_of(tmp_path) == {"license": "mit"}
        assert b"library_name: peft\n" in text
        assert b"base_model" not in text
