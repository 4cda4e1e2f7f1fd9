"""The page of a comparison: what it says, that it needs nothing else, and that a browser shows it well."""

import html
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from chip.checkpoint.change_map import SHADES
from chip.checkpoint.diff import CheckpointDiff, ShapeDiff
from chip.checkpoint.tensor_diff import DIRECTIONS, TensorDiff
from chip.errors import InputError
from chip.report.formatting import percent
from chip.report.html.coordinates import decay_plot
from chip.report.html.diff import diff_page
from chip.report.html.page import check_page, write_page
from chip.report.html.receipt import receipt_in

EVIL = '<script>alert("x")</script>'
TEMPLATES = Path(__file__).parents[1] / "chip" / "report" / "html" / "templates"
KEPT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
EDITED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

Browse = Callable[..., str]


def changed(name: str, share: float, **more: Any) -> TensorDiff:
    energy = tuple(zip(DIRECTIONS, (0.4, 0.9, 1.0), strict=True))
    spectrum = tuple(0.9**i for i in range(64))
    return TensorDiff(name, (3584, 18944), "BF16", True, share, 0.5, 6.5, 1.0, energy, spectrum, 1.0, share, **more)


@pytest.fixture
def difference() -> CheckpointDiff:
    """A large model of which much changed, with long names, and with everything else that can differ."""
    same = [
        TensorDiff(f"model.language_model.layers.{layer}.{kind}.weight", (3584, 3584), "BF16", changed=False)
        for layer in range(28)
        for kind in KEPT
    ]
    text = [
        changed(f"model.language_model.layers.{layer}.{kind}.weight", 0.001 * 1.15**layer)
        for layer in range(28)
        for kind in EDITED
    ]
    vision = [changed(f"model.visual.blocks.{i}.attn.qkv.weight", 0.01, name_in_b=f"visual.{i}") for i in range(3)]
    bias = TensorDiff("multi_modal_projector." + "long_" * 20 + "name.bias", (8,), "F32 -> BF16", True, math.inf, 1.0)
    return CheckpointDiff(
        (*same, *text, *vision, bias, changed(f"{EVIL}.weight", 0.3)),
        (ShapeDiff("model.embed_tokens.weight", (100, 8), (104, 8)),),
        ("lm_head.weight",),
        tuple(f"extra.{'part.' * 30}{i}" for i in range(300)),
    )


RECEIPT: dict[str, Any] = {
    "receipt": 1,
    "chip": "0.1.0",
    "created": "2026-01-31T12:00:00Z",
    "label": f"request 41 {EVIL}",
    "method": "shielded",
    "settings": {"shield": 8.0, "sites": ["connector", "down"], "inner": {"near": 0.35}, "none": None},
    "seed": 7,
    "files": {
        "config.json": {"bytes": 10, "sha256": "a" * 64, "source_sha256": "a" * 64},
        "model-00001-of-00002.safetensors": {"bytes": 10, "sha256": "b" * 64, "source_sha256": "c" * 64},
        "model-00002-of-00002.safetensors": {"bytes": 10, "sha256": "d" * 64, "source_sha256": "d" * 64},
    },
    "tensors": {"model.language_model.layers.0.mlp.up_proj.weight": {}},
    "read_back": {"files": 3, "untouched_bytes": 1234567, "equal": True},
    "previous": {"method": "chip", "previous": None},
    "digest": "e" * 64,
}


def text_of(page: str) -> str:
    """What a reader sees, with single spaces."""
    body = re.sub(r"(?s)<(style|title)>.*?</\1>", " ", page)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", body)))


def test_the_page_says_what_differs_in_plain_words(difference: CheckpointDiff) -> None:
    page = text_of(diff_page(difference, "/home/somebody/before", "after", None))
    for words in (
        "Abefore → Bafter",
        "89 of 201 tensors differ; the other 112 are the same, bit for bit.",
        "In the text model: gate, up and down of all layers, by",
        "In the vision tower: qkv of all layers, by 1.0% of their norm.",
        "1 tensor cannot be compared: the shapes differ.",
        "1 tensor is only in A.",
        "300 tensors are only in B.",
        "lm_head.weight",
        "100 × 8 in A, 104 × 8 in B",
        "and 100 more",
        "F32 → BF16",
        "in B visual.2",
    ):
        assert words in page
    assert "somebody" not in page
    assert "receipt" not in page


def test_every_cell_of_the_map_tells_its_number(difference: CheckpointDiff) -> None:
    page = diff_page(difference, "a", "b", None)
    cells = re.findall(r'<td class="heat-(\d)" title="layer (\d+), mlp\.down_proj: ([\d.]+%), 1 of 1', page)
    assert [int(layer) for _, layer, _ in cells] == [*range(28)]
    assert cells[0][2] == "0.10%"
    shades = [int(shade) for shade, _, _ in cells]
    assert shades == sorted(shades)
    assert set(shades) <= set(range(1, SHADES + 1))
    assert page.count('class="same" title="layer 3, self_attn.q_proj: unchanged" aria-label="unchanged"') == 1
    assert page.count("<figure") == 5  # one for each kind with a spectrum
    assert page.count("<path ") == 3 * 28 + 3 + 1


def test_a_receipt_is_shown(difference: CheckpointDiff) -> None:
    page = text_of(diff_page(difference, "a", "b", RECEIPT))
    for words in ("request 41", "shielded", "2026-01-31T12:00:00Z", "connector, down", "1,234,567", "b" * 64, "e" * 64):
        assert words in page
    assert "It names 1 changed tensor, of which 1 differ from A; 88 tensors more differ." in page
    assert "Edits before this onechip" in page
    assert "a" * 64 not in page  # only shards that changed
    assert "d" * 64 not in page


@pytest.mark.parametrize("missing", [*RECEIPT, "all"])
@pytest.mark.parametrize("other", [None, 3, "text", [1], {"x": 1}])
def test_a_receipt_of_another_form_is_shown_as_far_as_it_goes(missing: str, other: object) -> None:
    receipt = {key: other if missing in (key, "all") else value for key, value in RECEIPT.items()}
    difference = CheckpointDiff((changed("x.weight", 0.1),), (), (), ())
    assert "The receipt in B" in diff_page(difference, "a", "b", receipt)
    del receipt[missing if missing != "all" else "method"]
    assert "The receipt in B" in diff_page(difference, "a", "b", receipt)


def test_a_receipt_is_read_from_the_folder(tmp_path: Path) -> None:
    assert receipt_in(tmp_path) is None
    file = tmp_path / "chip_receipt.json"
    file.write_text(json.dumps(RECEIPT))
    assert receipt_in(tmp_path) == RECEIPT
    for broken in (b"{", b"[]", b"\xff", b"[" * 100_000):
        file.write_bytes(broken)
        assert receipt_in(tmp_path) == {}
    equal = CheckpointDiff((), (), (), ())
    assert "B holds a receipt that cannot be read" in diff_page(equal, "a", "b", {})


def test_equal_checkpoints_have_a_short_page() -> None:
    same = TensorDiff("x", (2,), "F32", changed=False)
    page = text_of(diff_page(CheckpointDiff((same, same), (), (), ()), "a", "b", None))
    assert "Nothing. Both hold the same 2 tensors, bit for bit." in page
    assert "Where" not in page


def test_the_page_holds_all_it_needs_and_runs_nothing(difference: CheckpointDiff) -> None:
    page = diff_page(difference, f"a{EVIL}".replace("/", ""), "b", RECEIPT)
    assert "<script" not in page
    assert not re.search(r"(?i)https?:|\bsrc=|\bhref=|url\(|@import|\son\w+=", page.replace("http-equiv", ""))
    assert "default-src 'none'" in page


def test_writing_is_refused_in_one_line(tmp_path: Path) -> None:
    for file in (tmp_path / "missing" / "page.html", tmp_path):
        with pytest.raises(InputError, match="folder"):
            check_page(file)
        with pytest.raises(InputError, match="folder"):
            write_page(file, "")
    first, second = (f"{text} Written by chip {version}." for text, version in (("first", "0.1.0"), ("ä", "2")))
    write_page(tmp_path / "page.html", first)
    write_page(tmp_path / "page.html", second)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == second
    with pytest.raises(InputError, match="cannot be written"):
        write_page(tmp_path / ("x" * 300), "")


def test_a_page_takes_nobodys_place(difference: CheckpointDiff, tmp_path: Path) -> None:
    """It may take that of another page, or of an empty file."""
    page, records = tmp_path / "page.html", tmp_path / "records.jsonl"
    page.touch()
    for name in "ab":
        write_page(page, diff_page(difference, name, "b", RECEIPT))
    records.write_text('{"question": "who"}')
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "link.html").symlink_to(records)
    for name in ("records.jsonl", "link.html", "pipe", "circle"):
        with pytest.raises(InputError, match=f"{name}: (is there already|cannot be written)"):
            write_page(tmp_path / name, "")
    assert records.read_text() == '{"question": "who"}'
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "ckpt")
    for place in (tmp_path / "ckpt", tmp_path / "alias"):
        with pytest.raises(InputError, match="lies in a checkpoint"):
            check_page(place / "page.html", tmp_path / "other", tmp_path / "ckpt")
    check_page(page, tmp_path / "ckpt")


@pytest.mark.parametrize(
    ("share", "text"),
    [
        *((0, "0%"), (0.0123, "1.2%"), (0.5, "50%"), (0.09999, "10%"), (0.000341, "0.034%"), (1e-9, "<0.001%")),
        *((1.26, "126%"), (50, ">1000%"), (math.inf, "∞"), (0.00001, "0.0010%")),
    ],
)
def test_percentages_have_two_digits_that_count(share: float, text: str) -> None:
    assert percent(share) == text


def test_a_plot_keeps_to_its_frame() -> None:
    plot = decay_plot([("falls", [4.0, 0.4, 1e-9]), ("alone", [2.0]), ("none", [])], DIRECTIONS)
    assert [label for label, _ in plot.lines] == ["falls", "alone"]
    falls, alone = (path for _, path in plot.lines)
    assert falls.count(",") == 2  # what is below the frame is not drawn
    assert alone.endswith("h0")  # a dot
    corners = [tuple(map(float, corner.split(","))) for corner in falls[1:].split()]
    frame = plot.frame
    assert all(frame.left <= x <= frame.right and frame.top <= y <= frame.bottom for x, y in corners)
    assert plot.x_ticks[0] == (frame.left, "1")
    assert plot.x_ticks[-1] == (frame.right, "64")


def _luminance(color: str) -> float:
    """Relative luminance of `#rrggbb`, as WCAG 2 defines it."""
    parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_shades_ascend_and_their_numbers_can_be_read(mode: int) -> None:
    style = (TEMPLATES / "page.css").read_text()
    colors = [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    light = {name: _luminance(color) for name, color in colors[mode].items()}

    def contrast(a: str, b: str) -> float:
        low, high = sorted((light[a], light[b]))
        return (high + 0.05) / (low + 0.05)

    heat = [light[f"heat-{shade}"] for shade in range(1, SHADES + 1)]
    assert heat == sorted(heat, reverse=mode == 0)  # more change, further from the page's ground
    assert all(contrast(f"heat-{shade}", f"on-{shade}") >= 4.5 for shade in range(1, SHADES + 1))
    assert contrast("ground", "ink") > 10
    assert min(contrast("ground", "quiet"), contrast("card", "quiet")) >= 4.5


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Opens a page in a headless Chromium with options; gives what that prints."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next((path for name in names if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium here")

    def run(page: str, *options: str) -> str:
        (tmp_path / "page.html").write_text(page, encoding="utf-8")
        fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [program, *fixed, profile, *options, (tmp_path / "page.html").as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout

    return run


FRAMES = """<!doctype html><meta charset="utf-8"><body>
<iframe width="360" height="800" srcdoc="{page}"></iframe><iframe width="1280" height="800" srcdoc="{page}"></iframe>
<pre id="measured"></pre>
<script>
addEventListener("load", () => {{
  const measured = Array.from(frames, (frame) => {{
    const root = frame.document.documentElement;
    return {{
      width: frame.innerWidth,
      scrolls: root.scrollWidth,
      heat: frame.getComputedStyle(frame.document.querySelector(".heat-7")).backgroundColor,
      requests: frame.performance.getEntriesByType("resource").length,
      scripts: frame.document.scripts.length,
    }};
  }});
  document.getElementById("measured").textContent = JSON.stringify(measured);
}});
</script>"""


@pytest.mark.slow
def test_a_browser_shows_it_on_a_phone_without_scrolling_sideways(difference: CheckpointDiff, browse: Browse) -> None:
    page = diff_page(difference, "before-" * 12, "after-" * 12, RECEIPT)
    shown = browse(FRAMES.format(page=html.escape(page)), "--virtual-time-budget=5000", "--dump-dom")
    (measured,) = re.findall(r'<pre id="measured">(.*?)</pre>', shown)
    expected = {"heat": "rgb(27, 63, 107)", "requests": 0, "scripts": 0}
    assert json.loads(html.unescape(measured)) == [{"width": w, "scrolls": w, **expected} for w in (360, 1280)]


@pytest.mark.slow
def test_dark_mode_is_dark(difference: CheckpointDiff, browse: Browse, tmp_path: Path) -> None:
    page, corners = diff_page(difference, "a", "b", None), []
    for scheme in ("0", "1"):  # Blink's numbers for dark and light
        picture = tmp_path / f"{scheme}.png"
        colors = f"--blink-settings=preferredColorScheme={scheme}"
        browse(page, colors, "--window-size=600,900", f"--screenshot={picture}")
        with Image.open(picture) as image:
            shown = image.convert("RGB")
        corners.append(shown.getpixel((2, 2)))
        assert len(shown.getcolors(shown.width * shown.height) or ()) > 20  # text, and the map's shades
    assert corners == [(0x13, 0x17, 0x1A), (0xFC, 0xFC, 0xFA)]
