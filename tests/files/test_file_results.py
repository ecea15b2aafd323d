"""Results over time: two at once, old ones, killed writers; and that nothing writes by itself."""

from __future__ import annotations

import pickle
import re
import threading
from collections.abc import Callable
from pathlib import Path

import fxcompress as fx
from fxcompress.errors import WriteError
from kill_writers import kill
from writers import WRITERS


def test_threads_write_and_read_one_directory(tmp_path: Path) -> None:
    place, writer, wrong = tmp_path / "a", WRITERS["directory"], []
    writer.write(place, 0)

    def loop(work: Callable[[int], object]) -> None:
        try:
            for step in range(12):
                work(step)
        except Exception as error:
            wrong.append(error)

    threads = [
        threading.Thread(target=loop, args=(lambda n, t=t: writer.write(place, (n + t) % 4),))
        for t in range(2)
    ]
    threads.append(threading.Thread(target=loop, args=(lambda _: writer.read(place),)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(list(place.iterdir())) == 3


def test_directories_of_old_are_replaced(tmp_path: Path) -> None:
    place, writer = tmp_path / "a", WRITERS["directory"]
    place.mkdir()
    (place / "fxcompress.json").write_text('{"format": "fxcompress", "version": 1}')
    for name in ("model.safetensors", "extras.safetensors"):
        (place / name).write_bytes(b"tensors")
    writer.write(place, 2)
    assert writer.read(place) == 2
    assert len(list(place.iterdir())) == 3


def test_a_file_of_the_users_in_our_directory_stays(tmp_path: Path) -> None:
    place, writer = tmp_path / "a", WRITERS["directory"]
    writer.write(place, 1)
    (place / "notes.txt").write_text("mine")
    writer.write(place, 2)
    assert writer.read(place) == 2
    assert (place / "notes.txt").read_text() == "mine"


def test_the_error_says_what_and_can_be_sent_to_another_process() -> None:
    error = WriteError("a.fxc", "it is a device", "nothing but regular files is replaced")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert str(again) == (
        "cannot write a.fxc: it is a device; nothing but regular files is replaced"
    )
    assert isinstance(error, fx.FxCompressError)


def test_a_killed_writer_leaves_the_old_result_or_the_new_one(tmp_path: Path) -> None:
    seen = kill(3 * len(WRITERS), 0, tmp_path)
    assert sum(one.total() - one["left a draft"] for one in seen.values()) == 3 * len(WRITERS)


OURS = re.compile(r"(?<!\.)\bwrite_(text|bytes)\(|def |draft|part\b|\bstream\b")
WRITES = re.compile(
    r"write_text\(|write_bytes\(|savefig\(|save_(file|model)\(|os\.replace|mkstemp|NamedTemporary"
    r"|\bopen\([^)]*[\"'][wax]b?\+?[\"']|torch\.save\("
)


def test_nothing_in_the_package_writes_past_the_writer(repository: Path) -> None:
    for folder in ("fxcompress", "passes", "export"):
        for path in (repository / folder).rglob("*.py"):
            for line in path.read_text().splitlines():
                found = WRITES.search(line)
                ours = OURS.search(line)
                assert not found or ours, f"{path.name}: {line.strip()}"
