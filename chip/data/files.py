"""What can be read as a file at all."""

from __future__ import annotations

import errno
import stat
from pathlib import Path


def check_readable(path: Path) -> None:
    """Refuse at once what reading would wait for, or never come to the end of.

    Raises:
        OSError: it is a pipe, a device or a socket; or it is not there.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "a pipe or a device, and no file")
