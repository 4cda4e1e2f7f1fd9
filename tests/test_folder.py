"""An atomic directory appears whole or not at all, whatever else happens and whoever else writes."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chip.checkpoint import folder as folder_module
from chip.checkpoint.folder import (
    atomic_directory,
    check_not_half_replaced,
    copy_file,
    drop_page_cache,
    files_in,
    link_file,
)
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.receipt import read_receipt
from chip.errors import InputError, RunError


def fill(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "file").write_text(text)


def stage(output: Path, text: str, error: BaseException | None = None, overwrite: bool = False) -> None:
    with atomic_directory(output, overwrite) as folder:
        fill(folder, text)
        if error is not None:
            raise error


def test_the_folder_is_there_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "new" / "parents" / "out") as folder:
        fill(folder, "text")
        assert not (tmp_path / "new" / "parents" / "out").exists()
    assert (tmp_path / "new" / "parents" / "out" / "file").read_text() == "text"
    assert [path.name for path in (tmp_path / "new" / "parents").iterdir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RunError("it failed"), SystemExit(1)])
def test_nothing_is_left_of_a_block_that_raises(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        stage(tmp_path / "new" / "parents" / "out", "text", error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_lock_is_taken_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    lock = folder_module._lock

    def interrupted(*arguments: Path) -> int:
        descriptor = lock(*arguments)
        signal.raise_signal(number)
        return descriptor

    monkeypatch.setattr(folder_module, "_lock", interrupted)
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            stage(tmp_path / "out", "text")
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_one_line_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"out: No space left on device; free some space, or choose another folder$"):
        stage(tmp_path / "out", "text", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(RunError, match=r"out: Permission denied \(a/file\); fix that"):
        stage(tmp_path / "out", "text", PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a/file"))
    assert list(tmp_path.iterdir()) == []


def test_an_old_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old")
    with pytest.raises(RunError, match="it failed"):
        stage(tmp_path / "out", "new", RunError("it failed"), overwrite=True)
    assert (tmp_path / "out" / "file").read_text() == "old"
    with atomic_directory(tmp_path / "out", overwrite=True) as folder:
        fill(folder, "new")
        assert (tmp_path / "out" / "file").read_text() == "old"
    assert (tmp_path / "out" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_was_filled_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "flush", lambda _: fill(tmp_path / "out", "somebody else's"))
    with pytest.raises(RunError, match="not empty"):
        stage(tmp_path / "out", "mine")
    assert (tmp_path / "out" / "file").read_text() == "somebody else's"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_two_runs_to_one_output_the_first_wins(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "out") as folder:
        fill(folder, "first")
        with pytest.raises(InputError, match="another run is writing it"), atomic_directory(tmp_path / "out"):
            pytest.fail("both were let in")
        with atomic_directory(tmp_path / "other") as other:
            fill(other, "nobody's rival")
    assert (tmp_path / "out" / "file").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_a_lock_that_was_removed_while_one_waited_for_it_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, removed = fcntl.flock, False

    def flock(descriptor: int, operation: int) -> None:
        nonlocal removed
        plain(descriptor, operation)
        if not removed:  # the run before has just gone, with its folder
            removed = True
            (tmp_path / ".out.chip" / "lock").unlink()
            (tmp_path / ".out.chip").rmdir()

    monkeypatch.setattr(fcntl, "flock", flock)
    with atomic_directory(tmp_path / "out") as folder:
        fill(folder, "text")
        with pytest.raises(InputError, match="another run"), atomic_directory(tmp_path / "out"):
            pytest.fail("the lock is held by nobody")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_cleans_up_after_a_killed_one(tmp_path: Path) -> None:
    left = tmp_path / ".out.chip"
    left.mkdir()
    (left / "lock").touch()
    fill(left / "new", "half")
    with atomic_directory(tmp_path / "out") as folder:
        assert not folder.exists()
        fill(folder, "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_old_folder_that_a_killed_run_had_moved_aside_comes_back(tmp_path: Path) -> None:
    left = tmp_path / ".out.chip"
    left.mkdir()
    fill(left / "old", "old")
    with pytest.raises(RunError, match="it failed again"):
        stage(tmp_path / "out", "new", RunError("it failed again"), overwrite=True)
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from chip.checkpoint.folder import atomic_directory

renames = 0

def kill(event, _):
    global renames
    if event == "os.rename":
        renames += 1
        if renames == 2:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
with atomic_directory(Path(sys.argv[1]), overwrite=True) as folder:
    folder.mkdir()
    (folder / "file").write_text("new")
"""


def test_a_run_that_is_killed_between_two_renames_is_told_of_by_the_next(tmp_path: Path) -> None:
    output, left, link = tmp_path / "out", tmp_path / ".out.chip", tmp_path / "link"
    fill(output, "old")
    link.symlink_to(output)
    check_not_half_replaced(output)
    assert subprocess.run([sys.executable, "-c", KILLED, output], check=False).returncode == -signal.SIGKILL
    both = f"{left / 'old'} is what was here, and {left / 'new'}, whole, what it had written; rename one of them to out"
    for look in (check_not_half_replaced, Checkpoint.open, read_receipt):  # whoever looks for it
        with pytest.raises(InputError, match=re.escape(both)):
            look(output)
        with pytest.raises(InputError, match=re.escape(both)):
            look(link)
    with (left / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        check_not_half_replaced(output)  # by a run that is about to put it in place
    (left / "new").rename(output)
    shutil.rmtree(left)
    check_not_half_replaced(output)
    assert (output / "file").read_text() == "new"


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("nobody's business")
    folder = tmp_path / "folder"
    fill(folder, "text")
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=r"tokenizer.json.* outside"):
        list(files_in(folder))


def test_files_are_copied_and_linked(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_bytes(bytes(range(256)) * 9999)
    old.chmod(0o400)
    (tmp_path / "link").symlink_to(old)
    copy_file(tmp_path / "link", tmp_path / "inner" / "copy")
    assert (tmp_path / "inner" / "copy").read_bytes() == old.read_bytes()
    assert (tmp_path / "inner" / "copy").stat().st_mode & 0o200
    link_file(tmp_path / "link", tmp_path / "linked")
    assert (tmp_path / "linked").samefile(old)
    assert not (tmp_path / "linked").is_symlink()
    drop_page_cache([old])
    assert old.read_bytes()[:2] == b"\0\1"
