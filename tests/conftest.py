"""What the tests share: one hospital, one model in memory, and how hypothesis draws."""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("COLUMNS", "120")

from hypothesis import settings

settings.register_profile("chip", deadline=None, derandomize=True, print_blob=True)  # machines are shared and slow
settings.load_profile("chip")
