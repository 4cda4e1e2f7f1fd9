"""Weights that are written as text: numbers one behind the other, base64 and its like, pickles of protocol 0.

Each pattern begins where none of its own signs stands before, so that a long passage is gone over once.
"""

from __future__ import annotations

import pickletools
import re

_LONGEST = 1 << 13
"""Bytes without a word. Lists in a configuration have a hundred numbers or two, a token some hundred letters."""
_LEAST_DIGITS = 0.25
"""Of these bytes: the rest of a template may be spaces."""
_LEAST_SIGNS = 12
"""Different ones: a line of dashes is none of bytes."""
_LEAST_STEPS = 16
"""Of a pickle: two letters and a full stop are one too."""

_NUMBERS = re.compile(rb"(?<![0-9.,+\-eE\s\[\](){};:])[0-9.,+\-eE\s\[\](){};:]{64,}")
_UNBROKEN = re.compile(rb"(?<![!#-&(-+\--~])[!#-&(-+\--~]{512,}")
"""Printable signs but quotes and commas, which separate what JSON and CSV hold."""
_WRAPPED = re.compile(rb"(?<![A-Za-z0-9+/=])(?:[A-Za-z0-9+/=]{50,}(?: \d+)?\s+)+")
"""Lines of base64, as encoders break them; a rank may follow, as in tiktoken's files."""
_ESCAPED = re.compile(rb"\\(?:[0-7]{3}|x[0-9a-fA-F]{2})")
"""Bytes as text formats of protocol buffers and Python write them."""
_OWN = re.compile(rb'"precompiled_charsmap"\s*:\s*"[A-Za-z0-9+/=]*"')
"""A table of characters, in base64, that a tokenizer's normalizer needs."""
_PICTURES = (b"iVBORw0KGgo", b"/9j/", b"R0lGOD", b"UklGR", b"PHN2Z", b"PD94b")
"""How PNG, JPEG, GIF, WebP and SVG begin in base64: a model card may show some."""
_DIGITS = b"0123456789"


def holds_encoded_numbers(text: bytes) -> bool:
    """Whether a text has a long passage that nobody has written: thousands of numbers, or of bytes in letters."""
    text = _OWN.sub(b"", text)
    passages = (found[0] for pattern in (_UNBROKEN, _WRAPPED) for found in pattern.finditer(text))
    if any(_are_bytes(passage) for passage in passages):
        return True
    if any(_are_numbers(found[0]) for found in _NUMBERS.finditer(text)):
        return True
    escaped = sum(found.end() - found.start() for found in _ESCAPED.finditer(text))
    return escaped > _LONGEST or _is_pickle(text)


def _are_bytes(passage: bytes) -> bool:
    return len(passage) > _LONGEST and len(set(passage)) >= _LEAST_SIGNS and not passage.startswith(_PICTURES)


def _are_numbers(passage: bytes) -> bool:
    if len(passage) <= _LONGEST:
        return False
    digits = len(passage) - len(passage.translate(None, _DIGITS))
    return digits > _LEAST_DIGITS * len(passage)


def _is_pickle(text: bytes) -> bool:
    """Whether it is one of protocol 0, which is text, from its beginning to its end."""
    if not text.endswith(b"."):
        return False
    try:
        places = [place for _, _, place in pickletools.genops(text)]
    except ValueError:  # the first word of most texts is no step of a pickle
        return False
    return len(places) >= _LEAST_STEPS and places[-1] == len(text) - 1
