"""Exit code of the command line, in this process."""

from __future__ import annotations

import sys

import pytest

from chip.cli.main import main


def run(*arguments: object) -> int:
    """Exit code of `chip ARGUMENTS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["chip", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)
