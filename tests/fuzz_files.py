"""Files with something wrong in them: reading each gives a right program, or an error of ours.

``python tests/fuzz_files.py --count 10000 --seed 0`` tries as many as one likes, changed in one way
or several: the manifest (sealed again, as an attacker would), single bits, the length, the header,
weights, and archives of data. Code stands wherever text may stand; it would leave a file behind.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fxcompress as fx
from crafted import manifest_of, write_manifest
from fxcompress.errors import LoadError
from fxcompress.loaders import load_task
from fxcompress.loaders.weights import load_weights
from fxcompress.passes import NMSparsity
from fxcompress.program import Program
from models import build

SECONDS, BYTES = 2.0, 500 * 2**20  # what reading a small file may take at most
NETS = ("mlp", "tied_language_model", "fused_attention", "many_inputs")


class FoundError(AssertionError):
    """A file that did what no file may."""


class Fuzzer:
    """Saved programs, and ways to spoil them."""

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.random = random.Random(seed)
        self.folder = folder
        self.flag = folder / "executed"
        self.code = f"__import__('pathlib').Path({str(self.flag)!r}).touch()"
        self.programs = [fx.compile(*build(name)) for name in NETS] + [_in_training()]
        self.saved = [folder / f"good{index}" for index in range(len(self.programs))]
        for path, program in zip(self.saved, self.programs, strict=True):
            program.save(path)
            program.save(path.with_suffix(".fxc"))
        self.manifests = [manifest_of(path) for path in self.saved]
        self.operators = sorted(torch._C._dispatch_get_all_op_names())
        self.net = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
        torch.save(self.net.state_dict(), folder / "good.pt")
        x = np.ones((4, 5))
        np.savez(folder / "good.npz", x=x, labels=np.ones(4))
        np.savez(folder / "pickled.npz", x=np.array([_Bomb(self.flag)], dtype=object), labels=x)

    def case(self) -> tuple[str, str]:
        """Spoil one file and read it; what was done, and what came of it.

        Raises:
            FoundError: Reading it did what it may not.
        """
        make = self.random.choice((*[_manifest] * 6, _bits, _bits, _cut, _header, _npz, _weights))
        start = time.process_time()
        outcome = make(self)
        seconds = time.process_time() - start
        if self.flag.exists():
            raise FoundError(f"{make.__name__}: code in the file was run")
        if seconds > SECONDS:
            raise FoundError(f"{make.__name__}: took {seconds:.1f} s of CPU time")
        return make.__name__.strip("_"), outcome

    def read(self, path: Path, *, may_load: bool) -> str:
        """Load a program; one that loads has to be whole."""
        try:
            program = fx.load(path)
        except LoadError:
            return "refused"
        if not may_load:
            raise FoundError("a damaged file was loaded")
        str(program.report)
        program.module.graph.lint()
        if not (program.args or program.kwargs):
            return "loaded without inputs"
        try:
            program(*program.args, **program.kwargs)
        except (IndexError, RuntimeError):  # the values of inputs, which no file can promise
            return "loaded, refuses its inputs"
        return "loaded"


def _in_training() -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
    x = torch.randn(3, 8, dtype=torch.float64)
    return fx.compile(net, (x,), passes=[NMSparsity(trainable=True)])


class _Bomb:
    """What runs code where it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.flag), "w")


def _manifest(fuzzer: Fuzzer) -> str:
    index = fuzzer.random.randrange(len(fuzzer.saved))
    manifest = json.loads(json.dumps(fuzzer.manifests[index]))
    for _ in range(fuzzer.random.choice((1, 1, 1, 2, 3))):
        places = list(_places(manifest))
        holder, key = fuzzer.random.choice(places)
        _spoil(fuzzer, holder, key, places)
    write_manifest(fuzzer.saved[index], manifest)
    try:
        return fuzzer.read(fuzzer.saved[index], may_load=True)
    finally:
        write_manifest(fuzzer.saved[index], fuzzer.manifests[index])


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every entry of every list and dictionary."""
    todo = [data]
    while todo:
        holder = todo.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], dict | list):
                todo.append(holder[key])


def _spoil(fuzzer: Fuzzer, holder: Any, key: Any, places: list[tuple[Any, Any]]) -> None:
    draw, old = fuzzer.random, holder[key]
    other, place = draw.choice(places)
    spare = other[place] if _is_key(other, place) else old
    name = draw.choice(fuzzer.operators).replace("::", ".")
    values: list[Any] = [
        *(fuzzer.code, f"x={fuzzer.code}", f"x'); {fuzzer.code} #", f"\n{fuzzer.code}\n"),
        *(2**31, 2**48, 2**63, 10**30, -1, 0, 1, 7, 0.5, 1e308, True, None, "", "x", "output"),
        *([], {}, [[]], {"tuple": []}, {"node": "x"}, {"float": "nan"}, {"tensor": "tensor.0"}),
        *({"device": "cuda:99"}, {"dtype": "int64"}, "x" * 100_000, name, f"{name}.default"),
        *("operator.pow", "builtins.round", "aten.from_file.default", "__class__", "forward"),
        *("training", "aten.zeros.default", "aten.unbind.int", "lambda", "get_attr"),
        *(json.loads(json.dumps(spare)), _nested(150), [old] * 3),
    ]
    if isinstance(old, str) and draw.random() < 0.5:
        values = values[:4] + [value for value in values if isinstance(value, str)]
    if isinstance(old, int) and draw.random() < 0.5:
        values = [old + 1, old - 1, old * 2, -old, 2**40, 2**63 - 1, old // 2, not old]
    if isinstance(holder, list) and draw.random() < 0.2:
        holder.insert(key, json.loads(json.dumps(spare)))
    elif draw.random() < 0.1:
        del holder[key]
    elif isinstance(holder, dict) and draw.random() < 0.05:
        holder[draw.choice([fuzzer.code, "x", "more"])] = holder.pop(key)
    else:
        holder[key] = draw.choice(values)


def _is_key(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _nested(depth: int) -> Any:
    data: Any = 1
    for _ in range(depth):
        data = [data]
    return data


def _bits(fuzzer: Fuzzer) -> str:
    def flip(data: bytearray) -> None:
        for _ in range(fuzzer.random.choice((1, 1, 1, 2, 9))):
            data[fuzzer.random.randrange(len(data))] ^= 1 << fuzzer.random.randrange(8)

    return _changed(fuzzer, flip)


def _cut(fuzzer: Fuzzer) -> str:
    def cut(data: bytearray) -> None:
        place, more = fuzzer.random.randrange(len(data)), fuzzer.random.randrange(-98, 99)
        data[place : None if more < 0 else place] = fuzzer.random.randbytes(max(0, more))

    return _changed(fuzzer, cut)


def _header(fuzzer: Fuzzer) -> str:
    def lie(data: bytearray) -> None:
        length = fuzzer.random.choice((0, 1, 7, 2**31, 2**63, 2**64 - 1, len(data), len(data) - 8))
        data[:8] = struct.pack("<Q", length)

    return _changed(fuzzer, lie, ".safetensors")


def _changed(fuzzer: Fuzzer, change: Callable[[bytearray], None], suffix: str = "") -> str:
    """Change a file of a saved program in place; a change of nothing is none."""
    path = fuzzer.random.choice(fuzzer.saved)
    path = fuzzer.random.choice((path, path.with_suffix(".fxc")))
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    file = fuzzer.random.choice(
        [one for one in files if one.suffix in (suffix or one.suffix, ".fxc")]
    )
    good = file.read_bytes()
    bad = bytearray(good)
    change(bad)
    file.write_bytes(bad)
    try:
        return fuzzer.read(path, may_load=bytes(bad) == good)
    finally:
        file.write_bytes(good)


def _npz(fuzzer: Fuzzer) -> str:
    """Data for passes: archives are zip files of arrays, and an array may be a pickle."""
    name = fuzzer.random.choice(("good.npz", "pickled.npz"))
    bad = _spoiled(fuzzer, (fuzzer.folder / name).read_bytes())
    path = fuzzer.folder / "bad.npz"
    path.write_bytes(bad)
    try:
        task = load_task(str(path), fuzzer.programs[0])
        assert task.data is not None
        next(iter(task.data))
    except LoadError:
        return "refused"
    return "loaded"


def _weights(fuzzer: Fuzzer) -> str:
    path = fuzzer.folder / "bad.pt"
    if fuzzer.random.random() < 0.2:
        torch.save({"0.weight": _Bomb(fuzzer.flag)}, path)
    else:
        path.write_bytes(_spoiled(fuzzer, (fuzzer.folder / "good.pt").read_bytes()))
    try:
        load_weights(fuzzer.net, path)
    except LoadError:
        return "refused"
    return "loaded"


def _spoiled(fuzzer: Fuzzer, good: bytes) -> bytes:
    bad, draw = bytearray(good), fuzzer.random
    for _ in range(draw.choice((0, 1, 2, 5))):
        bad[draw.randrange(len(bad))] = draw.randrange(256)
    if draw.random() < 0.2:
        del bad[draw.randrange(len(bad)) :]
    header = bytes(good).find(b"'shape': (")
    if header > 0 and draw.random() < 0.2:
        bad[header + 10 : header + 14] = draw.choice((b"9999", b"(99)", b"-999", b"2**9"))
    return bytes(bad)


def fuzz(count: int, seed: int, folder: Path) -> Counter[tuple[str, str]]:
    """Try `count` files.

    Raises:
        FoundError: One of them did what no file may; the message says which.
    """
    fuzzer = Fuzzer(folder, seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes: Counter[tuple[str, str]] = Counter()
    for number in range(count):
        try:
            outcomes[fuzzer.case()] += 1
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise FoundError(f"file {number} of seed {seed}: {what}") from error
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > BYTES:
        raise FoundError(f"reading took {grown / 2**20:.0f} MiB of memory")
    return outcomes


def main() -> None:
    """Fuzz as the command line says, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = fuzz(asked.count, asked.seed, Path(folder) / "files")
    for (kind, outcome), number in sorted(outcomes.items()):
        print(f"{kind:10} {outcome:28} {number}")
    print(f"{asked.count} files, nothing found, {time.process_time() - start:.0f} s of CPU time")


if __name__ == "__main__":
    main()
