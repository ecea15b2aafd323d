"""Everything that writes: the right result at the right place, or one error and all as it was."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fxcompress.errors import WriteError
from fxcompress.files.drafts import _HOST, is_draft
from writers import WRITERS, Writer

UMASK = 0o027


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(UMASK)
    yield
    os.umask(before)


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> Writer:
    return WRITERS[request.param]


def shot(folder: Path) -> dict[str, Any]:
    """All there is in a folder: kinds, modes, contents, ends of links."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        content: object = None
        if path.is_symlink():
            content = path.readlink()
        elif stat.S_ISREG(about.st_mode):
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (about.st_mode, content)
    return found


def nothing_else(place: Path, writer: Writer) -> None:
    """Beside the result there is nothing but its own parts."""
    others = [path for path in place.parent.iterdir() if path != place]
    assert len(others) == writer.parts
    assert all(path.name.startswith(place.name) for path in others)
    assert not any(is_draft(path.name) for path in place.parent.rglob("*"))
    files = [path for path in place.parent.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~UMASK}
    if writer.folder:
        assert stat.S_IMODE(place.stat().st_mode) == 0o777 & ~UMASK


def test_a_new_result_is_there_alone_with_the_usual_mode(writer: Writer, tmp_path: Path) -> None:
    place = tmp_path / "deep" / "er" / writer.name
    (writer.whole or writer.write)(place, 1)
    assert writer.read(place) == 1
    nothing_else(place, writer)


def test_a_second_result_replaces_the_first_and_its_parts(writer: Writer, tmp_path: Path) -> None:
    place = tmp_path / writer.name
    writer.write(place, 1)
    if not writer.repeats:
        before = shot(tmp_path)
        with pytest.raises(WriteError, match="not empty"):
            writer.write(place, 2)
        assert shot(tmp_path) == before
        return
    writer.write(place, 2)
    assert writer.read(place) == 2
    nothing_else(place, writer)
    count = len(shot(tmp_path))
    writer.write(place, 2)  # the same parts once more
    assert writer.read(place) == 2
    assert len(shot(tmp_path)) == count


def test_the_mode_of_a_file_stays(writer: Writer, tmp_path: Path) -> None:
    if writer.folder:
        pytest.skip("a folder keeps its own mode")
    place = tmp_path / writer.name
    place.write_bytes(b"old")
    place.chmod(0o600)
    writer.write(place, 1)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("dangling", [False, True])
def test_links_are_followed(writer: Writer, dangling: bool, tmp_path: Path) -> None:
    real = tmp_path / "real" / writer.name
    if not dangling:
        if writer.repeats:
            writer.write(real, 1)
        else:
            real.mkdir(parents=True)
    link = tmp_path / "links" / writer.name
    link.parent.mkdir()
    link.symlink_to(Path("..") / "real" / writer.name)
    writer.write(link, 2)
    assert link.is_symlink()
    assert list(link.parent.iterdir()) == [link]
    assert writer.read(real) == 2
    assert len(list(real.parent.iterdir())) == 1 + writer.parts


def _device(place: Path) -> None:
    try:
        os.mknod(place, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def _socket(place: Path) -> None:
    here = Path.cwd()
    os.chdir(place.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(place.name)
    finally:
        os.chdir(here)


def _folder(place: Path) -> None:
    place.mkdir()
    (place / "thesis.tex").write_text("years of work")


def _model(place: Path) -> None:
    """A folder as others write them, with names like ours."""
    place.mkdir()
    for name in ("model.safetensors", "model-00001-of-00002.safetensors", "fxcompress.jsn"):
        (place / name).write_bytes(b"weights")


def _loop(place: Path) -> None:
    place.symlink_to(place)


def _under_a_file(place: Path) -> None:
    place.parent.rmdir()
    place.parent.write_text("a file")


IN_THE_WAY: dict[str, Callable[[Path], None]] = {
    "device": _device, "pipe": os.mkfifo, "socket": _socket, "folder": _folder, "model": _model,
    "loop": _loop, "under a file": _under_a_file,
}  # fmt: skip


@pytest.mark.parametrize("kind", IN_THE_WAY)
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_not_ours_is_never_replaced(
    writer: Writer, kind: str, linked: bool, tmp_path: Path
) -> None:
    place = asked = tmp_path / "home" / writer.name
    place.parent.mkdir()
    IN_THE_WAY[kind](place)
    if linked:
        asked = tmp_path / f"link{place.suffix}"
        asked.symlink_to(place)
    before = shot(tmp_path)
    write = writer.whole if writer.whole and kind == "device" else writer.write
    with pytest.raises(WriteError) as caught:
        write(asked, 1)
    assert str(asked) in str(caught.value) or str(place) in str(caught.value)
    assert shot(tmp_path) == before


def test_a_file_is_no_folder_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    for name in ("directory", "pretrained"):
        with pytest.raises(WriteError, match="no folder"):
            WRITERS[name].write(tmp_path / "a", 1)
    assert (tmp_path / "a").read_text() == "a file"


@contextmanager
def little_room() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def failing(name: str, code: int, calls: int = 0) -> Iterator[None]:
    """The function of `os` of this name fails after so many calls."""
    real, left = getattr(os, name), [calls]

    def fail(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, fail)
        yield


REFUSALS = {
    "file too large": (little_room, "make room"),
    "disk full": (lambda: failing("fsync", errno.ENOSPC), "make room"),
    "disk full later": (lambda: failing("fsync", errno.ENOSPC, 1), "make room"),
    "read-only": (lambda: failing("mkdir", errno.EROFS), "may write to"),
    "no permission": (lambda: failing("mkdir", errno.EACCES), "may write to"),
    "in use": (lambda: failing("replace", errno.EBUSY), "choose another"),
    "in use, parts moved": (lambda: failing("replace", errno.EBUSY, 1), "choose another"),
}


@pytest.mark.parametrize("why", REFUSALS)
@pytest.mark.parametrize("old", [False, True])
def test_what_the_disk_refuses_is_one_error_and_changes_nothing(
    writer: Writer, why: str, old: bool, tmp_path: Path
) -> None:
    if (old and not writer.repeats) or (writer.folder and not old and why.startswith("in use")):
        pytest.skip("nothing is replaced")
    if why.endswith("moved") and not (writer.parts or writer.folder):
        pytest.skip("there are no parts")
    place = tmp_path / writer.name
    if old:
        writer.write(place, 1)
    before = shot(tmp_path)
    refusal, advice = REFUSALS[why]
    with pytest.raises(WriteError, match=advice), refusal():
        writer.write(place, 2)
    assert shot(tmp_path) == before
    writer.write(place, 3)
    assert writer.read(place) == 3


def test_a_name_too_long_is_refused(writer: Writer, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="choose a shorter name"):
        writer.write(tmp_path / f"{'a' * 255}{Path(writer.name).suffix or 'a'}", 1)
    assert not list(tmp_path.iterdir())


def test_a_name_as_long_as_may_be_is_taken(tmp_path: Path) -> None:
    writer = WRITERS["one file"]
    writer.write(tmp_path / f"{'a' * 251}.fxc", 1)
    assert writer.read(tmp_path / f"{'a' * 251}.fxc") == 1


def draft(folder: Path, host: str, process: int) -> Path:
    made = folder / f".fxcompress-{host}-{process}-0123456789abcdef.tmp"
    made.mkdir()
    (made / "a").write_bytes(b"half")
    return made


def test_drafts_of_the_dead_are_swept_and_those_of_the_living_left(
    writer: Writer, tmp_path: Path
) -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and in the list still
    dead = draft(tmp_path, _HOST, child.pid)
    former = draft(tmp_path / "..", _HOST, os.getpid()).rename(
        tmp_path / f".fxcompress-{_HOST}-{os.getpid()}-fedcba9876543210.tmp"
    )
    living = draft(tmp_path, _HOST, os.getppid())
    elsewhere = draft(tmp_path, "00000000", child.pid)
    foreign = tmp_path / ".fxcompress-notes.tmp"
    foreign.mkdir()
    writer.write(tmp_path / writer.name, 1)
    child.wait()
    assert writer.read(tmp_path / writer.name) == 1
    assert not dead.exists()
    assert not former.exists()
    assert all(path.is_dir() for path in (living, elsewhere, foreign))
