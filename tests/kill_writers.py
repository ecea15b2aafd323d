"""Kill writers at random moments: what is at the place is the old result or the new one, whole.

``python tests/kill_writers.py --count 500`` kills 500 processes, every writer in turn.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fxcompress.files.drafts import is_draft
from writers import STEPS, WRITERS, Writer


@dataclass
class Target:
    """A place that one writer writes to, again and again.

    Attributes:
        writer: The writer.
        place: Where it writes.
        step: The number of the last result that is known to be there; None before any.
        seconds: What one write takes.
        seen: How often a kill left what.
    """

    writer: Writer
    place: Path
    step: int | None = None
    seconds: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)

    def warm(self) -> None:
        """Do once what is kept, so that processes that come of this one only write."""
        for step in range(STEPS):
            self.write(step)
        shutil.rmtree(self.place.parent)
        start = time.perf_counter()
        self.write(0)
        self.seconds, self.step = time.perf_counter() - start, 0

    def write(self, step: int) -> None:
        """Write a result, also where the writer only makes new ones."""
        if not self.writer.repeats and self.place.exists():
            shutil.rmtree(self.place.with_name("before"), ignore_errors=True)
            self.place.rename(self.place.with_name("before"))
        self.writer.write(self.place, step)

    def kill_once(self, draw: random.Random) -> None:
        """Let a process write in a loop, kill it, and look at what it leaves.

        Raises:
            AssertionError: It is neither the last result that was told of nor the next.
        """
        assert self.step is not None
        last = self.step + self._written_until(draw.uniform(0, 3 * self.seconds))
        self._look(last % STEPS)
        self.step = (last + 2) % STEPS
        self.write(self.step)
        assert self.writer.read(self.place) == self.step
        names = {path.name for path in self.place.parent.rglob("*")} - {self.place.name}
        assert not any(map(is_draft, names)), names
        if not self.writer.folder:
            assert len(names) == self.writer.parts, names

    def _written_until(self, seconds: float) -> int:
        """How many writes a process tells of until it is killed."""
        assert self.step is not None
        told, tell = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the child only writes files
            child = os.fork()
        if child == 0:
            self._write_for_ever(tell)
        os.close(tell)
        assert os.read(told, 1) == b"!"  # it runs
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer failed by itself"
        with os.fdopen(told, "rb") as pipe:
            return len(pipe.read())

    def _write_for_ever(self, tell: int) -> None:
        """In the child: write, and tell each time that it is done."""
        try:
            assert self.step is not None
            os.write(tell, b"!")
            step = self.step
            while True:
                step += 1
                self.write(step % STEPS)
                os.write(tell, b".")
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _look(self, last: int) -> None:
        drafts = [path for path in self.place.parent.rglob("*") if is_draft(path.name)]
        self.seen["left a draft"] += bool(drafts)
        if not self.writer.repeats and not self.place.exists():
            self.seen["absent, as it had been moved"] += 1
            return
        found = self.writer.read(self.place)
        assert found in (last, (last + 1) % STEPS), f"{found} after {last}"
        self.seen["the old one" if found == last else "the new one, not told of yet"] += 1


def kill(count: int, seed: int, folder: Path) -> dict[str, Counter[str]]:
    """Kill `count` writers, each in turn, and say what was found."""
    draw = random.Random(seed)
    targets = {
        name: Target(writer, folder / str(number) / writer.name)
        for number, (name, writer) in enumerate(WRITERS.items())
    }
    for target in targets.values():
        target.warm()
    for number in range(count):
        name = list(targets)[number % len(targets)]
        try:
            targets[name].kill_once(draw)
        except Exception as error:
            raise AssertionError(f"kill {number}, seed {seed}, {name}: {error!r}") from error
    return {name: target.seen for name, target in targets.items()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = kill(options.count, options.seed, Path(folder))
    for name, seen in found.items():
        print(f"{name:14}", ", ".join(f"{times} {what}" for what, times in sorted(seen.items())))
    print(f"{options.count} killed; every result is the old one or the new one, whole")


if __name__ == "__main__":
    main()
