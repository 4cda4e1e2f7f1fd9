"""What can be read to its end: no pipe, device or socket."""

import errno
import os
import stat
from pathlib import Path


def check_regular_file(path: Path, *, or_folder: bool = False) -> os.stat_result:
    """Refuse at once what opening or reading would wait for, or never come to the end of.

    Args:
        or_folder: a folder is right too.

    Raises:
        OSError: it is a pipe, a device or a socket, or a folder; or it is not there.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode) and not or_folder:
        raise IsADirectoryError(errno.EISDIR, "a folder, and no file")
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise OSError(errno.EINVAL, "a pipe or a device, and no file")
    return status
