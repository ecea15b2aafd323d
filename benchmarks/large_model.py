"""Compress a model that is larger than the memory it is given: a LLaMA of 3.2 billion parameters.

    python benchmarks/large_model.py --folder /some/disk

The model is made on disk, with random values, in the shapes of LLaMA-3.2-3B and in files as Hugging
Face's are. One process builds it on the meta device, compresses it by magnitude with
``weights=folder`` and saves the result; its peak memory is read from the system, and includes
Python, torch and transformers. Another process loads the result and runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "examples"), str(HERE.parent / "tests")]

import torchvision_shim  # noqa: E402

_LIBRARY = torchvision_shim.install()  # declarations that vanish with the object

import fxcompress as fx  # noqa: E402
from fxcompress.capture.checkpoint import INDEX  # noqa: E402
from fxcompress.files.tensors import Part, write_tensors  # noqa: E402
from fxcompress.files.write import write_text  # noqa: E402
from fxcompress.report.text import describe_check  # noqa: E402

LAYERS, WIDTH, HIDDEN, HEADS, KV_HEADS, VOCABULARY = 28, 3072, 8192, 24, 8, 128256
SHARD = 2 * 10**9
MOST_MEMORY = 4 * 2**30
TOKENS = (2, 16)
PRUNING = fx.passes.MagnitudePruning(ratio=0.5)
PROOFS = {"compressed and saved": False, "proved as well": True}


def model_of(layers: int) -> nn.Module:
    """The model on the meta device; what no checkpoint holds, the rotary table, has its values."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    return model


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Each parameter under its first name: the head is the embedding."""
    return dict(model.named_parameters())


# ---- the files


def make(folder: Path, layers: int) -> None:
    """Write the checkpoint, file by file."""
    torch.manual_seed(0)
    files: list[dict[str, Part]] = [{}]
    for name, parameter in parameters_of(model_of(layers)).items():
        part = Part(tuple(parameter.shape), torch.bfloat16, _drawing(parameter))
        if files[-1] and sum(one.bytes for one in files[-1].values()) + part.bytes > SHARD:
            files.append({})
        files[-1][name] = part
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    for name, parts in zip(names, files, strict=True):
        write_tensors(folder / name, parts, lambda _: {"format": "pt"})
    where = {key: name for name, parts in zip(names, files, strict=True) for key in parts}
    index = {"metadata": {}, "weight_map": where}
    write_text(folder / INDEX, json.dumps(index))


def _drawing(like: nn.Parameter) -> Callable[[], Tensor]:
    """Draws values when they are asked for: gains about one, weights that keep the scale."""
    mean, deviation = (1.0, 0.1) if like.dim() == 1 else (0.0, like.shape[-1] ** -0.5)
    return lambda: torch.empty(like.shape, dtype=torch.bfloat16).normal_(mean, deviation)


# ---- the measurement


def compress(folder: Path, layers: int, proof: str) -> dict[str, Any]:
    """Compress and save; CPU seconds and the peak so far, by stage."""
    stages: list[tuple[str, float, float]] = []
    started = ["start: import and build", 0.0]

    def stage(name: str) -> None:
        words, since = started
        stages.append((str(words), time.process_time() - float(since), peak()))
        started[:] = [name, time.process_time()]

    model = model_of(layers)
    ids = torch.randint(0, VOCABULARY, TOKENS)
    program = fx.compile(
        model,
        (ids,),
        {"use_cache": False},
        passes=[PRUNING],
        dynamic={0: {0: "batch", 1: "tokens"}},
        weights=folder / "dense",
        verify=PROOFS[proof],
        on_progress=lambda line: stage(line.partition("(")[0]),
    )
    stage("save")
    program.save(folder / "small")
    stage("end")
    return {
        "params": vars(program.report.params),
        "flops": vars(program.report.flops),
        "stages": stages,
        "peak": peak(),
        "checks": [describe_check(check) for check in program.report.checks],
    }


def run(folder: Path) -> dict[str, Any]:
    """Load the result, and run it on other tokens than those of the capture."""
    start = time.process_time()
    program = fx.load(folder / "small")
    loaded = time.process_time() - start
    ids = torch.randint(0, VOCABULARY, (3, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = program(ids, use_cache=False)["logits"]
    finite = bool(torch.isfinite(logits).all())
    return {"load": loaded, "shape": list(logits.shape), "finite": finite, "peak": peak()}


def peak() -> float:
    """The most memory that this process has held, in bytes: what the system calls VmHWM."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of macOS, in bytes
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert found is not None
    return int(found[1]) * 1024


# ---- the tables


def child(stage: str, options: argparse.Namespace, proof: str = "") -> dict[str, Any]:
    """What one stage measures, in a process of its own."""
    command = [sys.executable, __file__, "--stage", stage, "--proof", proof]
    command += ["--folder", str(options.folder), "--layers", str(options.layers)]
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(command, env=os.environ | single, stdout=subprocess.PIPE, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def staged(options: argparse.Namespace) -> None:
    """Do one stage in this process and print its figures."""
    if options.stage == "make":
        make(options.folder / "dense", options.layers)
        print(json.dumps({"peak": peak()}))
    elif options.stage == "compress":
        print(json.dumps(compress(options.folder, options.layers, options.proof)))
    else:
        print(json.dumps(run(options.folder)))


def size_of(folder: Path) -> int:
    """Bytes on disk."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def tables(results: Mapping[str, Mapping[str, Any]], options: argparse.Namespace) -> None:
    """Print and write what was measured."""
    from outcome import tabled, written

    from fxcompress.export.timing.machine import this_machine

    machine = this_machine()
    sizes = [
        (words, _count(r["params"]["before"]), _gigabytes(r["dense"]), _count(r["params"]["after"]),
         _gigabytes(r["small"]), _gibibytes(r["peak"]))
        for words, r in results.items()
    ]  # fmt: skip
    stages = [
        (f"{name} ({words})", f"{seconds:.0f}", _gibibytes(high))
        for words, r in results.items()
        for name, seconds, high in r["stages"]
    ]
    first = next(iter(results.values()))
    met = max(r["peak"] for r in results.values()) < MOST_MEMORY
    proofs = [line for r in results.values() for line in r["checks"]]
    notes = [
        f"Peak below 4 GiB: {'yes' if met else 'NO'}. The peak is the resident memory of the whole "
        "process, with Python, torch and transformers.",
        f"Proof: {'; '.join(proofs) or 'none in these runs'}.",
        f"Loaded again ({first['run']['load']:.0f} CPU seconds), the result of the first line "
        f"gives logits of shape {first['run']['shape']}, "
        f"{'all finite' if first['run']['finite'] else 'NOT finite'}.",
        f"CPU seconds of one thread on {machine.cpu}, {machine.system}, torch "
        f"{machine.versions['torch']}. The largest tensor, the embedding, has "
        f"{_gigabytes(2 * VOCABULARY * WIDTH)}, and is scored in single precision.",
    ]
    columns = ("", "parameters", "on disk", "parameters left", "on disk", "peak memory")
    found = [
        tabled("A model larger than memory", columns, sizes),
        tabled("By stage", ("stage", "CPU seconds", "peak so far"), stages),
    ]
    facts = {"results": results, "versions": machine.versions}
    written(found, facts, options.out, notes)


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion"


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.2f} GB"


def _gibibytes(number: float) -> str:
    return f"{number / 2**30:.2f} GiB"


def main() -> None:
    """Make the model if it is not there yet, compress it, and write the tables after each row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="for 12 GB; emptied afterwards")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "large_model")
    parser.add_argument("--rows", nargs="+", choices=PROOFS, default=list(PROOFS))
    parser.add_argument("--stage", default="", help=argparse.SUPPRESS)
    parser.add_argument("--proof", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        staged(options)
        return
    own = options.folder = options.folder / "fxcompress-large-model"
    (own / "dense").mkdir(parents=True, exist_ok=True)
    if not (own / "dense" / INDEX).exists():
        child("make", options)
    results: dict[str, dict[str, Any]] = {}
    for proof in options.rows:
        figures = child("compress", options, proof)
        figures |= {"run": child("run", options)} if not results else {}
        figures |= {"dense": size_of(own / "dense"), "small": size_of(own / "small")}
        results[proof] = figures
        tables(results, options)
    shutil.rmtree(own)


if __name__ == "__main__":
    main()
