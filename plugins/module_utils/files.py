"""Atomic replacement of files: a reader sees the old content or the new one, never a part of it.

This also holds if the writer is killed, the disk is full, or the power fails.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

#: Default permission bits of folders that a write creates.
FOLDER_MODE = 0o755


def write_atomic(
    path: Path, text: str, mode: int = 0o640, *, durable: bool = True, folder_mode: int | None = None
) -> None:
    """Replace a file by a text in UTF-8; characters that UTF-8 cannot encode become question marks.

    The new file keeps the owner and group of the old one, if the caller may change them.

    Args:
        path: The file. A symbolic link is replaced, not followed.
        text: Its new content.
        mode: Its permission bits, regardless of the umask.
        durable: Whether to flush it to the disk, so that it survives a power failure.
        folder_mode: Permission bits of the parent folder, which is created if it is missing; None creates none.

    Raises:
        OSError: The folder is missing or the disk is full. It names `path`; the old file is unchanged.
    """
    try:
        if folder_mode is not None:
            path.parent.mkdir(mode=folder_mode, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as stream:
                stream.write(text)
                stream.flush()
                _take_owner(handle, path)
                os.fchmod(handle, mode)
                if durable:
                    os.fsync(handle)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        # The original error names the temporary file.
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_if_changed(path: Path, text: str, mode: int, *, durable: bool = True) -> bool:
    """As :func:`write_atomic`, if text or mode differ; returns whether they did."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text and stat.S_IMODE(path.stat().st_mode) == mode:
            return False
    write_atomic(path, text, mode, durable=durable)
    return True


def sync_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that its names survive a power failure."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_owner(handle: int, path: Path) -> None:
    """Give an open file the owner and group of a path, if the path exists and the caller may."""
    with contextlib.suppress(OSError):
        old = path.lstat()
        os.fchown(handle, old.st_uid, old.st_gid)
