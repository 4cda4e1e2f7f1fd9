"""Several processes that share an edit: as one would do it, or nothing at all."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

import chip
from chip import distributed
from chip.checkpoint.layout import Checkpoint
from chip.distributed import distributed_context
from tests.families import GIVEN, UNTRAINED, UNTRAINED_OPTIONS, build_with_records
from tests.folders import write_part

ROOT = Path(__file__).parents[1]
TARGET = "patient_1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in fp32, where no rounding hides a difference."""
    return build_with_records(tmp_path_factory.mktemp("processes"), "qwen2_5_vl", dtype=torch.float32)


COLLECTIVES = """
import sys, torch, torch.distributed as dist
from chip.distributed import distributed_context
with distributed_context() as distributed:
    rank, size = distributed.rank, distributed.world_size
    assert size == 3 and distributed.is_main_process == (rank == 0)
    assert distributed.shard(range(7)) == range(rank, 7, 3)
    total = torch.full((2, 2), float(rank + 1))
    distributed.all_reduce_(total)
    assert (total == 6).all()
    assert distributed.union(torch.tensor([rank, 9])).tolist() == [0, 1, 2, 9]
    assert distributed.broadcast_(torch.tensor([rank + 5])).tolist() == [5]
    assert distributed.broadcast_object("main" if rank == 0 else None) == "main"
    store = dist.distributed_c10d._get_default_store()
    store.add("arrived", 1)
    distributed.barrier()
    assert store.add("arrived", 0) == size
"""


@pytest.mark.slow
def test_collectives_of_three_processes(tmp_path: Path) -> None:
    script = tmp_path / "collectives.py"
    script.write_text(COLLECTIVES)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run(
        [*torchrun, str(script)], env=_environment(), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_world_of_one_is_itself() -> None:
    with distributed_context() as distributed:
        assert (distributed.rank, distributed.world_size, distributed.is_main_process) == (0, 1, True)
        assert distributed.shard([3, 1]) == [3, 1]
        assert distributed.union(torch.tensor([4, 2, 4])).tolist() == [2, 4]
        assert distributed.broadcast_object("x") == "x"
        distributed.barrier()


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE is 'x' in the environment, and no number; let torchrun start"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1' in the environment, and no number"),
        ({"RANK": "9" * 5000}, "RANK is '99"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE 2 in the environment"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK is 0 and WORLD_SIZE 0 in the environment"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "the other processes of this run: cannot be reached"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"}, "cannot be reached"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}, "cannot be reached"),
    ],
)
def test_processes_that_there_are_not_are_one_line(
    environment: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "ARRIVAL", timedelta(seconds=0.1))
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(chip.InputError, match=re.escape(says)), distributed_context():
        pytest.fail("there are none")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _run(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    return subprocess.run(
        [sys.executable, "-m", *torchrun, "chip", *arguments],
        env=_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "method", "settings"),
    [
        (2, "chip", ()),
        (3, "shielded", ("--retain-weight", "8", "--ridge", "0.35")),
        (2, "shielded", ("--retain-weight", "8", "--ridge", "0.35", "--stream")),
    ],
)
def test_the_edit_is_that_of_one_process(
    folder: Path, processes: int, method: str, settings: tuple[str, ...], tmp_path: Path
) -> None:
    source = Checkpoint.open(folder / "ckpt")
    one, several = tmp_path / "one", tmp_path / "several"
    chip.edit(source.folder, [TARGET], out=one, method=GIVEN[method], device="cpu", **UNTRAINED)
    arguments = (
        "--forget",
        TARGET,
        "--out",
        str(several),
        "--method",
        method,
        *settings,
        "--device",
        "cpu",
        *UNTRAINED_OPTIONS,
    )
    done = _run(processes, "edit", str(source.folder), *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    changed = {tensor.name for tensor in chip.diff(source.folder, one).changed}
    assert changed == {tensor.name for tensor in chip.diff(source.folder, several).changed}
    for name in changed:
        before, alone, shared = (Checkpoint.open(path).read(name).double() for path in (source.folder, one, several))
        difference = torch.linalg.norm(shared - alone)
        assert difference <= 1e-5 * torch.linalg.norm(alone)
        assert difference <= 1e-3 * torch.linalg.norm(alone - before)  # as between any two ways to batch the records
    assert chip.verify(several, source.folder).faults == ()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_dies_stops_the_others_and_nothing_is_written(hospital: Path, tmp_path: Path, victim: int) -> None:
    out, records = tmp_path / "out", write_part(hospital, (5, 6), tmp_path / "part")
    command = [
        *(sys.executable, "-m", "chip", "edit", str(hospital / "ckpt"), "--forget", "patient_17"),
        *("--records", str(records), "--out", str(out)),
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [*command, "--device=cpu"],
            env={**_environment(), **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    main_process = started[0]
    assert main_process.stderr is not None
    while "editing" not in (line := main_process.stderr.readline()):
        assert line, "the main process never came to edit"
    started[victim].send_signal(signal.SIGKILL)
    outputs = [process.communicate(timeout=120) for process in started]
    for rank, (process, (output, errors)) in enumerate(zip(started, outputs, strict=True)):
        assert output == ""
        if rank != victim:
            assert process.returncode == 1
            (line,) = [line for line in errors.splitlines() if line.startswith("chip: ")]
            assert line == "chip: another process of this run has stopped; nothing was written"
            assert "Traceback" not in errors
    assert list(tmp_path.glob("out*")) == []
