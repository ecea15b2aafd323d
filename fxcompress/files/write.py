"""Write files whole or not at all: every file of this project goes to its place through here.

A draft is written in a folder of its own beside the place, flushed to the disk, and then renamed.
Links are followed, so that what they point to is replaced and not the link. Only regular files are
ever replaced. What a result consists of besides its main file has names that follow from the
content, so that a main file never points to what belongs to another.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fxcompress.errors import WriteError
from fxcompress.files.drafts import alone, draft_folder, is_draft

AnyPath = str | os.PathLike[str]
IsPart = Callable[[str], bool]
"""Whether a name is that of a part that a result of ours has beside its main file."""

_KINDS = {
    stat.S_IFDIR: "a folder; give the name of a file",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}

_WAYS_OUT = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "make room, or choose another disk",
    (errno.EACCES, errno.EPERM, errno.EROFS): "choose a folder that you may write to",
    (errno.ENAMETOOLONG,): "choose a shorter name",
    (errno.ENOTDIR, errno.EEXIST): "a part of the path is a file; choose another path",
}


def file_target(path: AnyPath) -> Path:
    """Where a file that is written to `path` goes: links are followed, dangling ones too.

    Raises:
        WriteError: Something else than a regular file is there, or nothing can be there.
    """
    target, mode = _looked_up(path)
    if mode is not None and not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise WriteError(path, f"it is {kind}", "nothing but regular files is replaced")
    return target


def folder_target(path: AnyPath, is_ours: Callable[[Path], bool]) -> Path:
    """Where a result that is a folder goes.

    Raises:
        WriteError: Something is there that is neither an empty folder nor, by `is_ours`, a result
        of ours.
    """
    target, mode = _looked_up(path)
    if mode is not None and not stat.S_ISDIR(mode):
        raise WriteError(path, "it exists and is no folder", "choose another name")
    with _told(path):
        if mode is not None and not _is_empty(target) and not is_ours(target):
            reason = "the folder is not empty and is not a saved program"
            raise WriteError(path, reason, "choose another folder")
    return target


@contextmanager
def written(path: AnyPath, is_part: IsPart | None = None) -> Iterator[Path]:
    """Give the path of a draft; once the body has written it, it takes the place of `path`.

    What the body leaves beside the draft are parts that the draft names: they move first, under
    names that no file before used for other content. Parts of the result before are swept last.

    Args:
        path: A file. Folders on the way to it are made.
        is_part: Tells parts of former results from other files in the same folder.

    Raises:
        WriteError: The disk refuses, or what is there must not be replaced. Everything is then as
        it was.
    """
    target = file_target(path)
    with _told(path), _made(target.parent), draft_folder(target.parent) as folder:
        draft = folder / target.name
        yield draft
        _move(draft, file_target(path), is_part)


@contextmanager
def written_folder(
    path: AnyPath, main: str, is_part: IsPart, is_ours: Callable[[Path], bool]
) -> Iterator[Path]:
    """Like `written`, for a folder: give the draft of its file `main`, which names the others.

    A folder that is not there yet appears whole. In one that is, parts are added, `main` is
    replaced, and the parts before are swept: it is never missing and never half of each.
    """
    target = folder_target(path, is_ours)
    if target.exists():
        with written(target / main, is_part) as draft:
            yield draft
        return
    with new_folder(path) as new:
        yield new / main


@contextmanager
def new_folder(path: AnyPath) -> Iterator[Path]:
    """Give the draft of a folder, which appears whole at `path`; see `written`.

    Raises:
        WriteError: Something other than an empty folder is there, or the disk refuses.
    """
    target = new_folder_target(path)
    with _told(path), _made(target.parent), draft_folder(target.parent) as folder:
        new = folder / target.name
        new.mkdir()
        yield new
        _settle([one for one in new.rglob("*") if one.is_file()], _usual_mode(folder))
        for one in (new, *(inner for inner in new.rglob("*") if inner.is_dir())):
            _flush_folder(one)
        if target.exists():
            target.rmdir()  # empty; not every system renames over it
        new.rename(target)
        _flush_folder(target.parent)


def new_folder_target(path: AnyPath) -> Path:
    """Where a folder that must be new goes.

    Raises:
        WriteError: Something other than an empty folder is there, or nothing can be there.
    """
    return folder_target(path, lambda _: False)


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Write `data` to `path`; see `written`."""
    with written(path) as draft:
        draft.write_bytes(data)


def write_text(path: AnyPath, text: str) -> None:
    """Write `text` to `path` in UTF-8, with the line ends it has; see `written`."""
    write_bytes(path, text.encode("utf-8"))


def named_by_content(part: Path, name: str) -> Path:
    """Rename a part of a draft after the digest of its content.

    Args:
        part: A file beside a draft.
        name: The new name, with ``{}`` where 16 hexadecimal digits of the SHA-256 go.
    """
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return part.rename(part.with_name(name.format(digest[:16])))


def disk_error(error: Exception) -> OSError:
    """What the system said, where a library tells it in an error of its own."""
    found = re.search(r"\bos error (\d+)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else OSError(str(error))


def _looked_up(path: AnyPath) -> tuple[Path, int | None]:
    """The path without links, and the mode of what is there."""
    with _told(path):
        target = Path(os.path.realpath(path))
        home = next(parent for parent in target.parents if parent.exists())
        if not os.access(home, os.W_OK):
            raise PermissionError(errno.EACCES, f"{home} may not be written to")
        try:
            return target, target.lstat().st_mode
        except FileNotFoundError:
            return target, None


def _move(draft: Path, target: Path, is_part: IsPart | None) -> None:
    """Move a draft and its parts from their folder into the place."""
    home = target.parent
    parts = sorted(part for part in draft.parent.iterdir() if part != draft)
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else _usual_mode(draft.parent)
    _settle([*parts, draft], mode)
    with alone(home):
        places = [file_target(home / part.name) for part in parts]
        new = [place for place in places if not place.exists()]
        try:
            for part, place in zip(parts, places, strict=True):
                part.replace(place)
            _flush_folder(home)
            draft.replace(target)
        except BaseException:
            for place in new if draft.exists() else ():  # else it has moved, and needs them
                place.unlink(missing_ok=True)
            raise
        _flush_folder(home)
        if is_part is not None:
            _sweep(home, is_part, {place.name for place in places})


def _sweep(home: Path, is_part: IsPart, wanted: set[str]) -> None:
    """Remove what former results leave, of this and of crashed runs."""
    for name in os.listdir(home):
        if is_part(name) and name not in wanted and stat.S_ISREG((home / name).lstat().st_mode):
            (home / name).unlink(missing_ok=True)


def _settle(files: list[Path], mode: int) -> None:
    """Flush files to the disk and give them their mode."""
    for file in files:
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
        file.chmod(mode)


def _usual_mode(folder: Path) -> int:
    """The mode of a new file. Asking for the umask would change it for other threads."""
    probe = folder / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where folders can be opened."""
    if os.name == "nt":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _is_empty(folder: Path) -> bool:
    return all(is_draft(name) for name in os.listdir(folder))


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make the folders that are missing; if the body fails they go again."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for one in missing:
            if one.exists() and not os.listdir(one):
                one.rmdir()
        raise


@contextmanager
def _told(path: AnyPath) -> Iterator[None]:
    """Tell what the system refuses in our words."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        ways = (advice for codes, advice in _WAYS_OUT.items() if error.errno in codes)
        raise WriteError(path, reason, next(ways, "choose another path")) from error
