"""Compress the stories260K LLaMA and let it tell its story again.

    python examples/stories_llama.py --data ../shared/data

Grouped-query attention, rotary embedding, gated layers and tied embeddings prune like anything
else: units of the MLP alone, then heads and the dimensions in them as well, then the width of the
whole network (which lies under norms, so that removing is not masking). For each the script
measures the perplexity before and after a short recovery, writes the weights back into the class of
transformers, lets `generate` continue a text there, exports to ONNX with a free batch and length,
checks the file in onnxruntime and times it. One table in the end, and the texts.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from outcome import CONSOLE, default_data, medians, spelled_noise, tabled, written
from stories import IGNORED, Stories, Tokenizer, load_llama, read_stories
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.train import Progress, Trainer

WRITE_BACK_TOLERANCE = 1e-4  # of the largest logit: attention may be computed by another kernel
COLUMNS = (
    "removed", "parameters", "FLOPs", "perplexity pruned", "recovered", "write-back error",
    "ONNX KiB", "ONNX error", "ms", "CPU ms", "less CPU",
)  # fmt: skip
SCOPES: dict[str, dict[str, Any]] = {
    "MLP": {"include": "*.gate_proj.weight:out"},
    "MLP and heads": {"exact_only": True},
    "all": {},
}
"""Which groups shrink; without limits, all that may."""


@dataclass(frozen=True)
class Settings:
    """What is run, and how long."""

    data: Path
    out: Path
    scopes: tuple[str, ...]
    ratios: tuple[float, ...]
    stories: int
    train: int
    epochs: int
    lr: float
    prompt: str
    tokens: int
    rounds: int
    seed: int


@dataclass(frozen=True)
class Row:
    """One line of the table; errors are relative to the largest logit."""

    name: str
    file: Path
    params: int
    flops: int
    share: float
    perplexity: float
    onnx_bytes: int
    onnx_error: float
    text: str
    removed: float = 0.0
    pruned: float | None = None
    write_back: float | None = None
    wall_ms: float = 0.0
    cpu_ms: float = 0.0
    speedup: str = ""

    def cells(self) -> tuple[object, ...]:
        """The row as the table shows it."""
        return (
            self.name, f"{self.removed:.0%}", f"{self.params:,}", f"{self.share:.1%}",
            "" if self.pruned is None else f"{self.pruned:.2f}", f"{self.perplexity:.2f}",
            "" if self.write_back is None else f"{self.write_back:.0e}",
            f"{self.onnx_bytes / 1024:.0f}", f"{self.onnx_error:.0e}",
            f"{self.wall_ms:.2f}", f"{self.cpu_ms:.2f}", self.speedup,
        )  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """The model, and the stories that it is measured on and those that it recovers on."""

    settings: Settings
    model: Any
    tokenizer: Tokenizer
    test: Stories
    train: Stories

    @property
    def example(self) -> dict[str, Tensor]:
        """The inputs that the model is captured with: two beginnings of 64 tokens."""
        return {"input_ids": next(iter(self.test))[0][:2, :64]}

    def perplexity(self, module: nn.Module) -> float:
        """The exponential of the mean loss of a token, over all test stories."""
        loss, count = 0.0, 0
        with torch.no_grad():
            for tokens, following in self.test:
                seen = int((following != IGNORED).sum())
                loss += cross_entropy(logits(module, tokens), following).item() * seen
                count += seen
        return math.exp(loss / count)

    def told(self, model: Any) -> str:
        """The prompt as the model goes on with it, always with the likeliest token."""
        prompt = torch.tensor([self.tokenizer.encode(self.settings.prompt)])
        tokens = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=self.settings.tokens,
            do_sample=False,
            use_cache=True,
        )
        return self.tokenizer.decode(tokens[0].tolist())


def logits(module: nn.Module, tokens: Tensor) -> Tensor:
    """The model's logits, (batch, length, vocabulary)."""
    found: Tensor = module(input_ids=tokens).logits
    return found


def cross_entropy(found: Tensor, following: Tensor) -> Tensor:
    """Mean over the tokens that are not filling."""
    return nn.functional.cross_entropy(
        found.flatten(0, 1), following.flatten(), ignore_index=IGNORED
    )


def prepared(settings: Settings) -> Bench:
    """Load the model and the stories: the last ones to measure, the first ones to recover."""
    checkpoints = settings.data / "checkpoints"
    tokenizer = Tokenizer(checkpoints / "stories260k_tok512.bin")
    stories = read_stories(settings.data / "text" / "tinystories_2mib.txt.gz")
    with CONSOLE.status("encoding the stories"):
        test = [tokenizer.encode(story) for story in stories[-settings.stories :]]
        train = [tokenizer.encode(story) for story in stories[: settings.train]]
    model = load_llama(checkpoints / "stories260k_llama.safetensors")
    return Bench(settings, model, tokenizer, Stories(test, 16), Stories(train, 8))


def compiled(bench: Bench, passes: Sequence[Any] = ()) -> fx.Program:
    """The model as a program whose batch and length are free."""
    return fx.compile(
        bench.model,
        (),
        bench.example,
        passes=passes,
        dynamic={"input_ids": {0: "batch", 1: "length"}},
        seed=bench.settings.seed,
    )


def dense_row(bench: Bench) -> Row:
    """The model as it came."""
    perplexity, text = bench.perplexity(bench.model), bench.told(bench.model)
    return exported_row("dense", compiled(bench), perplexity, text, bench.settings.out)


def compressed_row(bench: Bench, scope: str, ratio: float) -> Row:
    """The model without a share of its units, through everything."""
    settings, name = bench.settings, f"{scope} {ratio:g}"
    pruning = fx.passes.MagnitudePruning(ratio=ratio, **SCOPES[scope])
    program = compiled(bench, [pruning])
    assert program.report.params.ratio < 1
    pruned = bench.perplexity(program.module)
    with CONSOLE.status(name) as status:
        task = fx.Task(
            bench.train, loss=cross_entropy, forward=lambda module, tokens: logits(module, tokens)
        )
        recipe = Trainer(
            epochs=settings.epochs, lr=settings.lr, optimizer="adamw", clip=1.0, warmup=0.1,
            seed=settings.seed,
        )  # fmt: skip
        recipe.fit(program.module, task, lambda now: status.update(f"{name}: {_spelled(now)}"))
    perplexity = bench.perplexity(program.module)
    smaller = program.write_back(bench.model)
    difference = write_back_error(bench, program, smaller)
    row = exported_row(name, program, perplexity, bench.told(smaller), settings.out)
    program.save(row.file.with_suffix(".safetensors"))
    return replace(row, removed=ratio, pruned=pruned, write_back=difference)


def _spelled(now: Progress) -> str:
    return f"recovering, batch {now.batch} of {now.batches}, loss {now.loss:.3f}"


def write_back_error(bench: Bench, program: fx.Program, smaller: nn.Module) -> float:
    """How far transformers' class with the smaller weights is from the graph, on test stories."""
    assert isinstance(smaller, type(bench.model))
    tokens = next(iter(bench.test))[0]
    with torch.no_grad():
        expected, found = logits(program.module, tokens), logits(smaller, tokens)
    difference: float = ((expected - found).abs().max() / expected.abs().max()).item()
    assert difference <= WRITE_BACK_TOLERANCE, f"the written-back class is off by {difference:.2g}"
    return difference


def exported_row(name: str, program: fx.Program, perplexity: float, text: str, out: Path) -> Row:
    """A row with the ONNX file, checked at other batch sizes and lengths too."""
    file = fx.export.to_onnx(program, out / f"{name.replace(' ', '-')}.onnx")
    result = fx.export.check(file, program)
    assert result.max_error <= result.tolerance, str(result)
    report = program.report
    return Row(
        name, file.path, report.params.after, report.flops.after, report.flops.ratio, perplexity,
        file.bytes, result.max_error, text,
    )  # fmt: skip


def timed(bench: Bench, rows: Sequence[Row]) -> tuple[list[Row], Any]:
    """The rows with their latencies for one story of 128 tokens on one thread, taken in turn."""
    tokens = torch.tensor(next(story for story in bench.test.encoded if len(story) >= 128)[:128])
    files = {row.name: row.file for row in rows}
    result = fx.export.benchmark(files, rounds=bench.settings.rounds, inputs=[tokens[None]])
    return [replace(row, **medians(result, row.name)) for row in rows], result


def run(settings: Settings) -> list[Row]:
    """Everything, with its table."""
    start = time.perf_counter()
    settings.out.mkdir(parents=True, exist_ok=True)
    bench = prepared(settings)
    rows = [dense_row(bench)]
    CONSOLE.print(f"dense: perplexity {rows[0].perplexity:.2f}")
    for scope in settings.scopes:
        for ratio in settings.ratios:
            rows.append(compressed_row(bench, scope, ratio))
            CONSOLE.print(
                f"{rows[-1].name}: perplexity {rows[-1].pruned:.2f} pruned, "
                f"{rows[-1].perplexity:.2f} recovered"
            )
    rows, latency = timed(bench, rows)
    seconds = time.perf_counter() - start
    table = tabled("stories260K, pruned", ("model", *COLUMNS), [row.cells() for row in rows])
    facts = {
        "settings": {k: v for k, v in asdict(settings).items() if k not in ("data", "out")},
        "rows": [asdict(row) | {"file": row.file.name} for row in rows],
        "latency": latency.to_dict(),
        "seconds": seconds,
    }
    written([table], facts, settings.out / "table", _notes(settings, rows, latency, seconds))
    return rows


def _notes(settings: Settings, rows: Sequence[Row], latency: Any, seconds: float) -> list[str]:
    return [
        f"Perplexity a token on the last {settings.stories} stories of the file (its first 512 "
        "tokens each). All of the file is training text of the checkpoint; the recovery saw only "
        f"the first {settings.train} ({settings.epochs} epoch(s), AdamW, rate {settings.lr:g}).",
        f"Medians for one story of 128 tokens on one thread of onnxruntime, {settings.rounds} "
        f"rounds in turn on {latency.machine.cpu}{spelled_noise(latency)}; the ratio is that of "
        "CPU times, with its 95 % interval.",
        f"The whole run took {seconds / 60:.1f} minutes, {time.process_time() / 60:.1f} of CPU.",
        *(f"{row.name} tells, by `generate`: {' '.join(row.text.split())}" for row in rows),
    ]


def parsed(arguments: Sequence[str] | None = None) -> Settings:
    """The settings of a command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, default=default_data(), help="folder of the data pack")
    add("--out", type=Path, default=Path("out/stories_llama"), help="where all files go")
    add("--scopes", nargs="+", choices=SCOPES, default=list(SCOPES), help="which groups shrink")
    add("--ratios", type=float, nargs="+", default=[0.25], help="shares of units removed")
    add("--stories", type=int, default=100, help="to measure on, the last of the file")
    add("--train", type=int, default=400, help="to recover on, the first of the file")
    add("--epochs", type=int, default=1, help="of recovery")
    add("--lr", type=float, default=2e-3, help="the highest learning rate")
    add("--prompt", default="Once upon a time", help="what the texts begin with")
    add("--tokens", type=int, default=60, help="to generate")
    add("--rounds", type=int, default=100, help="of the latency benchmark")
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="one ratio, few stories: does it run?")
    options = vars(parser.parse_args(arguments))
    if options.pop("quick"):
        options |= {"ratios": [0.25], "stories": 16, "train": 16, "tokens": 10, "rounds": 10}
    lists = {name: tuple(options[name]) for name in ("scopes", "ratios")}
    return Settings(**options | lists)


if __name__ == "__main__":
    run(parsed())
