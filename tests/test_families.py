"""Eleven families of models, in both layouts of names: what is found in them, edited and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers

import chip
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.writer import write_patched
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.record import Record
from chip.data.request import ForgetRequest, Partition
from chip.errors import InputError, RunError
from chip.methods import METHODS, Chip, Shielded
from chip.methods.apply import EditContext, default_modules
from chip.methods.patch import Patch, check_removed
from chip.methods.plans import edit_model
from chip.model.batching.batch import Batch
from chip.model.batching.batch_size import BatchSize
from chip.model.batching.batches import Batches
from chip.model.families import FAMILIES as ROWS
from chip.model.families import (
    TEXT_MODULES,
    Family,
    answer_is_suffix,
    find_connectors,
    find_language,
    find_tower,
    find_tower_layers,
    other_parts,
    sliding_window,
)
from chip.model.loading import VLM, load_vlm
from chip.model.scoring import score
from chip.model.structure import linear_maps
from chip.model.target_modules import Component, available_modules
from tests.families import (
    FAMILIES,
    GIVEN,
    LAYOUTS,
    RECIPES,
    TEXT,
    TEXT_LAYERS,
    UNTRAINED,
    build,
    lacking,
    write_records,
)
from tests.rounding import assert_equal_but_for_rounding

CONNECTORS = {
    "qwen2_vl": ["visual.merger.mlp.0", "visual.merger.mlp.2"],
    "qwen2_5_vl": ["visual.merger.mlp.0", "visual.merger.mlp.2"],
    "qwen3_vl": [
        *("visual.merger.linear_fc1", "visual.merger.linear_fc2"),
        *(f"visual.deepstack_merger_list.{i}.linear_fc{j}" for i in (0, 1) for j in (1, 2)),
    ],
    "llava": ["multi_modal_projector.linear_1", "multi_modal_projector.linear_2"],
    "llava_next": ["multi_modal_projector.linear_1", "multi_modal_projector.linear_2"],
    "llava_onevision": ["multi_modal_projector.linear_1", "multi_modal_projector.linear_2"],
    "gemma3": ["multi_modal_projector.mm_input_projection_weight"],
    "internvl": ["multi_modal_projector.linear_1", "multi_modal_projector.linear_2"],
    "idefics3": ["connector.modality_projection.proj"],
    "smolvlm": ["connector.modality_projection.proj"],
    "paligemma": ["multi_modal_projector.linear"],
}
CLIP_KINDS = ("q", "k", "v", "o", "fc1", "fc2")
VISION_KINDS = dict.fromkeys(CONNECTORS, CLIP_KINDS) | {
    "qwen2_vl": ("qkv", "o", "fc1", "fc2"),
    "qwen2_5_vl": ("qkv", "o", "gate", "up", "down"),
    "qwen3_vl": ("qkv", "o", "fc1", "fc2"),
}
TARGET = "patient_1"
KINDS = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "gemma3", "idefics3", "paligemma")
"""One family of each kind; the others are near one of them, and wait for the long run: Qwen2-VL (Qwen2.5-VL), LLaVA,
LLaVA-NeXT and InternVL (LLaVA-OneVision), SmolVLM (Idefics3)."""
CHOOSING = ("gemma3", "paligemma")
"""Where the shield is left to be chosen: weights lie the other way round, no image is shared. LLaVA's is elsewhere."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records, their images, and every family's checkpoint in both layouts."""
    folder = tmp_path_factory.mktemp("families")
    write_records(folder)
    for family in FAMILIES:
        for layout in LAYOUTS:
            build(folder / f"{family}-{layout}", family, layout=layout)
    return folder


@pytest.fixture(params=[pytest.param(each, marks=() if each in KINDS else pytest.mark.slow) for each in FAMILIES])
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if package := lacking(name):
        pytest.skip(f"its processor needs {package}")
    return name


@pytest.fixture
def fresh(folder: Path, family: str) -> VLM:
    """The family's model, which a test may edit."""
    return load_vlm(folder / f"{family}-saved", "cpu")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Callable[[str], VLM]:
    return cache(lambda family: load_vlm(folder / f"{family}-saved", "cpu"))


@pytest.fixture
def vlm(loaded: Callable[[str], VLM], family: str) -> VLM:
    """The family's model, which several tests look at."""
    return loaded(family)


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    return read_records(folder / "records.jsonl")


def patch_of(vlm: VLM, source: Checkpoint, records: list[Record], name: str, batch_size: int | None = None) -> Patch:
    hierarchy = Hierarchy(records)
    request = ForgetRequest(hierarchy, Partition.of(hierarchy, [hierarchy.find(TARGET)]))
    method = GIVEN[name]
    return edit_model(EditContext(vlm, source, BatchSize(batch_size)), method, request, default_modules(vlm, method))


def batches_of(vlm: VLM, records: list[Record], size: int, indices: Sequence[int] | None = None) -> list[Batch]:
    """Each record in a row of its own."""
    chosen = range(len(records)) if indices is None else indices
    batches = Batches(vlm, records, chosen, BatchSize(size), together=False)
    return list(batches.made())


def test_target_modules_are_found(vlm: VLM, family: str) -> None:
    target_modules = available_modules(vlm.model)
    lie = Counter(module.component for module in target_modules)
    connector = [module for module in target_modules if module.component is Component.CONNECTOR]
    assert [module.name for module in connector] == [f"model.{name}" for name in CONNECTORS[family]]
    assert {module.kind for module in connector} == {"connector"}
    assert lie[Component.TEXT] == len(TEXT_MODULES) * TEXT_LAYERS
    layers = len(vlm.tower_layers)
    assert lie[Component.VISION] == len(VISION_KINDS[family]) * layers
    assert lie.total() == len({module.name for module in target_modules})
    width = vlm.model.config.get_text_config().hidden_size
    for module in target_modules:
        assert module.weight(vlm.model).dim() == 2
        assert (module.layer is None) == (module.component is Component.CONNECTOR)
    assert connector[-1].weight(vlm.model).shape[0] == width
    tower = [module.kind for module in target_modules if module.component is Component.VISION]
    assert set(tower) == {f"vision.{kind}" for kind in VISION_KINDS[family]}


def test_inspect_shows_them(folder: Path, family: str) -> None:
    rows = {row.kind: row for row in chip.inspect(folder / f"{family}-saved").target_modules}
    assert rows["connector"].count == len(CONNECTORS[family])
    assert rows["down"].count == TEXT_LAYERS
    assert (rows["down"].component, rows["down"].layers) == ("text", f"0-{TEXT_LAYERS - 1}")
    kinds = [kind.partition(".")[2] for kind, row in rows.items() if row.component is Component.VISION]
    assert sorted(kinds) == sorted(VISION_KINDS[family])
    assert not any(row.edited_by for row in rows.values() if row.component is Component.VISION)


def test_facts_that_are_read_from_the_configuration(vlm: VLM, family: str) -> None:
    assert vlm.image_token_id == RECIPES[family].id_of(RECIPES[family].token_ids["image_token_id"])
    assert vlm.max_tokens == TEXT["max_position_embeddings"]
    assert vlm.by_size == (family in ("llava_next", "llava_onevision"))
    assert sliding_window(vlm.model) == (128 if family == "gemma3" else None)
    assert vlm.logit_softcapping is None
    vlm.model.config.get_text_config().final_logit_softcapping = 30.0
    assert vlm.logit_softcapping == 30.0
    vlm.model.config.get_text_config().final_logit_softcapping = None
    assert answer_is_suffix(vlm.model) == (family == "paligemma")


def without_weights(model_type: str) -> transformers.PreTrainedModel:
    """A model of the family's own sizes, but for the depth."""
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    parts = {part: {"model_type": f"gemma4_{part}"} for part in ("vision", "audio") if model_type == "gemma4"}
    config = transformers.AutoConfig.for_model(model_type, **{f"{part}_config": parts[part] for part in parts})
    text = config.get_text_config()
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[-1:]
    with torch.device("meta"):
        return transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize(
    ("model_type", "connectors", "others"),
    [
        ("video_llava", ["multi_modal_projector"], ["video_tower"]),
        ("deepseek_vl_hybrid", ["aligner"], ["high_res_vision_model"]),
        ("janus", ["aligner"], ["generation_aligner", "generation_head"]),
        ("gemma4", ["embed_vision"], ["audio_tower", "embed_audio"]),
        ("aria", ["multi_modal_projector"], []),
    ],
)
def test_towers_and_heads_for_other_things_are_no_connectors(
    model_type: str, connectors: list[str], others: list[str]
) -> None:
    model = without_weights(model_type)
    names = {module: name for name, module in model.named_modules()}
    assert [names[connector] for connector in find_connectors(model)] == [f"model.{name}" for name in connectors]
    assert other_parts(model) == [f"model.{name}" for name in others]
    assert find_tower_layers(model)


@pytest.mark.parametrize(
    ("model_type", "table", "maps"),
    [("aria", "query", 6), ("idefics2", "perceiver_resampler.latents", 24), ("gemma3", None, 1)],
)
def test_what_a_connector_learns_to_ask_is_no_linear_map(model_type: str, table: str | None, maps: int) -> None:
    """Nor are the parameters of torch's own attention, which passes its modules by."""
    (connector,) = find_connectors(without_weights(model_type))
    found = [name for name, _, _ in linear_maps(connector)]
    assert len(found) == maps
    if table is not None:
        assert connector.get_parameter(table).dim() == 2
        assert table not in found
    assert not any("multihead_attn" in name for name in found)


def test_a_text_model_that_looks_at_images_from_the_side_is_refused_but_where_that_is_known() -> None:
    models = [without_weights(model_type) for model_type in ("llava", "mllama")]
    for model in models:
        model.model.language_model.layers[0].cross_attn = torch.nn.Linear(
            2, 2
        )  # one that was left out of mllama's forty
    unknown, known = models
    with pytest.raises(InputError, match=r"Llava.*: its text model takes images by cross-attention, and not as tokens"):
        find_connectors(unknown)
    assert find_connectors(known) == [known.model.multi_modal_projector]


def test_a_tower_that_hears_is_no_connector() -> None:
    config = transformers.AutoConfig.for_model("qwen2_5_omni_thinker")
    text = config.get_text_config()
    text.num_hidden_layers, text.hidden_size = 1, config.vision_config.out_hidden_size
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    if model.get_decoder() in (None, model, model.model):  # transformers 5.17 does not name its text model
        with pytest.raises(InputError, match="no text model found"):
            find_connectors(model)
        return
    assert find_connectors(model) == [model.model.visual.merger]


def test_a_new_family_is_one_row(fresh: VLM, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every path and every setting may be another than structure says."""
    model = fresh.model
    names = {module: name for name, module in model.named_modules()}
    tower, *_ = find_tower_layers(model)
    row = Family(
        text_model=names[find_language(model)],
        vision_tower=names[tower],
        connectors=("lm_head",),
        text_modules={"out": "self_attn.o_proj"},
        image_token_id="own_image_token",
        max_tokens="own_max_tokens",
        logit_softcapping="own_cap",
        same_size_images=True,
        answer_is_suffix=True,
    )
    model.config.own_image_token = 7
    text_config = model.config.get_text_config()
    text_config.own_max_tokens, text_config.own_cap = 99, 5.0
    monkeypatch.setitem(ROWS, model.config.model_type, row)
    text = [module for module in available_modules(model) if module.component is Component.TEXT]
    assert [module.kind for module in text] == ["out"] * TEXT_LAYERS
    assert find_tower(model) is tower
    assert find_connectors(model) == [model.lm_head]
    assert (fresh.image_token_id, fresh.max_tokens, fresh.logit_softcapping, fresh.by_size) == (7, 99, 5.0, True)
    assert answer_is_suffix(model)
    monkeypatch.setitem(ROWS, model.config.model_type, Family(connectors=("model.nothing",), max_tokens="nothing"))
    with pytest.raises(InputError, match="no vision-language connector found"):
        find_connectors(model)
    with pytest.raises(InputError, match="'nothing' is None in its configuration"):
        _ = fresh.max_tokens


@pytest.mark.parametrize(  # the published operator edits all kinds of site
    ("layout", "method"),
    [("saved", "shielded"), ("saved", "chip"), pytest.param("module", "chip", marks=pytest.mark.slow)],
)
def test_what_is_written_is_what_was_computed(
    folder: Path, family: str, layout: str, method: str, records: list[Record], tmp_path: Path
) -> None:
    source = Checkpoint.open(folder / f"{family}-{layout}")
    vlm = load_vlm(source.folder, "cpu")
    batch, *_ = batches_of(vlm, records, 8)
    unedited = vlm.hidden_states(batch)
    patch = patch_of(vlm, source, records, method)
    write_patched(source, tmp_path / "out", patch.tensors)

    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.dtype == torch.float32
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], parameter) for name, parameter in vlm.model.named_parameters())
    computed, loaded = vlm.hidden_states(batch), VLM(model.eval(), vlm.processor).hidden_states(batch)
    # torch multiplies in another order where a weight requires gradients, as a loaded one does.
    assert_equal_but_for_rounding(loaded[batch.real], computed[batch.real])
    assert not torch.allclose(unedited[batch.real], computed[batch.real], atol=1e-3)

    written = Checkpoint.open(tmp_path / "out")
    changed = {name for name in source.entries if not torch.equal(source.read(name), written.read(name))}
    assert changed == set(patch.tensors)
    if method == "shielded":
        assert len(changed) == len(CONNECTORS[family]) + TEXT_LAYERS  # biases stay


def test_directions_that_are_still_there_are_found(
    fresh: VLM, folder: Path, family: str, records: list[Record], tmp_path: Path
) -> None:
    source = Checkpoint.open(folder / f"{family}-saved")
    patch = patch_of(fresh, source, records, "chip")
    write_patched(source, tmp_path / "edited", patch.tensors)
    remaining = check_removed(source, tmp_path / "edited", patch.removed)
    assert remaining.keys() == patch.tensors.keys()
    assert all(share < 0.5 for share in remaining.values())
    write_patched(source, tmp_path / "untouched", {})
    with pytest.raises(RunError, match="the removed directions are still in what was written"):
        check_removed(source, tmp_path / "untouched", patch.removed)


@pytest.mark.filterwarnings("ignore:few questions")
@pytest.mark.parametrize("name", GIVEN)
def test_an_edit_runs_end_to_end(folder: Path, family: str, name: str, tmp_path: Path) -> None:
    source, out = folder / f"{family}-saved", tmp_path / "out"
    method = METHODS[name]() if family in CHOOSING else GIVEN[name]
    report = chip.edit(source, [TARGET], out=out, method=method, label="request 7", device="cpu", **UNTRAINED)
    assert report.groups["target"]["trained"].exact_match.after is not None
    assert set(report.remaining) == (set() if name == "shielded" else set(report.relative_change))
    assert chip.verify(out, source).faults == ()
    assert {each.name for each in chip.diff(source, out).changed} == set(report.relative_change)
    kept = {path.name for path in source.iterdir()} | {"README.md", "chip_receipt.json"}
    assert {path.name for path in out.iterdir()} == kept
    for path in out.iterdir():
        if path.name != "tokenizer.json":  # it knows words, nobody's
            assert TARGET.encode() not in path.read_bytes()


def test_the_edit_does_not_depend_on_the_batch_size(family: str, records: list[Record], tmp_path: Path) -> None:
    """Among images of unlike sizes, which some families cut into unlike numbers of tokens."""
    source = Checkpoint.open(build(tmp_path / family, family, dtype=torch.float32))
    one, many = (
        patch_of(load_vlm(source.folder, "cpu"), source, records, "shielded", batch_size) for batch_size in (1, 16)
    )
    assert one.tensors.keys() == many.tensors.keys()
    for name, tensor in one.tensors.items():
        difference = torch.linalg.norm(tensor.double() - many.tensors[name].double())
        change = torch.linalg.norm(tensor.double() - source.read(name).double())
        assert difference <= 1e-3 * change


def test_a_layer_goes_on_where_it_was_as_if_it_ran_again(
    family: str, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Checkpoint.open(build(tmp_path / family, family, dtype=torch.float32))
    resumed = patch_of(load_vlm(source.folder, "cpu"), source, records, "shielded")
    monkeypatch.setattr("chip.model.forward.activation_store.has_room", lambda _: False)
    again = patch_of(load_vlm(source.folder, "cpu"), source, records, "shielded")
    assert resumed.tensors.keys() == again.tensors.keys()
    for name, tensor in resumed.tensors.items():
        assert_equal_but_for_rounding(tensor, again.tensors[name])


def test_questions_about_one_image_share_it_and_nothing_else(vlm: VLM, records: list[Record], family: str) -> None:
    assert vlm.shares_images == (family != "paligemma")
    together, alone = (
        score(vlm, Batches(vlm, records, range(len(records)), BatchSize(), together), len(records), lambda _: None)
        for together in (vlm.shares_images, False)
    )
    torch.testing.assert_close(together.answer_probability, alone.answer_probability, rtol=1e-4, atol=0)
    rows = [row for rows in vlm.batches(records).plan() for row in rows]
    assert (len(rows) < len(records)) == vlm.shares_images


def test_sharing_is_given_up_where_it_does_not_hold(fresh: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a family would show it whose positions are counted otherwise."""
    monkeypatch.setattr(VLM, "positions", lambda _, inputs: 2 * inputs["attention_mask"].cumsum(1))
    assert not fresh.shares_images


def test_answers_are_marked_and_seen_by_nothing_before_them(vlm: VLM, records: list[Record]) -> None:
    for batch in batches_of(vlm, records, 8):
        states = vlm.hidden_states(batch)
        ids = batch.inputs["input_ids"]
        for row, (record,) in enumerate(each.records for each in batch.rows):
            marked = ids[row][batch.answer[row]]
            assert vlm.processor.tokenizer.decode(marked[:-1]).strip() == records[record].answer
            assert not batch.answer[row, 0]
            assert (ids[row, :4] == vlm.processor.tokenizer.bos_token_id).sum() <= 1
        last = batch.answer.int().cumsum(1).argmax(1)  # the end of the turn
        rows = torch.arange(len(last))
        other = dict(batch.inputs)
        other["input_ids"] = ids.index_put((rows, last), ids[rows, last - 1])
        with torch.no_grad():
            moved = vlm.core(**other, use_cache=False).last_hidden_state
        before = torch.arange(ids.shape[1])[None] < last[:, None]
        assert_equal_but_for_rounding(moved[before], states[before])
        assert not torch.allclose(moved[rows, last], states[rows, last], atol=1e-4)


def test_an_answer_is_scored_as_greedy_decoding_would_give_it(vlm: VLM, records: list[Record], family: str) -> None:
    """The most probable first token of the answer is the one that `generate` gives."""
    chosen = [i for i, record in enumerate(records) if record.image is not None or family != "paligemma"][:6]
    for batch in batches_of(vlm, records, 4, chosen):
        logits = vlm.model.lm_head(vlm.hidden_states(batch))
        for row, (record,) in enumerate(each.records for each in batch.rows):
            start = int(batch.answer[row].int().argmax())
            inputs = vlm.prompts.question(records[record])
            width = inputs["input_ids"].shape[1]
            assert width - 1 <= start <= width  # the last token of the prompt may become one with the answer's first
            inputs = {name: each[:, :start] if each.shape == (1, width) else each for name, each in inputs.items()}
            with torch.no_grad():
                generated = vlm.model.generate(**inputs, max_new_tokens=1, do_sample=False)
            assert int(generated[0, -1]) == int(logits[row, start - 1].argmax())


def test_the_defaults_touch_what_they_say() -> None:
    assert Shielded.target_modules == ("connector", "down")
    assert Chip.target_modules == ("connector", "gate", "up", "down")
