"""What `chip inspect --records` says of attention sinks, against what a hook sees of the same records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import chip
from chip.data.readers import read_records
from chip.model.batching.batch_size import BatchSize
from chip.model.loading import load_vlm
from chip.sinks import LargestToken, largest_tokens
from tests.families import build, write_records


def test_the_largest_token_is_that_of_all_inputs(tmp_path: Path) -> None:
    records = write_records(tmp_path)
    folder = build(tmp_path / "ckpt", "llava")
    few = read_records(records)[:32]
    vlm = load_vlm(folder, "cpu")
    down = vlm.layers[1].mlp.down_proj
    seen: list[Tensor] = []
    batches = list(vlm.batches(few, size=BatchSize(4)).made())
    handle = down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for batch in batches:
        vlm.hidden_states(batch)
        seen[-1] = seen[-1][batch.real]
    handle.remove()
    squares = torch.cat(seen).double().square().sum(1)

    rows = largest_tokens(vlm, few)
    (row,) = [row for row in rows if row.module.endswith("layers.1.mlp.down_proj")]
    assert row.share == pytest.approx(float(squares.max() / squares.sum()), rel=1e-4)
    assert row.ratio == pytest.approx(float(squares.max() / squares.median()) ** 0.5, rel=1e-4)
    assert any("multi_modal_projector" in row.module for row in rows)

    inspection = chip.inspect(folder, records, device="cpu")
    assert [row.module for row in inspection.largest_tokens] == [row.module for row in rows]
    assert chip.inspect(folder).largest_tokens == ()


def test_a_sink_is_seen(tmp_path: Path) -> None:
    """The first token of each sequence gets an input a thousand times longer."""
    records = read_records(write_records(tmp_path))
    vlm = load_vlm(build(tmp_path / "ckpt", "llava"), "cpu")
    before = _row(largest_tokens(vlm, records), "layers.0")

    def lengthen(_: Any, __: Any, output: Tensor) -> Tensor:
        longer = output.clone()
        longer[:, 0] *= 1000
        return longer

    handle = vlm.layers[0].mlp.act_fn.register_forward_hook(lengthen)
    after = _row(largest_tokens(vlm, records), "layers.0")
    handle.remove()
    assert before.ratio < 20 < after.ratio
    assert after.share > before.share


def _row(rows: list[LargestToken], layer: str) -> LargestToken:
    (row,) = [row for row in rows if f"{layer}.mlp.down_proj" in row.module]
    return row
