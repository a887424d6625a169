"""What the command lines share: options, and errors in one line.

Nothing here imports torch, so that `--help` and a misspelt option answer at once.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evolq.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from evolq.problem import Problem, Settings

# typer brings a click of its own in some versions and uses the separate package in others; either
# way the base of all its usage errors is two steps above typer's public name.
UsageError: Any = typer.BadParameter.__mro__[2]

RUNS = Path("runs")
# Options that say again what a saved network brings with it.
OF_THE_START = ("scheme", "weight_bits", "activation_bits", "observer")

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
Execution = Annotated[
    str,
    typer.Option(
        help="How the network runs: simulated; compiled (the same in fewer passes); integer "
        "(products on integer codes, compiled; several times faster, no gradients). The first run "
        "of the last two compiles for up to a minute."
    ),
]
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
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Write into an existing --out, in place of its results."),
]


def run(command: Callable[..., None]) -> None:
    """Run a command line; bad input ends with one line on standard error and exit code 2.

    So does what the file system refuses (a full disk, a name too long). A warning is one line, too.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            result: Any = app(standalone_mode=False)
    except (UsageError, InputError, OSError) as error:
        message = error.format_message() if isinstance(error, UsageError) else str(error)
        _print_line("error", message)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(result if isinstance(result, int) else 0)


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _print_line("warning", str(message))


def _print_line(kind: str, message: str) -> None:
    print(f"{kind}: {' '.join(message.split())}", file=sys.stderr)


def prepare(settings: Settings, console: Console) -> Problem:
    """Return `evolq.prepare(settings)`, with a line that says what goes on."""
    from evolq import problem

    with console.status("Loading, quantizing and calibrating") as status:
        return problem.prepare(
            settings, lambda done, total: status.update(f"Reading images: {done} of {total}")
        )


def check_start(context: typer.Context, start: Path | None) -> None:
    """Check that the options given with `--start` do not say again what the saved network brings.

    Raises:
        InputError: if one does; it would have no effect.
    """
    for name in OF_THE_START if start is not None else ():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise InputError(f"--start brings its own {option}; leave out --{option}")


def check_output_folder(out: Path | None, overwrite: bool) -> None:
    """Check that `make_output_folder` will be able to do its work, and leave no trace of it.

    Raises:
        InputError: if `out` exists and is not to be overwritten, or cannot be written to.
    """
    folder = out or RUNS
    if out is not None and out.exists() and not overwrite:
        raise InputError(f"--out {out} exists; choose another folder or give --overwrite")
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not _writable(existing):
        raise InputError(
            f"cannot write to {folder}: {existing} is not a folder that can be written"
        )


def make_output_folder(
    out: Path | None, overwrite: bool, name: str, results: Sequence[str] = ()
) -> Path:
    """Make the folder to write to: `out`, or the next free runs/NAME-N.

    Making it claims it: of two processes that start together, each gets its own.

    Args:
        out: as the user gave it.
        overwrite: whether `out` may exist.
        name: of what is done.
        results: files of an earlier run that go, so that none stays beside new ones.

    Raises:
        InputError: if `out` came into being meanwhile, or cannot be made or cleared.
    """
    number = 1
    while True:
        folder = out or RUNS / f"{name}-{number}"
        try:
            folder.mkdir(parents=True, exist_ok=overwrite and out is not None)
            for result in results:
                (folder / result).unlink(missing_ok=True)
            return folder
        except FileExistsError as error:
            if out is not None:
                raise InputError(f"--out {out} exists by now; choose another folder") from error
            number += 1
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error


def _writable(folder: Path) -> bool:
    """Whether a file can be made in `folder`; tried, since permissions do not tell everything."""
    probe = folder / ".evolq-write-test"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True
