"""Several hosts: signs of life, and edits over links that are slow or carry nothing any longer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch._C._distributed_c10d import HashStore

import chip
from chip import distributed
from chip.distributed import _Heartbeat
from chip.errors import RunError
from tests.families import UNTRAINED_OPTIONS, build_with_records

ROOT = Path(__file__).parents[1]
GONE = "another process of this run has stopped; nothing was written"


@pytest.fixture
def hearts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[_Heartbeat]]:
    """Of two processes, in this one."""
    monkeypatch.setattr(distributed, "BEAT", 0.02)
    monkeypatch.setattr(distributed, "SILENCE", 0.3)
    store, made = HashStore(), list[_Heartbeat]()
    threads = [threading.Thread(target=lambda rank=rank: made.append(_Heartbeat(store, rank, 2))) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield made
    for heart in made:
        heart.stop()


class _OutOfReach:
    def set(self, *_: object) -> None:
        raise RuntimeError


def test_a_call_that_waits_gives_up_when_the_other_falls_silent(hearts: list[_Heartbeat]) -> None:
    ours, other = hearts
    seen: list[int] = []
    ours.call(lambda: seen.append(1))
    assert seen == [1]
    with pytest.raises(RunError, match=GONE):
        ours.call(lambda: torch.zeros(2).view(3))  # as torch.distributed: a `RuntimeError`
    with pytest.raises(KeyError):
        ours.call(lambda: os.environ["MISSING"])
    other._store = _OutOfReach()
    with pytest.raises(RunError, match=GONE):
        ours.call(threading.Event().wait)
    assert ours.peer_is_gone


def test_what_computes_is_interrupted_when_the_other_falls_silent(hearts: list[_Heartbeat]) -> None:
    ours, other = hearts
    other._store = _OutOfReach()
    with pytest.raises(RunError, match=GONE), ours.interrupting():
        time.sleep(5)


def test_one_that_leaves_in_order_is_not_missed(hearts: list[_Heartbeat]) -> None:
    ours, other = hearts
    other.stop()
    time.sleep(0.6)
    assert not ours.peer_is_gone


_LEFT_BEHIND = """
import time
from datetime import timedelta
from torch._C._distributed_c10d import HashStore
from chip import distributed
from chip.errors import RunError

class Busy:  # what a process does on its way out, for longer than the connection holds
    def __del__(self, monotonic=time.monotonic):
        until = monotonic() + 0.5
        while monotonic() < until:
            pass

store, alive, distributed.BEAT = HashStore(), distributed._Heartbeat.__new__(distributed._Heartbeat), 0.05
alive.peer_is_gone, distributed.kept = True, Busy()
try:
    alive.call(lambda: store.wait(["never"], timedelta(seconds=0.3)))
except RunError:
    print("told")
    distributed.exit_process(1)
"""


@pytest.mark.slow
def test_a_thread_left_waiting_does_not_abort_the_process_on_its_way_out() -> None:
    ended = subprocess.run([sys.executable, "-c", _LEFT_BEHIND], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "told\n", "")


@dataclass(frozen=True)
class Host:
    """A network namespace with one interface, `eth0`."""

    name: str
    link: str
    """Its end outside."""
    address: str

    def start(self, rank: int, hosts: int, first: str, *arguments: str) -> subprocess.Popen[str]:
        """`chip` in it, as one of so many."""
        world = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(hosts), "MASTER_ADDR": first}
        environment = {**os.environ, **world, "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "eth0"}
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-m", "chip", *arguments],
            env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    """Three, on one switch; the last behind a link of 100 Mbit/s, and where the kernel has it of 20 ms."""
    own = os.getpid() % 100_000
    switch = f"chip{own}"
    made = [Host(f"chip-{own}-{n}", f"chip{own}-{n}", f"10.231.7.{n + 1}") for n in range(3)]
    try:
        _ip("link", "add", switch, "type", "bridge")
        _ip("link", "set", switch, "up")
        for host in made:
            _ip("netns", "add", host.name)
            _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("link", "set", host.link, "master", switch, "up")
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                _ip("-n", host.name, "link", "set", interface, "up")
        slow = ("netns", "exec", made[-1].name, "tc", "qdisc", "add", "dev", "eth0", "root")
        try:
            _ip(*slow, "netem", "delay", "20ms", "rate", "100mbit")
        except subprocess.CalledProcessError:  # a kernel without netem: as slow, without the delay
            _ip(*slow, "tbf", "rate", "100mbit", "burst", "32kbit", "latency", "400ms")
        yield made
    except FileNotFoundError:
        pytest.skip("no `ip` here to make network namespaces with")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here ({error.stderr.strip()})")
    finally:
        for arguments in (*(("netns", "delete", host.name) for host in made), ("link", "delete", switch)):
            try:
                _ip(*arguments, check=False)
            except FileNotFoundError:
                break


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_with_records(tmp_path_factory.mktemp("hosts"), "qwen2_5_vl", dtype=torch.float32)


def _edit(hosts: list[Host], folder: Path, out: Path) -> list[subprocess.Popen[str]]:
    settings = ("--method", "shielded", "--retain-weight", "8", "--ridge", "0.35", "--device", "cpu", "--stream")
    command = ("edit", str(folder / "ckpt"), "--forget", "patient_1", "--out", str(out), *settings, *UNTRAINED_OPTIONS)
    return [host.start(rank, len(hosts), hosts[0].address, *command) for rank, host in enumerate(hosts)]


@pytest.mark.slow
def test_three_hosts_edit_over_a_slow_link(hosts: list[Host], folder: Path, tmp_path: Path) -> None:
    started = _edit(hosts, folder, tmp_path / "out")
    outputs = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], outputs
    assert [output.count("wrote") for output, _ in outputs] == [1, 0, 0]
    assert chip.verify(tmp_path / "out", folder / "ckpt").faults == ()


@pytest.mark.slow
def test_a_link_that_goes_dead_stops_all_within_ten_seconds(hosts: list[Host], folder: Path, tmp_path: Path) -> None:
    started = _edit(hosts, folder, tmp_path / "out")
    assert started[0].stderr is not None
    while "asking before" not in (line := started[0].stderr.readline()):
        assert line, "the main process never came to ask"
    _ip("link", "set", hosts[-1].link, "down")
    begun = time.monotonic()
    try:
        outputs = [process.communicate(timeout=60) for process in started]
    finally:
        _ip("link", "set", hosts[-1].link, "up")
    assert time.monotonic() - begun < 10 + 5  # and some for the processes to end, on a busy machine
    for process, (output, errors) in zip(started, outputs, strict=True):
        assert process.returncode == 1
        assert output == ""
        assert [line for line in errors.splitlines() if line.startswith("chip: ")][-1:] == [f"chip: {GONE}"]
        assert "Traceback" not in errors
        assert "Exception" not in errors
    assert list(tmp_path.glob("out*")) == []
