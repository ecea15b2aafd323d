"""Folders that drafts of files are written in, and what crashed runs leave of them.

The name of such a folder tells the machine and the process that it belongs to. It is rubbish once
that process is gone.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_NAME = re.compile(r"\.fxcompress-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{16}\.tmp")
_FOREIGN_AGE = 7 * 24 * 3600
"""Seconds after which a draft of another machine is rubbish: no write takes that long."""
_PATIENCE = 60
_mine: set[str] = set()
_in_process = threading.Lock()


def is_draft(name: str) -> bool:
    """Whether a file of this name is the folder of a draft."""
    return _NAME.fullmatch(name) is not None


@contextmanager
def draft_folder(home: Path) -> Iterator[Path]:
    """A folder in `home` for the body, and for nobody else; it is gone afterwards.

    Folders that crashed runs left in `home` are removed.
    """
    sweep_drafts(home)
    name = f".fxcompress-{_HOST}-{os.getpid()}-{secrets.token_hex(8)}.tmp"
    _mine.add(name)  # before it exists, so that no other thread takes it for rubbish
    folder = home / name
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _mine.discard(name)


def sweep_drafts(home: Path) -> None:
    """Remove the folders in `home` of which the process is gone.

    What cannot be removed stays: it does not stand in the way of a new file.
    """
    for name in os.listdir(home):
        found = _NAME.fullmatch(name)
        if found and name not in _mine and _is_rubbish(home / name, found):
            shutil.rmtree(home / name, ignore_errors=True)


def _is_rubbish(folder: Path, name: re.Match[str]) -> bool:
    try:
        about = folder.lstat()
    except FileNotFoundError:  # its owner has just removed it
        return False
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != _user():
        return False
    if name["host"] != _HOST:
        return time.time() - about.st_mtime > _FOREIGN_AGE
    return not _lives(int(name["process"]), about.st_ctime)


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0  # Windows says 0 for every file


def _lives(process: int, since: float) -> bool:
    """Whether the process that had this number at that time still runs."""
    if process == os.getpid():
        return False  # the drafts of this process are known; this is of one before it
    import psutil  # slow to import, and seldom needed

    try:
        found = psutil.Process(process)
        # A second for what clocks differ by: a later process has only the same number.
        return bool(found.status() != psutil.STATUS_ZOMBIE and found.create_time() <= since + 1)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Let one writer at a time, of this and other processes, move files into `home`.

    The lock lies on the folder itself and ends with the process. On a file system without locks,
    two that write the very same result at once may see one of them fail.

    Raises:
        TimeoutError: Another process has held the lock for a minute.
    """
    if fcntl is None:
        with _in_process:
            yield
        return
    opened = os.open(home, os.O_RDONLY)
    try:
        _lock(opened, home)
        yield
    finally:
        os.close(opened)


def _lock(opened: int, home: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError(errno.ETIMEDOUT, f"another process has locked {home}") from None
            time.sleep(0.005)
        except OSError as error:
            if error.errno in (errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                return  # network file systems: no locks on folders
            raise
        else:
            return
