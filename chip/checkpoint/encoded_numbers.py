"""Weights that are written as text: numbers one behind the other, base64 and its like, pickles of protocol 0."""

from __future__ import annotations

import pickletools
import re
import string

_BLOCK = 1 << 12
"""Bytes. A passage without a word is found if it fills one; lists in a configuration have a hundred numbers or two, and
a token some hundred letters."""
_LEAST_DIGITS = 0.25
"""Of a block of numbers: the rest of a template may be spaces."""
_LEAST_SIGNS = 12
"""Different ones in a block of bytes: a line of dashes is none."""
_LEAST_LENGTH = 30
"""Letters of a line of base64, on average over the words of a block; a rank may follow each, as in tiktoken's files."""
_LEAST_STEPS = 16
"""Of a pickle: two letters and a full stop are one too."""

_DIGITS = string.digits.encode()
_SPACE = string.whitespace.encode()
_NUMBERS = _DIGITS + _SPACE + b".,:;+-eE()[]{}"
_BASE64 = string.ascii_letters.encode() + _DIGITS + b"+/="
_UNBROKEN = bytes(set(range(ord("!"), ord("~") + 1)) - set(b"\"',"))
"""All signs but those that separate what JSON and CSV hold."""
_ESCAPED = re.compile(rb"\\(?:[0-7]{3}|x[0-9a-fA-F]{2})")
"""Bytes as text formats of protocol buffers and Python write them."""
_NEEDED = re.compile(
    rb'"precompiled_charsmap"\s*:\s*"[A-Za-z0-9+/=]*'
    rb"|;base64,(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|PHN2Z|PD94b)[A-Za-z0-9+/=]*"
)
"""In base64, a table of characters of a tokenizer's normalizer, and pictures of a model card: PNG, JPEG, GIF, WebP and
SVG begin so."""


def holds_encoded_numbers(text: bytes) -> bool:
    """Whether a text has a long passage that nobody has written: thousands of numbers, or of bytes in letters."""
    text = _NEEDED.sub(b"", text)
    starts = range(0, len(text) - _BLOCK + 1, _BLOCK)
    if any(_is_encoded(text[start : start + _BLOCK]) for start in starts) or _is_pickle(text):
        return True
    return sum(found.end() - found.start() for found in _ESCAPED.finditer(text)) > _BLOCK


def _is_encoded(block: bytes) -> bool:
    if not block.translate(None, _UNBROKEN):
        return len(set(block)) >= _LEAST_SIGNS
    if not block.translate(None, _NUMBERS):
        return len(block) - len(block.translate(None, _DIGITS)) > _LEAST_DIGITS * len(block)
    return not block.translate(None, _BASE64 + _SPACE) and len(block) > _LEAST_LENGTH * len(block.split()) > 0


def _is_pickle(text: bytes) -> bool:
    """Whether it is one of protocol 0, which is text, from its beginning to its end."""
    if not text.endswith(b"."):
        return False
    try:
        places = [place for _, _, place in pickletools.genops(text)]
    except ValueError:  # the first word of most texts is no step of a pickle
        return False
    return len(places) >= _LEAST_STEPS and places[-1] == len(text) - 1
