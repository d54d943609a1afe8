"""Files that are whole or absent: written under a temporary name beside their own, and renamed when they are whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_UMASK = os.umask(0)  # it can only be read by setting it, so this is done once, before there are threads
os.umask(_UMASK)
PREFIX = ".part."  # of temporary names: what a killed process leaves behind can be told from finished files


@contextlib.contextmanager
def write_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path` when the block ends well, and is removed when it fails.

    The temporary name is unique, so two processes that write the same file do not meet, and keeps the ending, by which
    writers choose a format. The data is on the disk (fsync) before the name changes, so that a power failure cannot
    leave the new name with nothing in it.

    Args:
        path: The file to write. Its folder must exist.

    Yields:
        The temporary path, in the same folder.

    Example:
        >>> with write_whole("settings.json") as temporary:
        ...     _ = temporary.write_text("{}")
    """
    path = Path(os.path.abspath(path))
    handle, name = tempfile.mkstemp(prefix=f"{PREFIX}{path.stem[:80]}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(0o666 & ~_UMASK)  # mkstemp makes files that only their owner may read
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
