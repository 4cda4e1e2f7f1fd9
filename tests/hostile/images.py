"""Pictures: thin, huge, cut short, of other kinds, or none at all."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from tests.hostile.case import EDIT, EVAL, IMAGE, NO_FILES, WHERE, Case, Harm, either, instead, passes, refused, write

AT = r"records.jsonl:\d+"
SEED = 18


def encoded(width: int, height: int, mode: str = "RGB", kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture = Image.effect_noise((width, height), 60) if width * height < 1e6 else Image.new("L", (width, height))
    picture.convert(mode).save(file, kind, **options)
    return file.getvalue()


def picture(*args: Any, **options: Any) -> Harm:
    return lambda folder: (folder / IMAGE).write_bytes(encoded(*args, **options))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2) -> bytes:
    """A PNG whose header says so; its data is what one likes."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(chunks) + _chunk(b"IEND", b"")


def many_scans(scans: int = 20_000) -> bytes:
    """A progressive JPEG whose last scan is there very often: each goes over the whole picture."""
    data = encoded(2000, 2000, "L", "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def text_bomb() -> bytes:
    """A chunk of text that takes 60 MB unpacked, many times."""
    chunk = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(60_000_000), 9))
    return png(28, 28, *[chunk] * 50, _chunk(b"IDAT", zlib.compress(bytes(28 * (1 + 3 * 28)))))


THIN = ((1, 4000), (4000, 1), (2, 3000), (1, 60000), (60000, 1))
SMALL = ((1, 1), (1, 2), (2, 1), (3, 3), (7, 5), (28, 1), (1, 28), (13, 200))
MODES = ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16")
KINDS = ("JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "PCX", "JPEG2000")
OTHER_KINDS = ("EPS", "PDF", "SGI", "ICNS", "SPIDER", "MSP")

NO_PICTURES: dict[str, bytes | Callable[[], bytes]] = {
    "nothing": b"",
    "a byte": b"\0",
    "zeros": bytes(1000),
    "a text": b"no picture",
    "HTML": b"<html>404</html>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "DICOM": bytes(128) + b"DICM",
    "NIfTI": struct.pack("<i", 348) + bytes(344),
    "zip": b"PK\x03\x04" + bytes(100),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\n(a) print\n",
    "PNG, the signature alone": b"\x89PNG\r\n\x1a\n",
    "PNG without data": png(28, 28),
    "PNG, 0 pixels wide": png(0, 28),
    "PNG, 2³¹ pixels wide": png(2**31 - 1, 1),
    "PNG, 2³² pixels wide": png(2**32 - 1, 2**32 - 1),
    "PNG, 20000 pixels a side": png(20000, 20000, _chunk(b"IDAT", zlib.compress(bytes(1000)))),
    "PNG, 12000 pixels a side": png(12000, 12000, _chunk(b"IDAT", zlib.compress(bytes(1000)))),
    "PNG, 65000 by 1000": png(65000, 1000, _chunk(b"IDAT", zlib.compress(bytes(1000)))),
    "PNG with a wrong checksum": png(28, 28)[:-30] + b"\0" + png(28, 28)[-29:],
    "PNG of a depth that is none": png(28, 28, depth=3),
    "PNG of colors that are none": png(28, 28, color=5),
    "PNG with a broken color profile": png(28, 28, _chunk(b"iCCP", b"a\0\0" + b"broken"), _chunk(b"IDAT", b"")),
    "a bomb of text": text_bomb,
    "JPEG, the signature alone": b"\xff\xd8\xff",
    "JPEG, 65535 pixels a side": b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x22\0\x02\x11\x01\x03\x11\x01",
    "JPEG with 20000 scans": many_scans,
    "GIF, 65535 pixels a side": b"GIF89a\xff\xff\xff\xff\x80\x00\x00"
    + bytes(6)
    + b",\0\0\0\0\xff\xff\xff\xff\0\x08\x02\x4c\x01\0;",
    "BMP, -1 pixels wide": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, -1, 28, 1, 24, 0, 0, 0, 0, 0, 0),
    "TIFF that leads round in a circle": b"II*\0\x08\0\0\0\x00\x00\x08\0\0\0",
    "WebP of no length": b"RIFF\0\0\0\0WEBPVP8 ",
}


def same(kind: str) -> bytes:
    """A picture in another format."""
    return encoded(28, 28, {"SPIDER": "F", "MSP": "1"}.get(kind, "RGB"), kind)


def spoiled(kind: str, number: int) -> bytes:
    """With some bytes that are others."""
    rng, content = random.Random(f"{SEED} {kind} {number}"), bytearray(same(kind))
    for _ in range(rng.choice((1, 2, 8))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def beginning(kind: str, share: float) -> bytes:
    content = same(kind)
    return content[: int(share * len(content))]


def doubled(kind: str) -> bytes:
    return 2 * same(kind)


def damaged() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Pictures with bytes changed, cut short, or doubled."""
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        for number in range(5):
            yield f"{kind} with other bytes, {number}", partial(spoiled, kind, number)
        for share in (0.1, 0.5, 0.9):
            yield f"{kind}, its first {share:.0%}", partial(beginning, kind, share)
        yield f"{kind} twice", partial(doubled, kind)


def of_mode(mode: str) -> bytes:
    """A gray picture, with what its channels mean left to the file."""
    ground = Image.new("L", (28, 28), 90)
    picture = Image.fromarray(np.full((28, 28), 900, np.uint16)) if mode == "I;16" else ground.convert(mode)
    file = io.BytesIO()
    picture.save(file, "TIFF" if mode in ("CMYK", "F", "I", "YCbCr") else "PNG")
    return file.getvalue()


CASES: list[Case] = [
    *(refused(name, write(IMAGE, content), f"{AT}.*{IMAGE}", EVAL) for name, content in NO_PICTURES.items()),
    *(refused(f"{w} by {h}, thin", picture(w, h), f"{AT}.*{IMAGE}") for w, h in THIN),
    *(refused(f"{w} by {h}, thin", picture(w, h), AT, family="qwen2_5_vl") for w, h in THIN),
    *(either(f"{w} by {h}", picture(w, h), AT) for w, h in SMALL),
    *(either(f"{w} by {h}", picture(w, h), AT, family="qwen2_5_vl") for w, h in SMALL),
    *(either(f"of mode {mode}", write(IMAGE, partial(of_mode, mode)), AT, EVAL) for mode in MODES),
    *(passes(f"as {kind}", write(IMAGE, partial(same, kind)), EVAL) for kind in KINDS),
    *(refused(f"as {kind}", write(IMAGE, partial(same, kind)), AT, EVAL) for kind in OTHER_KINDS),
    *(either(name, write(IMAGE, content), AT, EVAL) for name, content in damaged()),
    *(
        refused(f"{name} in its place", instead(IMAGE, make), WHERE.partition(":")[0], EDIT)
        for name, make in NO_FILES.items()
    ),
    passes("3000 by 2000", picture(3000, 2000, "L")),
    refused("9000 by 9000", picture(9000, 9000, "L"), f"{AT}.*{IMAGE}", EVAL),
]
