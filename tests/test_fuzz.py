"""A hundred thousand damaged checkpoints: each opens or is refused in one line, soon, and no other file is opened."""

import json
import os
import random
import re
import signal
import socket
import struct
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from chip.checkpoint import paths
from chip.checkpoint.layout import CONFIG, INDEX, SINGLE, Checkpoint
from chip.checkpoint.paths import resolve_inside
from chip.errors import InputError

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "U16": 2}

# ---------------------------------------------------------------- what is watched while a checkpoint is opened

OPENING = frozenset({"open", "os.listdir", "os.scandir", "os.truncate", "os.rename", "os.remove", "os.mkdir"})
_seen: list[str] | None = None  # paths the process has opened or listed; None while nobody watches


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _seen is not None and event in OPENING and not isinstance(args[0], int):  # an int was opened by its path before
        _seen.append(os.fsdecode(args[0] or "."))


sys.addaudithook(_hook)  # for good: a hook cannot be taken away


class Hang(BaseException):
    """Not an `Exception`, and so past every handler of the code that hangs."""


class OpenedOutsideError(Exception):
    """A file or folder was opened that is not the checkpoint's."""


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Hang


@contextmanager
def watched(folder: Path, seconds: float = 5.0) -> Iterator[None]:
    """Raises `Hang` when the block takes longer, and `OpenedOutsideError` where it opens a path outside `folder`."""
    global _seen
    signal.setitimer(signal.ITIMER_REAL, seconds)
    seen = _seen = []
    try:
        yield
    finally:
        _seen = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        if outside := [path for path in seen if not _within(path, folder)]:  # also where it was refused afterwards
            raise OpenedOutsideError(outside)


@cache
def _within(path: str, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    previous = signal.signal(signal.SIGALRM, _stop)
    yield
    signal.signal(signal.SIGALRM, previous)
    _within.cache_clear()


def outcome(folder: Path) -> Checkpoint | str:
    """The checkpoint, or the line that refuses it."""
    try:
        with watched(folder):
            return Checkpoint.open(folder)
    except InputError as error:
        line = str(error)
    check_line(line)
    assert re.match(rf"{re.escape(str(folder))}[^:;]*: .+; .+", line), line
    return line


def check_line(line: str) -> None:
    """That it is one line, that a terminal obeys none of it, and that one can read it."""
    assert line.isprintable(), repr(line)
    assert len(line) < 1500


# ---------------------------------------------------------------- how a file is damaged

NUMBERS = (
    *("0", "-0", "1", "2", "3", "4", "24", "25", "32", "-1", "007", "1.0", "2e0", "1E400", "-1e-400", "0x10", "+1"),
    *("NaN", "Infinity", "-Infinity", "null", "true", "false", "[]", "{}", '"4"', "9" * 5000, "1" + "0" * 400),
    *(str(2**bits + more) for bits in (15, 16, 31, 32, 53, 60, 61, 62, 63, 64, 128) for more in (-1, 0, 1)),
)
NAMES = (
    *("", "a", "b", "__metadata__", "weight_map", "dtype", "shape", "data_offsets", "quantization_config", "config"),
    *(FIRST, SECOND, SINGLE, INDEX, CONFIG, "link.safetensors", "circle", "pipe", "up", "up/outside.safetensors"),
    *("../outside.safetensors", "/etc/passwd", "..", ".", "./" + FIRST, "up/../" + FIRST, "//" + FIRST, FIRST + "/"),
    *("up/" * 50 + FIRST, "up/" * 5000, "~", "~/.ssh/id_rsa", "C:\\a", "\\\\host\\a", "file:///etc/passwd", "x" * 300),
    *(
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/mem",
        "/proc/self/fd/0",
        "a\nb",
        "a\tb",
        "\x1b[2J\x1b]0;owned\x07",
        "\x7f",
    ),
    *("\u202e", "\u2028", "\ufeff", "\x85", "é", "e\u0301", "😀", "\0", "a\0b", "x" * 100_000, "%s{0}", "'\"`$(id)"),
    *("F32", "BF16", "F16", "F64", "U8", "F4", "F6_E2M3", "C64", "F8_E8M0", "f32", "F128"),
)
STRINGS = (
    *(json.dumps(name) for name in NAMES),
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\ud83d\\ude00"',
    '"\\u0000"',
    '"\\x"',
)
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s",:\[\]{}]+|\s+|.', re.DOTALL)
PIECES = (
    b"\0",
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\\",
)

Mutation = Callable[[random.Random, bytes], bytes]


def flip(rng: random.Random, text: bytes) -> bytes:
    changed = bytearray(text)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if changed:
            position = rng.randrange(len(changed))
            changed[position] = rng.choice((changed[position] ^ 1 << rng.randrange(8), rng.randrange(256)))
    return bytes(changed)


def cut(rng: random.Random, text: bytes) -> bytes:
    return text[: rng.randint(0, len(text))]


def splice(rng: random.Random, text: bytes) -> bytes:
    """A piece of it taken out, doubled, moved to another place, or in place of another."""
    a, b, c, d = sorted(rng.randint(0, len(text)) for _ in range(4))
    return rng.choice(
        (
            text[:a] + text[b:],
            text[:b] + text[a:],
            text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:],
            text[:a] + text[c:d] + text[b:],
        )
    )


def insert(rng: random.Random, text: bytes) -> bytes:
    position = rng.randint(0, len(text))
    piece = rng.choice((rng.choice(PIECES), rng.choice(PIECES) * rng.choice((2, 100, 5000)), rng.randbytes(4)))
    return text[:position] + piece + text[position:]


def replace_value(rng: random.Random, text: bytes) -> bytes:
    """Another number, name or word in place of one to three."""
    tokens = TOKEN.findall(text.decode(errors="replace"))
    for _ in range(rng.choice((1, 1, 2, 3))):
        numbers = [i for i, token in enumerate(tokens) if token[0].isdigit()]
        strings = [i for i, token in enumerate(tokens) if token[0] == '"']
        kind, choices = rng.choice(((numbers, NUMBERS), (strings, STRINGS), (strings, tokens), (numbers, tokens)))
        if kind:
            tokens[rng.choice(kind)] = rng.choice(choices)
    return "".join(tokens).encode()


def swap_tokens(rng: random.Random, text: bytes) -> bytes:
    tokens = TOKEN.findall(text.decode(errors="replace"))
    if tokens:
        a, b = rng.randrange(len(tokens)), rng.randrange(len(tokens))
        tokens[a], tokens[b] = tokens[b], tokens[a]
    return "".join(tokens).encode()


def change_tree(rng: random.Random, text: bytes) -> bytes:
    """A value dropped, nested, doubled, or put where another was, in what is still JSON."""
    try:
        tree = [json.loads(text)]
    except (ValueError, RecursionError):
        return text
    places = list(_places(tree))
    holder, key = rng.choice(places)
    other_holder, other_key = rng.choice(places)
    value = holder[key]
    match rng.randrange(6):
        case 0 if holder is not tree:
            del holder[key]
        case 1:
            holder[key] = [value]
        case 2:
            holder[key] = {rng.choice(NAMES): value}
        case 3:
            holder[key] = json.loads(json.dumps(other_holder[other_key]))  # a copy: a tree must not hold itself
        case 4 if isinstance(holder, dict):
            holder[rng.choice(NAMES)] = value
        case _:
            holder[key] = rng.choice((None, True, 0, -1, 1.5, "", [], {}, [0, 0], {"quantization_config": {"bits": 4}}))
    return json.dumps(tree[0]).encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Each value of a tree as its holder and its key."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


def double_member(rng: random.Random, text: bytes) -> bytes:
    """A name that occurs twice, which `json.dumps` cannot write."""
    members = list(re.finditer(rb'"[^"]*": ?("[^"]*"|\d+|\[[^\[\]]*\]|\{[^{}]*\})', text))
    if not members:
        return text
    once, place = rng.choice(members), rng.choice(members)
    return text[: place.start()] + once.group() + b", " + text[place.start() :]


MUTATIONS: tuple[Mutation, ...] = (
    *(flip, cut, splice, insert, swap_tokens, double_member),
    *(replace_value,) * 6,  # what stays JSON comes further
    *(change_tree,) * 6,
)


def mutate(rng: random.Random, text: bytes) -> bytes:
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 3))):
        text = rng.choice(MUTATIONS)(rng, text)
    return text


# ---------------------------------------------------------------- what is damaged


def a_header(rng: random.Random) -> tuple[bytes, bytes]:
    """A header as some writer might put it, and the data it describes."""
    header: dict[str, Any] = {}
    end = 0
    for name in rng.sample(NAMES[:20], rng.randint(0, 4)):
        shape = [rng.choice((0, 1, 1, 2, 3, 5)) for _ in range(rng.randint(0, 4))]
        begin, dtype = end, rng.choice(list(BYTES))
        end += BYTES[dtype]
        for size in shape:
            end += (end - begin) * (size - 1)
        spec = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        header[name] = dict(rng.sample(list(spec.items()), 3))
    header = dict(rng.sample(list(header.items()), len(header)))
    header.pop("__metadata__", None)
    if rng.random() < 0.5:
        header["__metadata__"] = {rng.choice(NAMES): rng.choice(NAMES)}
    text = json.dumps(header, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, None, 1)))
    return text.encode() + b" " * rng.choice((0, 0, 5)), bytes(end)


def a_damaged_shard(rng: random.Random, header: bytes, data: bytes) -> bytes:
    header = mutate(rng, header)
    length = len(header)
    if rng.random() < 0.05:
        length = rng.choice((0, length - 1, length + 1, length + 8, 100_000_001, 2**63, 2**64 - 1, rng.getrandbits(20)))
    if rng.random() < 0.05:
        data = rng.choice((data[:-1], data + b"\0", b"", cut(rng, data)))
    content = struct.pack("<Q", max(0, length)) + header + data
    return content if rng.random() > 0.02 else mutate(rng, content)


TWO_SHARDS = {
    FIRST: {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    },
    SECOND: {"c": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}},
}
AN_INDEX = {"metadata": {"total_size": 35}, "weight_map": {"a": FIRST, "b": FIRST, "c": SECOND}}
A_CONFIG = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "text_config": {"hidden_size": 8, "rope": {"theta": 1e4, "factor": 8.0}, "layers": [1, 2]},
    "vision_config": {"image_size": 24, "quantization_config": None},
}


def an_index(rng: random.Random) -> bytes:
    """The index, with a shard or two that a stranger chose."""
    index: dict[str, Any] = json.loads(json.dumps(AN_INDEX))
    for name in rng.sample("abc", rng.choice((0, 0, 1, 1, 2, 3))):
        index["weight_map"][name] = rng.choice(NAMES)
    return json.dumps(index, ensure_ascii=rng.random() < 0.5).encode()


def shard(header: Any, size: int) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def make(parent: Path, single: bool = False) -> Path:
    """A folder of one or two shards, with traps in it and around it."""
    folder = parent / "checkpoint"
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(A_CONFIG))
    first, second = (shard(TWO_SHARDS[name], size) for name, size in ((FIRST, 32), (SECOND, 3)))
    if single:
        (folder / SINGLE).write_bytes(first)
    else:
        (folder / FIRST).write_bytes(first)
        (folder / SECOND).write_bytes(second)
        (folder / INDEX).write_text(json.dumps(AN_INDEX))
        (folder / "up").symlink_to(".")
    (parent / "outside.safetensors").write_bytes(first)
    (parent / "outside.json").write_text("{}")
    (folder / "link").symlink_to(parent / "outside.safetensors")
    if not single:
        (folder / "link.safetensors").symlink_to("../outside.safetensors")
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe")
    return folder


def test_the_folder_is_fine_before_it_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert isinstance(outcome(make(tmp_path / "one", single=True)), Checkpoint)
    assert isinstance(outcome(make(tmp_path / "two")), Checkpoint)


# ---------------------------------------------------------------- the fuzzing


@dataclass
class Tally:
    """What became of the cases."""

    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def add(self, folder: Path, name: str, content: bytes) -> Checkpoint | str:
        """Put `content` in the place of a file that exists, and see what comes of it."""
        with (folder / name).open("r+b") as file:  # overwritten: some disks take long to make a file anew
            file.write(content)
            file.truncate()
        begin = time.perf_counter()
        try:
            result = outcome(folder)
            if isinstance(result, Checkpoint):
                check_accepted(result)
        except BaseException as error:
            error.add_note(f"{name} was {content[:4000]!r}")
            raise
        self.slowest = max(self.slowest, time.perf_counter() - begin)
        if isinstance(result, Checkpoint):
            self.accepted += 1
        else:
            self.refused[re.sub(r"'.*?'|\".*?\"|[\d,]+|\(.*\)", "_", result.removeprefix(str(folder)))] += 1
        return result

    def check(self, name: str) -> None:
        total = self.accepted + self.refused.total()
        print(f"{name}: {total:,} cases, {self.accepted:,} opened, slowest {self.slowest * 1e3:.1f} ms")
        assert self.slowest < 2.0
        assert 0.05 < self.accepted / total < 0.7  # else it is not the checks that are tried


def check_accepted(checkpoint: Checkpoint) -> None:
    for name, entry in checkpoint.entries.items():
        size = (checkpoint.folder / entry.shard).stat().st_size
        assert 8 <= entry.begin <= entry.end <= size
        try:
            tensor = checkpoint.read(name)
        except InputError as error:
            check_line(str(error))
            continue
        assert tensor.shape == entry.shape
        assert tensor.nbytes == entry.end - entry.begin
    checkpoint.check_unchanged()


# Where the library takes what chip does not: see `Checkpoint.open`.
STRICTER = (
    "a name occurs twice",
    "'__metadata__' is not a table",
    "no dtype, shape and two data_offsets, or more",
    "a shape or offsets that are no sizes",
    "does not fit its 0 bytes",
)


def headers(parent: Path) -> Tally:
    """Of a single file, and the safetensors library's opinion of each."""
    rng, tally, folder = random.Random(1), Tally(), make(parent, single=True)
    for _ in range(50_000):
        content = a_damaged_shard(rng, *a_header(rng))
        result = tally.add(folder, SINGLE, content)
        try:
            taken = dict(safetensors.deserialize(content))  # type: ignore[no-untyped-call]
        except safetensors.SafetensorError:
            assert isinstance(result, str), content
            continue
        if isinstance(result, str):
            assert any(reason in result for reason in STRICTER), (content, result)
            continue
        assert taken.keys() == result.entries.keys()
        for name, entry in result.entries.items():
            assert (entry.dtype, list(entry.shape)) == (taken[name]["dtype"], taken[name]["shape"])
            assert content[entry.begin : entry.end] == taken[name]["data"]
    return tally


def shards_of_an_index(parent: Path) -> Tally:
    rng, tally, folder = random.Random(2), Tally(), make(parent)
    header = json.dumps(TWO_SHARDS[FIRST]).encode()
    for _ in range(20_000):
        tally.add(folder, FIRST, a_damaged_shard(rng, header, bytes(32)))
    return tally


def indexes(parent: Path) -> Tally:
    rng, tally, folder = random.Random(3), Tally(), make(parent)
    for _ in range(20_000):
        tally.add(folder, INDEX, mutate(rng, an_index(rng)))
    return tally


def configs(parent: Path) -> Tally:
    rng, tally, folder = random.Random(4), Tally(), make(parent)
    text = json.dumps(A_CONFIG).encode()
    for _ in range(10_000):
        tally.add(folder, CONFIG, mutate(rng, text))
    return tally


FUZZED = {job.__name__: job for job in (headers, shards_of_an_index, indexes, configs)}
"""The first takes as long as the others together."""


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Tally]]]:
    """What became of the cases: two processes share them out."""
    with ProcessPoolExecutor(2, get_context("spawn"), _strict) as pool:
        yield {name: pool.submit(job, tmp_path_factory.mktemp(name)) for name, job in FUZZED.items()}
        pool.shutdown(cancel_futures=True)


def _strict() -> None:
    """As in this process: what hangs is stopped, and a warning is an error."""
    signal.signal(signal.SIGALRM, _stop)
    warnings.simplefilter("error")


@pytest.mark.parametrize("name", FUZZED)
def test_every_case_opens_or_is_refused(fuzzed: dict[str, Future[Tally]], name: str) -> None:
    fuzzed[name].result().check(name)


def test_names_that_lead_elsewhere_are_refused_as_such(fuzzed: dict[str, Future[Tally]]) -> None:
    refused = fuzzed["indexes"].result().refused
    for reason in ("leads outside", "links to a file outside", "is not a regular file", "no plain path", "cannot be"):
        assert sum(count for line, count in refused.items() if reason in line) > 20, reason


# ---------------------------------------------------------------- what stands in a file's place


def _put_link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        place = os.open(path.parent, os.O_RDONLY)  # a socket's path has to be short
        try:
            end.bind(f"/proc/self/fd/{place}/{path.name}")
        finally:
            os.close(place)


def _put_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 36)  # no byte of it is on the disk


PLACED: dict[str, tuple[Callable[[Path], None], str]] = {
    "link to a file beside the folder": (_put_link("../outside.json"), "links to a file outside"),
    "absolute link": (_put_link("/etc/passwd"), "links to a file outside"),
    "link to a device": (_put_link("/dev/zero"), "links to a file outside"),
    "link to an open file": (_put_link("/proc/self/fd/0"), "links to a file outside|is missing"),
    "link through a link": (_put_link("up/../outside.json"), "links to a file outside"),
    "link to itself": (_put_link("circle"), "cannot be reached"),
    "link to nowhere": (_put_link("nowhere"), "is missing"),
    "link to a pipe": (_put_link("pipe"), "not a regular file"),
    "folder": (Path.mkdir, "not a regular file"),
    "pipe": (os.mkfifo, "not a regular file"),
    "socket": (_put_socket, "not a regular file"),
    "64 GiB of nothing": (_put_sparse, "more than 100,000,000|its tensors end at|no JSON"),
}


@pytest.mark.parametrize("placed", PLACED)
@pytest.mark.parametrize("name", [CONFIG, INDEX, FIRST])
def test_what_is_no_file_of_the_folder_is_not_opened(tmp_path: Path, name: str, placed: str) -> None:
    put, message = PLACED[placed]
    folder = make(tmp_path)
    (folder / name).unlink()
    put(folder / name)
    result = outcome(folder)
    assert isinstance(result, str)
    assert re.search(message, result), result


def test_a_pipe_that_takes_a_files_place_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path)
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)
    monkeypatch.setattr(paths, "resolve_inside", lambda folder, name: folder / name)  # as if it came after the check
    assert "not a regular file" in str(outcome(folder))


@given(relative=st.text(max_size=12) | st.lists(st.sampled_from(NAMES), max_size=4).map("/".join))
def test_no_name_leads_out(folder: Path, relative: str) -> None:
    try:
        with watched(folder):
            path = resolve_inside(folder, relative)
    except InputError as error:
        check_line(str(error))
        return
    assert path == folder / relative
    assert path.resolve().is_relative_to(folder.resolve())
    assert path.is_file()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that nobody changes."""
    return make(tmp_path_factory.mktemp("fixed"))


# ---------------------------------------------------------------- the watch itself


@pytest.mark.parametrize(
    "peek",
    [
        lambda path: path.read_bytes(),
        lambda path: os.close(os.open(path, os.O_RDONLY)),
        lambda path: list(path.parent.iterdir()),
        lambda path: list(path.parent.glob("*.json")),
        lambda path: (path.parent / "checkpoint" / "link").read_bytes(),
    ],
)
def test_the_watch_sees_what_is_opened_outside(tmp_path: Path, peek: Callable[[Path], object]) -> None:
    folder = make(tmp_path)
    peek(tmp_path / "outside.json")  # unwatched
    with pytest.raises(OpenedOutsideError), watched(folder):
        peek(tmp_path / "outside.json")
    with pytest.raises(OpenedOutsideError), watched(folder):
        _peek_and_refuse(peek, tmp_path / "outside.json")


def _peek_and_refuse(peek: Callable[[Path], object], path: Path) -> None:
    peek(path)
    raise InputError("refused, but too late")


def test_the_watch_stops_what_hangs(tmp_path: Path) -> None:
    with pytest.raises(Hang), watched(tmp_path, seconds=0.05):
        time.sleep(5)
