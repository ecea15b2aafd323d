"""The options that several commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_PASSES = "What goes, and how much"
_INPUT = "The model"

Model = Annotated[
    str,
    typer.Argument(
        help="torchvision:NAME, timm:NAME, hf:DIRECTORY[#AutoClass], package.module:factory, "
        "file.py:factory, FILE.pt2, or a saved program.",
        show_default=False,
    ),
]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        help="Shape of an example input, [name=]SHAPE[:dtype]: 1x3x224x224, ids=2x16:int64. "
        "Once for each input. By default what the model itself is known to take.",
        rich_help_panel=_INPUT,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="State dict to load into the model.", rich_help_panel=_INPUT),
]
Seed = Annotated[
    int, typer.Option(help="For random weights, inputs and passes.", rich_help_panel=_INPUT)
]
Data = Annotated[
    str | None,
    typer.Option(
        help="What passes may look at: a .npy file of inputs, .npz or .safetensors with inputs by "
        "name and 'labels', or module:factory or file.py:factory of batches or a Task.",
        rich_help_panel=_INPUT,
    ),
]
Static = Annotated[
    bool, typer.Option("--static", help="Fix the batch size too.", rich_help_panel=_INPUT)
]
Pin = Annotated[
    list[str] | None,
    typer.Option(help="Glob of parameters whose sizes must not change.", rich_help_panel=_INPUT),
]
Probe = Annotated[
    bool,
    typer.Option(
        "--probe",
        help="Find out by experiment what operators without an axis rule do, instead of freezing "
        "what they touch.",
        rich_help_panel=_INPUT,
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Trust the files: pickles and libraries in a .pt2, the Python code of a Hugging Face "
        "directory, operators of any package in a saved program.",
        rich_help_panel=_INPUT,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Passes = Annotated[
    list[str] | None,
    typer.Option(
        "--pass",
        "-p",
        help="magnitude, random, fold-batch-norm, nm-sparsity …, in the order given; options of "
        "its own in brackets: 'magnitude(p=1)'. What history shows is taken too, and a recipe as a "
        ".yaml file. By default magnitude, or least-squares where there is --data.",
        rich_help_panel=_PASSES,
    ),
]
Ratio = Annotated[
    float | None,
    typer.Option(help="Share of units removed from every group.", rich_help_panel=_PASSES),
]
Amount = "Share that stays, in (0, 1], or an absolute number."
Flops = Annotated[str | None, typer.Option(help=f"FLOPs: {Amount}", rich_help_panel=_PASSES)]
Macs = Annotated[
    str | None, typer.Option(help=f"Multiply-accumulates: {Amount}", rich_help_panel=_PASSES)
]
Params = Annotated[str | None, typer.Option(help=f"Parameters: {Amount}", rich_help_panel=_PASSES)]
Bytes = Annotated[
    str | None,
    typer.Option("--bytes", help=f"Bytes of parameters: {Amount}", rich_help_panel=_PASSES),
]
Global = Annotated[
    bool,
    typer.Option(
        "--global",
        help="Meet the budget with the least important units, wherever they are, instead of the "
        "same share of every group.",
        rich_help_panel=_PASSES,
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        help="Meet the budget with the widths that keep the largest total score of all.",
        rich_help_panel=_PASSES,
    ),
]
RoundTo = Annotated[
    str | None,
    typer.Option(
        help="Widths become multiples: auto, a number, or a target such as ort-cpu.",
        rich_help_panel=_PASSES,
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        help="Glob of parameters that may shrink; layer1.*:out for what the layers produce alone.",
        rich_help_panel=_PASSES,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Glob of parameters that may not shrink.", rich_help_panel=_PASSES),
]
Dims = Annotated[
    list[str] | None,
    typer.Option(
        help="Kind of groups that may shrink: heads, qk, vo, mlp, residual or channels.",
        rich_help_panel=_PASSES,
    ),
]
