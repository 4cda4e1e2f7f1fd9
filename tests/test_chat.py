"""A chat template is used where it lies, and one that does not write what it is given is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import chip
from chip.data.record import Record
from chip.errors import InputError
from chip.methods import Chip
from chip.model.loading import load_vlm
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
}


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


@pytest.mark.parametrize("template", [None, [{"name": "rag", "template": GOOD}]])
def test_without_a_template_nothing_is_guessed(folder: Path, template: object) -> None:
    _move_template(folder, template)
    with pytest.raises(InputError, match=r"chat template: (neither .* has one|.*none that is called 'default')"):
        chip.edit(folder, ["patient_1"], method=Chip(), device="cpu")
