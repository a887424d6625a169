"""Command lines from declared experiments: options, configuration files, errors in one line.

A command is a function of frozen dataclasses. Their fields are its options: name, type, default
and help (the Attributes of the docstring) stand there once. Nothing here imports torch, so that
`--help` and a misspelt option answer at once.
"""

from __future__ import annotations

import gc
import inspect
import io
import json
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import cyclopts
import yaml
from docstring_parser import parse as parse_docstring

from evolq.atomic import write_whole
from evolq.errors import InputError
from evolq.quantization import Quantization
from evolq.settings import Settings, configuration

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from torch import nn

    from evolq.network.quantized import QuantizedNetwork
    from evolq.problem import Problem
    from evolq.progress import Progress

RUNS = Path("runs")
CONFIG = "config.yaml"

# Names the folder of PyTorch's compiler.
COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"

# Letters of a word in a message; longer ones (numbers of 5,000 digits) are cut.
LONGEST = 300

# New objects after which Python looks for garbage. Modules and traces of networks are a million
# that stay; with Python's own number, 700, looking took 1.2 of the 8 seconds until a scan measures.
OBJECTS = 50_000

# Tenths of a second to wait for a folder: the workers of a process that was killed notice it, too.
WAIT = 10

# The options of each panel of --help, in this order; what is named nowhere comes first of all.
PANELS = {
    "Model and images": [
        *("model", "weights", "images", "calibration_dir", "test_dir", "start"),
        *("calibration_images", "selection_images", "test_images", "skip_unreadable"),
    ],
    "Quantization": [entry.name for entry in fields(Quantization)],
    "Loss": ["criterion", "temperature"],
    "Running": [
        *("execution", "batch_size", "threads", "seed", "device"),
        *("workers", "scheduler", "part"),
    ],
}
FIRST_PANEL, LAST_PANEL = "What is done", "Output, and runs again"


@dataclass(frozen=True)
class Output:
    """Where results go, and what is said meanwhile.

    Attributes:
        out: Output folder; by default the next free runs/NAME-N.
        overwrite: Write into an existing out, in place of its results.
        resume: Go on with the unfinished run in `out`, with its options.
        config: Take options from this YAML file, such as the config.yaml that each run writes;
            options given beside it win.
        like: Take options from an earlier run: its folder, or its scan.nc, compare.nc or
            report.json.
        quiet: Show no progress.
        json: Print the table's content as JSON.
    """

    out: Path | None = None
    overwrite: bool = False
    resume: bool = False
    config: Path | None = None
    like: Path | None = None
    quiet: bool = False
    json: bool = False


PANELS[LAST_PANEL] = [entry.name for entry in fields(Output)]


@dataclass(frozen=True)
class Option:
    """One option: the field of a dataclass.

    Attributes:
        hint: its type.
        default: of the field, or of the command; `MISSING` where a value must be given.
        help: one sentence.
    """

    hint: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        name: as users type it.
        function: takes frozen dataclasses, by the names of its parameters; one of type
            `frozenset[str]` gets the names of the options that were given.
        defaults: of options whose field has another one.
        left_out: fields that are no options of this command.
        positional: fields that are arguments in this order, without a name.
        choices: of parameters that are one of several dataclasses: the option of the parameter's
            name chooses, and options that go with another choice are refused.
    """

    name: str
    function: Callable[..., None]
    defaults: Mapping[str, Any]
    left_out: Collection[str] = ()
    positional: Collection[str] = ()
    choices: Mapping[str, Mapping[str, type]] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, type]:
        """The dataclasses of the function's parameters."""
        hints = get_type_hints(self.function)
        return {name: hint for name, hint in hints.items() if _is_part(hint)}

    @cached_property
    def options(self) -> dict[str, Option]:
        """Every option by the name of its field."""
        found: dict[str, Option] = {}
        for name, kinds in self.choices.items():
            words = " ".join(f"{kind}: {_summary(part)}" for kind, part in kinds.items())
            found[name] = Option(Literal[tuple(kinds)], next(iter(kinds)), words)
            for kind, part in kinds.items():
                for own, option in _options(part).items():
                    known = found.setdefault(own, option)
                    if option.help not in known.help:
                        more = f"{known.help} With {kind}: {option.help}"
                        found[own] = replace(known, help=more)
        for part in self.parts.values():
            found |= _options(part)
        return {
            name: Option(option.hint, self.defaults.get(name, option.default), option.help)
            for name, option in found.items()
            if name not in self.left_out
        }

    def app(self) -> cyclopts.App:
        """Return the parser."""
        options = self.options
        panels = [name for names in PANELS.values() for name in names]
        order = [FIRST_PANEL, *PANELS]
        groups = {title: cyclopts.Group(title, sort_key=index) for index, title in enumerate(order)}
        panel_of = {name: title for title, names in PANELS.items() for name in names}
        parameters = []
        optional = [name for name in options if name not in self.positional]
        for name in [
            *self.positional,
            *(n for n in optional if n not in panels),
            *(n for n in panels if n in optional),
        ]:
            option = options[name]
            required = option.default is MISSING
            parameter = cyclopts.Parameter(
                help=_as_options(option.help, options),
                group=groups[panel_of.get(name, FIRST_PANEL)],
                # a flag that is off needs no --no-flag, and no list can be empty
                negative="" if option.default is False or type(option.default) is tuple else None,
                consume_multiple=True,  # of values of a tuple
                show_default=not required
                and not (option.default is None or option.default is False)
                and option.default != (),
            )
            kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_ONLY)
            parameters.append(
                inspect.Parameter(
                    name,
                    kinds[name in self.positional],
                    default=inspect.Parameter.empty if required else option.default,
                    annotation=Annotated[_strict(option.hint), parameter],
                )
            )

        def command(**_: Any) -> None:
            pass

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        app = cyclopts.App(
            name=self.name,
            help=parse_docstring(inspect.getdoc(self.function) or "").description,
            help_format="plaintext",
            usage=" ".join(["Usage:", self.name, *map(str.upper, self.positional), "[OPTIONS]"]),
            version=version_words,
        )
        app["--help"].group = app["--version"].group = groups[LAST_PANEL]
        app.default(command)
        if " " not in self.name:  # shells complete the first word's arguments
            app.register_install_completion_command()
            app["--install-completion"].group = groups[LAST_PANEL]
        return app

    def parse(self, tokens: Sequence[str]) -> tuple[dict[str, Any], frozenset[str]] | None:
        """Return the value of every option, and the names of those that were given.

        None if the tokens asked for help or the version, which is printed.

        Raises:
            cyclopts.CycloptsError: for options that there are not, or values of another type.
            InputError: for a configuration that cannot be read.
        """
        app = self.app()
        _, bound, _ = app.parse_args(tokens, print_error=False, exit_on_error=False)
        if bound.signature != app.default_command.__signature__:  # type: ignore[union-attr]
            bound.apply_defaults()
            app(tokens)
            return None
        source = bound.arguments.get("config") or bound.arguments.get("like")
        out = bound.arguments.get("out")
        if source is None and bound.arguments.get("resume") and out and (out / CONFIG).is_file():
            source = out
        if source is not None:
            stored = read_configuration(source)
            unknown = sorted(stored.keys() - self.options.keys() - {*self.left_out})
            if unknown:
                raise InputError(
                    f"{source} has {', '.join(unknown)}, which are no options of {self.name}; "
                    "give the configuration of one of its own runs"
                )
            known = {
                name: value
                for name, value in stored.items()
                if value is not None and name not in self.left_out
            }
            app.config = (cyclopts.config.Dict(known, source=str(source)),)
            _, bound, _ = app.parse_args(tokens, print_error=False, exit_on_error=False)
        given = frozenset(bound.arguments)
        bound.apply_defaults()
        return dict(bound.arguments), given

    def __call__(self, tokens: Sequence[str]) -> None:
        """Run the command.

        Raises:
            InputError, OSError, cyclopts.CycloptsError: for bad input.
        """
        parsed = self.parse(tokens)
        if parsed is None:
            return
        values, given = parsed
        try:
            arguments = {name: _build(part, values) for name, part in self.parts.items()}
            for name, kinds in self.choices.items():
                arguments[name] = _build_choice(name, kinds, values, given)
            hints = get_type_hints(self.function)
            arguments |= {name: given for name, hint in hints.items() if hint == frozenset[str]}
            self.function(**arguments)
        except InputError as error:
            raise InputError(_as_options(str(error), self.options)) from error


def _strict(hint: Any) -> Any:
    """Return a hint whose whole numbers are not rounded ones, and whose paths can be some."""
    if hint in _STRICT:
        return Annotated[hint, cyclopts.Parameter(converter=_STRICT[hint])]
    if get_origin(hint) is tuple:
        return tuple[_strict(get_args(hint)[0]), ...]  # type: ignore[misc]
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(_strict(option) for option in get_args(hint))]  # noqa: UP007
    return hint


def _whole(_: Any, tokens: Sequence[cyclopts.Token]) -> int:
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is no whole number") from None


def _path(_: Any, tokens: Sequence[cyclopts.Token]) -> Path:
    if not tokens[0].value or "\0" in tokens[0].value:
        raise ValueError(f"{tokens[0].value!r} is no path")
    return Path(tokens[0].value)


_STRICT = {int: _whole, Path: _path}


def _is_part(hint: Any) -> bool:
    return is_dataclass(hint)


def _options(part: type) -> dict[str, Option]:
    hints = get_type_hints(part)
    helps = {
        parameter.arg_name: parameter.description
        for kind in reversed(part.__mro__)  # fields are inherited, docstrings are not
        for parameter in parse_docstring(kind.__doc__ or "").params
    }
    found: dict[str, Option] = {}
    for entry in fields(part):
        if is_dataclass(hints[entry.name]):
            found |= _options(hints[entry.name])
            continue
        words = " ".join((helps.get(entry.name) or "").split())
        found[entry.name] = Option(hints[entry.name], entry.default, words)
    return found


def _build(part: type, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(part)
    return part(
        **{
            entry.name: _build(hints[entry.name], values)
            if is_dataclass(hints[entry.name])
            else values[entry.name]
            for entry in fields(part)
            if is_dataclass(hints[entry.name]) or entry.name in values
        }
    )


def _build_choice(
    name: str, kinds: Mapping[str, type], values: Mapping[str, Any], given: Collection[str]
) -> Any:
    chosen = kinds[values[name]]
    own = _options(chosen).keys()
    for kind, part in kinds.items():
        for option in _options(part).keys() & given - own:
            raise InputError(
                f"`{option}` does not go with `{name}` {values[name]}; it does with {kind}"
            )
    return chosen(**{option: values[option] for option in own & given})


def _summary(part: type) -> str:
    return (parse_docstring(inspect.getdoc(part) or "").short_description or "").rstrip()


def _as_options(text: str, options: Mapping[str, Option]) -> str:
    """Return a text with arguments between backticks as options, as users type them."""

    def option(match: re.Match[str]) -> str:
        name = match[1]
        return "--" + name.replace("_", "-") if name in options else match[0]

    return re.sub(r"`(\w+)`", option, text)


def version_words() -> str:
    """Return name and version."""
    from importlib.metadata import version

    return f"evolq {version('evolq')}"


# Running ------------------------------------------------------------------------------------------


def run(command: Callable[[Sequence[str]], None]) -> None:
    """Run a command line; bad input ends with one line on standard error and exit code 2.

    So does what the file system refuses (a full disk, a name too long). A warning is one line, too.
    SIGINT and SIGTERM end it with the exit codes of shells, 130 and 143.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter loses that letter
    _check_compiler_cache()
    gc.set_threshold(OBJECTS)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            command(sys.argv[1:])
    except (cyclopts.CycloptsError, InputError, OSError) as error:
        _print_line("error", str(error))
        sys.exit(2)
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT
        _print_line("stopped", signal.strsignal(number) or str(number))
        # Python remembers a Ctrl-C that left an exec() of text (of dataclasses, of torch.fx), and
        # then ends by the signal itself, though it was caught; the next exec() makes it forget
        exec("")
        sys.exit(128 + number)
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        gc.freeze()  # the end of Python looks for garbage once more: 1.3 seconds after a scan
    sys.exit(0)


def _check_compiler_cache() -> None:
    """Let PyTorch choose a folder if it cannot use the one that it is given.

    With that one timm could not even be imported.
    """
    folder = os.environ.get(COMPILER_CACHE)
    if not folder:
        return
    with suppress(OSError):
        Path(folder).mkdir(parents=True, exist_ok=True)
    if not _writable(Path(folder)):
        _print_line("warning", f"cannot write to {COMPILER_CACHE} {folder}; PyTorch's own is used")
        del os.environ[COMPILER_CACHE]


class _Terminated(KeyboardInterrupt):
    """SIGTERM: what a batch system sends; handled as Ctrl-C is."""


def _terminate(*_: Any) -> None:
    raise _Terminated


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _print_line("warning", str(message))


def _print_line(kind: str, message: str) -> None:
    words = (
        word if len(word) <= LONGEST else f"{word[:40]}...{word[-20:]}" for word in message.split()
    )
    print(f"{kind}: {' '.join(words)}", file=sys.stderr)


def prepare(
    settings: Settings,
    given: Collection[str],
    progress: Progress,
    check_network: Callable[[QuantizedNetwork, nn.Module], None],
) -> Problem:
    """Return `evolq.prepare(settings)`, and say what goes on.

    Numbers of images that were not given fit themselves to a folder with fewer images.
    """
    from evolq import problem
    from evolq.data.images import ROLES

    explicit = [role for role in ROLES if f"{role}_images" in given]
    with progress.task("Loading, quantizing and calibrating") as task:
        return problem.prepare(settings, task.update, explicit, check_network)


def with_start(settings: Settings, given: Collection[str]) -> Settings:
    """Return settings with the quantization that `start` brings, if there is one.

    Raises:
        InputError: if an option says it again, which would have no effect, or for a bad file.
    """
    if settings.start is None:
        return settings
    for entry in fields(Quantization):
        if entry.name in given:
            raise InputError(f"`start` brings its own {entry.name}; leave out `{entry.name}`")
    from evolq import problem

    return problem.with_start(settings)


# Configurations -----------------------------------------------------------------------------------


def options_of(settings: Settings, *declared: Any) -> dict[str, Any]:
    """Return the options that repeat a run, by name."""
    found = configuration(settings, *declared)
    brought = fields(Quantization) if settings.start is not None else ()
    return {
        name: value
        for name, value in found.items()
        if value is not None and name not in {entry.name for entry in brought}
    }


def write_configuration(folder: Path, options: Mapping[str, Any]) -> None:
    """Write config.yaml, with which `--config` repeats a run.

    Raises:
        InputError: if the run that is in the folder has other options; what it is, is named.
    """
    given = {name: value for name, value in options.items() if value is not None}
    text = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
    if (folder / CONFIG).exists():
        found, wanted = read_configuration(folder), yaml.safe_load(text)
        for name in [*wanted, *found]:
            then, now = found.get(name, "not given"), wanted.get(name, "not given")
            if then != now:
                raise InputError(
                    f"{folder} was begun with `{name}` {then}, and now it is {now}; go on with "
                    "the same, choose another `out`, or give `overwrite`"
                )
    write_whole(folder / CONFIG, text.encode())


def read_configuration(source: Path) -> dict[str, Any]:
    """Return the options of a run: from config.yaml, a run's folder, or one of its results.

    Raises:
        InputError: if there is none in it.
    """
    path = source / CONFIG if source.is_dir() else source
    if not path.is_file():
        raise InputError(f"there is no {path}; give a run's folder, or a file that it wrote")
    try:
        if path.suffix == ".nc":
            import h5py  # with numpy half of what `--help` would take

            with h5py.File(path) as file:
                content = json.loads(file.attrs["provenance"])
            if "options" not in content:
                raise InputError(
                    f"{path} was measured in Python, of a module: no options lead there"
                )
        else:
            content = yaml.safe_load(path.read_text())  # JSON is YAML, too
    except RecursionError:
        raise InputError(f"{path} is nested too deeply to hold options") from None
    except (yaml.YAMLError, OSError, KeyError, ValueError) as error:
        raise InputError(f"cannot read options from {path}: {error}") from error
    if isinstance(content, dict) and "options" in content:
        content = content["options"]
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no options (name: value); give a run's config.yaml")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def print_json(content: Mapping[str, Any]) -> None:
    """Print the content of a table, and nothing else, on standard output."""
    print(json.dumps(content, indent=2))


# Output folders -----------------------------------------------------------------------------------


def check_output_folder(output: Output, unfinished: str) -> None:
    """Check that `output_folder` will be able to do its work, and leave no trace of it.

    Args:
        output: as the user gave it.
        unfinished: the file that only an unfinished run of this command has.

    Raises:
        InputError: if `out` holds something that is not to be overwritten, cannot be written to or
            is at work, or if there is nothing to resume.
    """
    begun = sorted(str(path.parent) for path in RUNS.glob(f"*/{unfinished}"))
    out = output.out
    if output.resume and (out is None or _state(out, unfinished) != "unfinished"):
        where = f"unfinished: {', '.join(begun)}" if begun else "no run here is unfinished"
        given = "is not given" if out is None else f"{out} has none"
        raise InputError(
            f"`resume` goes on with an unfinished run in `out`; `out` {given}; {where}"
        )
    if out is not None and not output.overwrite:
        _check_free(out, unfinished)
    if out is None and begun and not output.quiet:
        _print_line("note", f"unfinished: {', '.join(begun)}; --resume --out FOLDER goes on there")
    existing = (out or RUNS).absolute()
    while not existing.exists() and not existing.is_symlink():
        existing = existing.parent
    if not existing.is_dir() or not _writable(existing):
        raise InputError(
            f"cannot write to {out or RUNS}: {existing} is not a folder that can be written"
        )
    if out is not None and out.is_dir():
        with _held(out):
            pass


def check_output_file(out: Path, overwrite: bool) -> None:
    """Check that a single file can be written.

    Raises:
        InputError: if it is there and may not be replaced, or its folder is not there.
    """
    if out.is_dir() or (out.exists() and not overwrite):
        raise InputError(f"`out` {out} exists; choose another file or give `overwrite`")
    if not out.absolute().parent.is_dir():
        raise InputError(f"cannot write to `out` {out}: there is no such folder")


@contextmanager
def output_folder(
    output: Output, name: str, results: Sequence[str], unfinished: str
) -> Iterator[Path]:
    """Make the folder to write to, `out` or the next free runs/NAME-N, and hold it for a while.

    Making it claims it: of two processes that start together, each gets its own; and of two that
    were given one, the second is told. A run that is stopped says how it goes on.

    Args:
        output: as the user gave it.
        name: of what is done.
        results: with `overwrite`, files that go, so that none of an earlier run stays beside new
            ones.
        unfinished: the file that only an unfinished run of this command has.

    Raises:
        InputError: if `out` came into being meanwhile, is at work, or cannot be made or cleared.
    """
    folder = _made(output.out, name)
    with _held(folder):
        if output.overwrite:
            for result in (*results, CONFIG, unfinished):
                (folder / result).unlink(missing_ok=True)
        else:
            _check_free(folder, unfinished)
        try:
            yield folder
        except KeyboardInterrupt:
            if _state(folder, unfinished) == "unfinished":
                words = f"what is finished is kept; --resume --out {folder} goes on"
                print(words, file=sys.stderr)
            raise
        finally:
            with suppress(OSError):  # it stays, unless it is empty
                folder.rmdir()


def _made(out: Path | None, name: str) -> Path:
    number = 1
    while True:
        folder = out or RUNS / f"{name}-{number}"
        try:
            folder.mkdir(parents=True, exist_ok=out is not None)
            return folder
        except OSError as error:
            if out is not None or not isinstance(error, FileExistsError):
                raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
            number += 1


def _state(folder: Path, unfinished: str) -> Literal["free", "unfinished", "taken"]:
    """Return what is in a folder: nothing, a run of this command that can go on, anything else.

    A search that was killed early has left no more than its configuration.
    """
    try:
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    except FileNotFoundError:
        return "free"
    except NotADirectoryError:
        return "taken" if folder.exists() else "free"  # a file, or below one
    if unfinished in names or names == {CONFIG}:
        return "unfinished"
    return "taken" if names else "free"


def _check_free(out: Path, unfinished: str) -> None:
    if _state(out, unfinished) == "taken":
        raise InputError(f"`out` {out} exists; choose another folder or give `overwrite`")


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other processes of this program out of a folder, and be told if one is in it.

    The lock goes with the process that holds it, however that ends.
    """
    if fcntl is None:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        for attempt in range(WAIT):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if attempt == WAIT - 1:
                    raise InputError(
                        f"another process writes to `out` {folder}; wait for it, or choose another "
                        "folder"
                    ) from error
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(descriptor)


def _writable(folder: Path) -> bool:
    """Whether a file can be made in `folder`; tried, since permissions do not tell everything."""
    probe = folder / ".evolq-write-test"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True
