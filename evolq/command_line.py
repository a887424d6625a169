"""What the command lines share: options, and errors in one line.

Nothing here imports torch, so that `--help` and a misspelt option answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from evolq.errors import InputError

# typer brings a click of its own in some versions and uses the separate package in others; either
# way the base of all its usage errors is two steps above typer's public name.
UsageError: Any = typer.BadParameter.__mro__[2]

Model = Annotated[str, typer.Option(help="fashion_vit, fashion_resnet or any timm name.")]
Weights = Annotated[
    Path | None,
    typer.Option(help="Weights as FILE.safetensors; without it bundled, or downloaded by timm."),
]
Images = Annotated[
    Path | None,
    typer.Option(
        help="Folder of class folders, or of images with a labels.csv (file,label); calibration, "
        "selection and test images are drawn from it, disjoint. The bundled networks bring their "
        "own images."
    ),
]
CalibrationDir = Annotated[
    Path | None, typer.Option(help="Like --images, for calibration and selection images only.")
]
TestDir = Annotated[Path | None, typer.Option(help="Like --images, for test images only.")]
WeightBits = Annotated[int, typer.Option(help="Bits of a weight, 2 to 8.")]
ActivationBits = Annotated[int, typer.Option(help="Bits of an activation, 2 to 8.")]
Scheme = Annotated[
    str,
    typer.Option(
        help="What is quantized: weights; linear (weights, and the inputs of linear, convolution "
        "and matmul); full (also softmax, LayerNorm, activation functions, residual sums); none."
    ),
]
Observer = Annotated[
    str, typer.Option(help="How scales start: minmax, ema, percentile, omse or mse.")
]
CriterionName = Annotated[
    str,
    typer.Option(
        "--criterion",
        help="Calibration loss: info_nce, kl, mse, cosine, cross_entropy or fisher.",
    ),
]
Temperature = Annotated[float | None, typer.Option(help="Temperature of info_nce, 3 by default.")]
Within = Annotated[
    str | None, typer.Option(help="Only the Point's names that match this glob: 'blocks.3.*'.")
]
CalibrationImages = Annotated[int, typer.Option(help="Number of calibration images.")]
SelectionImages = Annotated[
    int, typer.Option(help="Number of images set apart to choose among results.")
]
TestImages = Annotated[int, typer.Option(help="Number of test images.")]
BatchSize = Annotated[
    int, typer.Option(help="Images per forward pass; part of what a result depends on.")
]
Threads = Annotated[int | None, typer.Option(help="Threads; all cores by default.")]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Out = Annotated[
    Path | None, typer.Option(help="Output folder; the next free runs/NAME-N by default.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write into an existing --out.")]


def run(command: Callable[..., None]) -> None:
    """Run a command line; bad input ends with one line on standard error and exit code 2."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        result: Any = app(standalone_mode=False)
    except (UsageError, InputError) as error:
        message = str(error) if isinstance(error, InputError) else error.format_message()
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(result if isinstance(result, int) else 0)


def output_folder(out: Path | None, overwrite: bool, name: str) -> Path:
    """Return the folder to write to, without making it: `out`, or the next free runs/NAME-N.

    Raises:
        InputError: if `out` exists and is not to be overwritten, or cannot be written to.
    """
    if out is None:
        number = 1
        while (folder := Path("runs") / f"{name}-{number}").exists():
            number += 1
    else:
        folder = out
        if folder.exists() and not overwrite:
            raise InputError(f"--out {folder} exists; choose another folder or give --overwrite")
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not _writable(existing):
        raise InputError(
            f"cannot write to {folder}: {existing} is not a folder that can be written"
        )
    return folder


def _writable(folder: Path) -> bool:
    """Whether a file can be made in `folder`; tried, since permissions do not tell everything."""
    probe = folder / ".evolq-write-test"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True
