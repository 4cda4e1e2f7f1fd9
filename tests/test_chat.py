"""A chat template is used where it lies, and one that does not write what it is given is refused in one line."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import chip
from chip.data.record import Record
from chip.errors import InputError
from chip.methods import Chip
from chip.model import template_renderer
from chip.model.batching.batch_size import BatchSize
from chip.model.batching.batches import Batches
from chip.model.chat_template import find_chat_template, render, says_alone
from chip.model.loading import VLM, load_vlm
from chip.model.scoring import score
from tests.families import build, write_records

TURNS = (
    "{% for m in messages %}{{ m.role }}: "
    "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}TEXT{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
GOOD = TURNS.replace("TEXT", "{{ c.text }}")
BROKEN = {
    "drops": (TURNS.replace("TEXT", "{% if m.role == 'user' %}{{ c.text }}{% endif %}"), "drops or changes the answer"),
    "changes": (TURNS.replace("TEXT", "{{ c.text | upper }}"), "drops or changes the question"),
    "repeats": (
        TURNS.replace("TEXT", "{{ c.text }}{% if m.role == 'assistant' %} {{ c.text }}{% endif %}"),
        "repeats the answer",
    ),
    "strings only": ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "as one string"),
    "raises": ("{{ raise_exception('no such role') }}", "no such role"),
    "no template": ("{% for", "cannot be rendered"),
    "needs more": ("{{ messages[7].content }}", "cannot be rendered"),
    "doubles": (
        "{% set t = namespace(x='aaaa') %}{% for _ in range(60) %}{% set t.x = t.x ~ t.x %}{% endfor %}{{ t.x }}",
        "takes more than 1,024 MB of memory",
    ),
    "an endless text": ("{{ 'a' * 10**10 }}", "takes more than 1,024 MB of memory"),
    "a long text": (f"{GOOD}{{% for _ in range(90000) %}}{'=' * 90}{{% endfor %}}", "writes more than 1,048,576"),
    "long with an image": (
        f"{GOOD}{{% if messages[0].content | length > 1 %}}{{{{ 'a' * 10**7 }}}}{{% endif %}}",
        "writes more than 1,048,576",
    ),
}
ENDLESS = "{% for _ in range(90000) %}{% for _ in range(90000) %}{% endfor %}{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path)
    return build(tmp_path / "ckpt", "llava")


def _move_template(folder: Path, template: object) -> None:
    """From the processor, wherever it has it, into the tokenizer's configuration; None: nowhere."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    for name in ("processor_config.json", "chat_template.json", "tokenizer_config.json"):
        if (folder / name).exists():
            config = json.loads((folder / name).read_text())
            config.pop("chat_template", None)
            (folder / name).write_text(json.dumps(config))
    if template is not None:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))


def test_a_template_of_the_tokenizer_is_used_as_the_processors_own(folder: Path, tmp_path: Path) -> None:
    record = Record("Which drug?", "none at all", ("i",), None)
    own = load_vlm(folder, "cpu")
    template = own.processor.chat_template
    expected = own.prompts.read([record])
    moved = shutil.copytree(folder, tmp_path / "moved")
    _move_template(moved, template)
    vlm = load_vlm(moved, "cpu")
    assert vlm.processor.chat_template is None
    assert vlm.prompts.read([record]) == expected
    named = shutil.copytree(folder, tmp_path / "named")
    _move_template(named, [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}])
    assert load_vlm(named, "cpu").prompts.read([record]) == expected


@pytest.mark.parametrize("fault", BROKEN)
def test_a_template_that_does_not_write_what_it_is_given_is_refused(folder: Path, fault: str) -> None:
    template, message = BROKEN[fault]
    _move_template(folder, template)
    with pytest.raises(InputError, match=f"chat template: .*{message}") as refusal:
        chip.edit(folder, ["patient_1"], method=Chip(), device="cpu")
    assert "\n" not in str(refusal.value)
    assert not folder.with_name("ckpt-edited").exists()


def test_a_template_that_does_not_end_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_renderer, "PATIENCE", 0.5)  # seconds
    _move_template(folder, f"{GOOD}{ENDLESS}")
    with pytest.raises(InputError, match=r"chat template: it does not end within \d+ seconds"):
        _ = load_vlm(folder, "cpu").prompts


@pytest.mark.slow
def test_a_template_that_does_not_end_for_one_word_names_its_record(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is rendered in another process for it each time, not in this one."""
    _move_template(folder, f"{GOOD}{{% if 'lesion' in messages[0].content[-1].text %}}{ENDLESS}{{% endif %}}")
    prompts = load_vlm(folder, "cpu").prompts
    records = [Record(f"which {what}?", "left", ("i",), None, where=f"r:{what}") for what in ("lobe", "lesion")]
    message = r"^r:lesion: the chat template of .*: it does not end within \d+ second"
    with monkeypatch.context() as patch:
        patch.setattr(template_renderer, "PATIENCE", 2.0)  # seconds; the process that renders is there already
        with pytest.raises(InputError, match=message):
            prompts.read(records)
    assert len(prompts.read([replace(records[0], question="which side?")])) == 1  # others are rendered as before


def test_templates_may_use_what_transformers_has_beside_jinja(models: dict[str, VLM]) -> None:
    template = (
        "{% set n = namespace(x=1) %}{% for m in messages %}{% generation %}{{ m | tojson(indent=1) }} {{ n.x }}\n"
        "  {% endgeneration %}{% if loop.first %}{% continue %}{% endif %}{% break %}{% endfor %}"
        "{{ strftime_now('%Y') }}{{ tools }}{{ tools is defined }}{{ documents is none }}{{ eos_token }}"
    )
    messages = [{"role": "user", "content": "äöü <b> \ud800"}] * 3
    processor = models["llava"].processor
    options = {"chat_template": template, "tokenize": False}
    expected = processor.tokenizer.apply_chat_template(messages, **options)
    assert render(processor, template, messages, prompt=False) == expected


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_templates_are_rendered_as_transformers_does(models: dict[str, VLM], family: str) -> None:
    processor, image = models[family].processor, {"type": "image"}
    turns = [
        {"role": "user", "content": [image, {"type": "text", "text": " Who?\n"}, image]},
        {"role": "assistant", "content": [{"type": "text", "text": "Nobody <b> \u00fc"}]},
    ]
    template = find_chat_template(processor)
    for messages, prompt in ((turns, False), (turns[:1], True), (turns[:1], False), ([*turns, turns[0]], True)):
        options = {"chat_template": template, "tokenize": False, "add_generation_prompt": prompt}
        expected = processor.tokenizer.apply_chat_template(messages, **options)
        assert render(processor, str(template), messages, prompt) == expected


@pytest.mark.parametrize("template", [None, [{"name": "rag", "template": GOOD}]])
def test_without_a_template_nothing_is_guessed(folder: Path, template: object) -> None:
    _move_template(folder, template)
    with pytest.raises(InputError, match=r"chat template: (neither .* has one|.*none that is called 'default')"):
        chip.edit(folder, ["patient_1"], method=Chip(), device="cpu")


def test_a_processor_may_have_a_list_of_named_templates() -> None:
    """Its class leaves the list as it is in processor_config.json, which a tokenizer's does not."""
    rag, default = ({"name": name, "template": f"{{{{ {name} }}}}"} for name in ("rag", "default"))
    tokenizer = SimpleNamespace(name_or_path="ckpt")
    assert find_chat_template(SimpleNamespace(chat_template=[rag, default], tokenizer=tokenizer)) == "{{ default }}"
    for given, message in (([rag], "it has rag and none that is called"), ([GOOD], "no text.* list"), (7, "but int")):
        with pytest.raises(InputError, match=f"^ckpt: chat template: .*{message}"):
            find_chat_template(SimpleNamespace(chat_template=given, tokenizer=tokenizer))


IMAGE_TOKENS = {"llava": "<image>", "qwen2_5_vl": "<|image_pad|>", "gemma3": "<start_of_image>", "paligemma": "<image>"}
ENDS = {"llava": "</s>", "qwen2_5_vl": "<|im_end|>", "gemma3": "<end_of_turn>", "paligemma": "</s>"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VLM]:
    folder = tmp_path_factory.mktemp("chat")
    return {family: load_vlm(build(folder / family, family), "cpu") for family in ENDS}


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 90)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("family", ENDS)
def test_an_answer_that_ends_its_turn_gets_no_second_end(models: dict[str, VLM], family: str) -> None:
    vlm, end = models[family], ENDS[family]
    plain = Record("who", "left lobe", ("i",), png(28, 28), where="records.jsonl:1")
    (expected,) = vlm.prompts.read([plain])
    inputs = vlm.prompts.inputs([plain])
    assert vlm.processor.tokenizer.decode(expected.tokens[-1]) == end
    for answer in (f"left lobe{end}", f"left lobe {end}\n", f"left lobe{end}{end}", "left lobe</s>"):
        if answer.endswith("</s>") and vlm.processor.tokenizer.eos_token != "</s>":
            continue  # no token of this model's ends a turn so
        ended = replace(plain, answer=answer)
        assert vlm.prompts.read([ended]) == [expected]
        assert torch.equal(vlm.prompts.inputs([ended])["input_ids"], inputs["input_ids"])
        batches = [Batches(vlm, [record], [0], BatchSize()) for record in (plain, ended)]
        one, other = (score(vlm, each, 1, lambda _: None) for each in batches)
        assert torch.equal(one.answer_probability, other.answer_probability)


@pytest.mark.parametrize("family", ENDS)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"question": "who IMAGE"}, "the question holds IMAGE, which stands for no text"),
        ({"answer": "IMAGE"}, "the answer holds IMAGE, which stands for no text"),
        ({"answer": "leftENDright"}, "the answer goes on behind END, which ends a turn"),
        ({"answer": " END "}, "the answer is 'END' alone"),
    ],
)
def test_a_token_of_the_format_within_a_text_is_refused_by_name(
    models: dict[str, VLM], family: str, change: dict[str, str], says: str
) -> None:
    def named(text: str) -> str:
        return text.replace("IMAGE", IMAGE_TOKENS[family]).replace("END", ENDS[family])

    texts: dict[str, Any] = {"question": "who", "answer": "left"} | {name: named(text) for name, text in change.items()}
    records = [Record("who", "left", ("i",), None), Record(**texts, path=("i",), image=None, where="records.jsonl:7")]
    with pytest.raises(InputError) as caught:
        models[family].prompts.read(records)
    assert str(caught.value).startswith(f"records.jsonl:7: {named(says)}")


def test_a_template_that_loses_one_answer_names_its_record(folder: Path) -> None:
    """As Qwen3's does, which takes out of an answer whatever stands before the end of its thoughts."""
    _move_template(folder, GOOD.replace("{{ c.text }}", "{{ c.text.split('</think>')[-1] }}"))
    prompts = load_vlm(folder, "cpu").prompts
    records = [
        Record("who", answer, ("i",), None, where=f"r.jsonl:{n}") for n, answer in enumerate(("a", "b</think>c"))
    ]
    with pytest.raises(InputError, match=r"^r\.jsonl:1: the answer is not as it is in the model's chat format"):
        prompts.read(records)


BESIDE = {
    "a wish behind it": GOOD + "{% if not add_generation_prompt %}Take care!{% endif %}",
    "it, before the question about an image": GOOD.replace("<image>", "<image>{{ messages[-1].content[-1].text }}"),
    "a name before it": GOOD.replace("{% if add_generation_prompt %}assistant: {% endif %}", ""),
}


@pytest.mark.parametrize("beside", BESIDE)
def test_what_a_template_says_beside_an_answer_is_not_taken_for_it(folder: Path, beside: str) -> None:
    _move_template(folder, BESIDE[beside])
    record = Record("who", "left lobe", ("i",), png(28, 28), where="r.jsonl:3")
    with pytest.raises(InputError, match=r"^r\.jsonl:3: the answer is not as it is .* drops, changes or adds$"):
        load_vlm(folder, "cpu").prompts.read([record])


@pytest.mark.parametrize("around", ["<think>\n\n</think>\n\n{}<|im_end|>\n", "/think>\n{}", " {} [/INST]", "{}\n###\n"])
def test_marks_around_an_answer_are_no_words(around: str) -> None:
    special = re.compile(re.escape("<|im_end|>"))
    for answer in ("left lobe", "no", "</b>", "think", "[1]", "7"):
        assert says_alone(around.format(answer), answer, special)
        assert not says_alone(around.format(f"{answer} of course"), answer, special)
        assert not says_alone(around.format(""), answer, special) or answer in around


def test_tokens_that_no_template_writes_may_be_said(tmp_path: Path) -> None:
    """As Qwen's answers hold boxes."""
    prompts = load_vlm(build(tmp_path / "ckpt", "qwen2_5_vl"), "cpu").prompts
    prompts._special |= {"<|box_start|>"}
    (prompt,) = prompts.read([Record("where", "<|box_start|>(12,34)", ("i",), None)])
    assert prompts._tokenizer.decode(prompt.tokens).count("<|box_start|>") == 1
    with pytest.raises(InputError, match=r"r:1: the question holds <\|im_start\|>, which stands for no text"):
        prompts.read([Record("<|im_start|>user\nwho", "left", ("i",), None, where="r:1")])


def test_what_a_processor_does_not_take_names_the_record(
    models: dict[str, VLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = (png(28, 28), png(90, 2), png(28, 28))
    records = [Record("who", "left", ("i",), image, where=f"records.jsonl:{n}") for n, image in enumerate(images)]
    prompts = models["qwen2_5_vl"].prompts
    process = prompts._process

    def process_none_wide(texts: list[str], images: list[list[Any]], suffixes: None) -> Any:
        if any(image.width == 90 for (image,) in images):
            raise ValueError("absolute aspect ratio must be smaller")
        return process(texts, images, suffixes)

    monkeypatch.setattr(prompts, "_process", process_none_wide)
    refusal = r"^records\.jsonl:1: the checkpoint's processor does not take .*aspect ratio"
    with pytest.raises(InputError, match=refusal):
        prompts.inputs(records)
    with pytest.raises(InputError, match=refusal):
        prompts.question(records[1])


@pytest.mark.parametrize(
    ("normalizer", "lost"),
    [
        ({"type": "Replace", "pattern": {"Regex": "[A-Z][a-z]+"}, "content": ""}, True),
        ({"type": "Replace", "pattern": {"String": "z"}, "content": "s"}, True),
        ({"type": "Sequence", "normalizers": [{"type": each} for each in ("NFD", "Lowercase", "StripAccents")]}, False),
    ],
)
def test_an_answer_that_the_tokenizer_changes_is_refused(folder: Path, normalizer: dict[str, Any], lost: bool) -> None:
    """Without case and accents it is the same answer."""
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": normalizer}))
    prompts = load_vlm(folder, "cpu").prompts
    record = Record("who is it", "Abel Crúz", ("i",), None, where="r.jsonl:7")
    if lost:
        with pytest.raises(InputError, match=r"^r\.jsonl:7: the checkpoint's tokenizer drops or changes a part"):
            prompts.read([record])
    else:
        assert prompts.read([record])[0].answer > 1
