"""What all commands share: options from declared fields, configurations, one experiment."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from evolq import quantization, settings
from evolq.__main__ import COMMAND as EVOLQ
from evolq.__main__ import RecipeName, TargetName
from evolq.command_line import COMPILER_CACHE, Command, Output, read_configuration, run
from evolq.files.onnx_codes import TARGETS
from evolq.losses.criteria import CRITERIA
from evolq.network.placement import SCHEMES
from evolq.network.quantized import EXECUTIONS
from evolq.optimizers.recipes import RECIPES
from evolq.optimizers.registry import OPTIMIZERS
from evolq.starts.rounding import ROUNDINGS
from evolq.tensor.observers import OBSERVERS
from landscape import comparisons, scans
from landscape.compare import COMMAND as COMPARE
from landscape.paths.comparison import PLANES
from landscape.probes.directions import DIRECTIONS, NORMALIZATIONS
from landscape.probes.guided import GUIDED
from landscape.scan import COMMAND as SCAN

COMMANDS = {"evolq": EVOLQ, "landscape scan": SCAN, "landscape compare": COMPARE}

# The images of one experiment, little enough for a test.
SMALL = ("--calibration-images", "20", "--test-images", "10", "--model", "fashion_resnet")
QUICK = {
    "evolq": ("--passes", "1", "--within", "fc.*"),
    "landscape scan": ("--points", "2", "--radius", "0.1", "--descents", "1"),
    "landscape compare": (
        *("--optimizers", "evol-q", "random-search", "--budget", "2", "--seeds", "1"),
        *("--points", "2", "--plane", "random"),
    ),
}


@pytest.mark.parametrize(
    ("choices", "registry"),
    [
        (quantization.Scheme, SCHEMES),
        (quantization.ObserverName, OBSERVERS),
        (quantization.RoundingName, ROUNDINGS),
        (settings.ExecutionName, EXECUTIONS),
        (settings.CriterionName, CRITERIA),
        (comparisons.OptimizerName, OPTIMIZERS),
        (comparisons.PlaneName, PLANES),
        (RecipeName, RECIPES),
        (TargetName, TARGETS),
        (scans.Directions, {**DIRECTIONS, **GUIDED}),
        (scans.Normalization, NORMALIZATIONS),
    ],
)
def test_the_choices_are_the_registries(choices: Any, registry: dict[str, Any]) -> None:
    assert {*get_args(choices)} == {*registry}, "add the new name to the Literal of the option"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_its_words(name: str) -> None:
    for option, declared in COMMANDS[name].options.items():
        assert declared.help.endswith("."), f"{option} needs a line in its class's docstring"
        assert declared.help[0].isupper() or option in ("model", "device", "probe")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_misspelt_options_need_no_torch(name: str) -> None:
    module = {"evolq": "evolq.__main__"}.get(name, name.replace(" ", "."))
    program = (
        "import sys\n"
        f"from {module} import COMMAND\n"
        "from evolq.command_line import run\n"
        "try:\n    run(COMMAND)\n"
        "finally:\n    assert 'torch' not in sys.modules"
    )
    for argument, code in (("--help", 0), ("-h", 0), ("--version", 0), ("--weight-bit", 2)):
        done = subprocess.run(
            [sys.executable, "-c", program, argument], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        if code:
            assert done.stderr == (
                "error: Unknown option: --weight-bit. Did you mean --weight-bits?\n"
            )


def test_messages_name_options_as_users_type_them(command_line_of) -> None:
    code, _, err = command_line_of(EVOLQ)("--weight-bits", "9")
    assert (code, err) == (2, "error: --weight-bits is 9; give a whole number from 2 to 8\n")


def options(command: Command, *tokens: str) -> dict[str, Any]:
    parsed = command.parse(tokens)
    assert parsed is not None
    return parsed[0]


def test_a_configuration_is_what_the_command_line_would_be(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("weight-bits: 5\noptimizers: [adam, cma]\noverwrite: true\nbudget: 7\n")
    found = options(COMPARE, "--config", str(path), "--budget", "9")
    assert (found["weight_bits"], found["optimizers"]) == (5, ("adam", "cma"))
    assert found["overwrite"] is True
    assert found["budget"] == 9, "what is given beside it wins"
    assert found["seeds"] == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("weight_bit: 5", "has weight_bit, which are no options of evolq"),
        ("- 5", "holds no options"),
        ("a: [", "cannot read options"),
        ("weight_bits: many", "'many' is no whole number"),
        ("scheme: half", 'Invalid value "half"'),
    ],
)
def test_bad_configurations_are_one_line(command_line_of, content: str, words: str) -> None:
    Path("config.yaml").write_text(content)
    code, out, err = command_line_of(EVOLQ)("--config", "config.yaml")
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
    code, _, err = command_line_of(EVOLQ)("--like", "nowhere")
    assert code == 2
    assert "there is no nowhere" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "bits", "rounding"),
    [("linear", "4", "nearest"), ("full", "4", "gptq"), ("linear", "8", "nearest")],
)
def test_equal_options_give_the_same_start_in_every_command(
    command_line_of, scheme: str, bits: str, rounding: str
) -> None:
    starts = {}
    for name, command in COMMANDS.items():
        out = Path(name.replace(" ", "-"))
        arguments = ("--scheme", scheme, "--weight-bits", bits, "--rounding", rounding)
        arguments = (*arguments, *SMALL, *QUICK[name])
        code, _, err = command_line_of(command)(*arguments, "--out", str(out))
        assert code == 0, err
        if name == "evolq":
            hashes = json.loads((out / "report.json").read_text())["hashes"]
        else:
            hashes = _provenance(next(out.glob("*.nc")))["hashes"]
        starts[name] = hashes["start"]
    assert len({*starts.values()}) == 1, starts


@pytest.mark.slow
def test_every_command_starts_at_a_rounded_network(command_line_of) -> None:
    rounded = ("--weight-bits", "2", "--rounding", "gptq")
    code, out, err = command_line_of(EVOLQ)(*rounded, *SMALL, *QUICK["evolq"], "--out", "first")
    assert code == 0, err
    assert "to round the start's weights" in " ".join(out.split())
    report = json.loads(Path("first/report.json").read_text())
    assert report["start_forward_passes"] > 1, "a pass, and the Hessians"
    assert report["configuration"]["rounding"] == "gptq"
    for name, command in COMMANDS.items():
        out_folder = name.replace(" ", "-")
        start = ("--start", "first/model.safetensors", *SMALL, *QUICK[name])
        code, _, err = command_line_of(command)(*start, "--out", out_folder)
        assert code == 0, err
    again = json.loads(Path("evolq/report.json").read_text())
    assert again["start_accuracy"] == report["final_accuracy"]
    # the same codes; moments of float32 sums
    assert again["start_loss"] == pytest.approx(report["final_loss"], rel=1e-4)
    assert again["start_forward_passes"] == 0


def _provenance(path: Path) -> dict[str, Any]:
    import h5py

    with h5py.File(path) as file:
        return json.loads(file.attrs["provenance"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("landscape scan", "folder"),
        pytest.param("landscape scan", "file", marks=pytest.mark.slow),
        pytest.param("landscape compare", "folder", marks=pytest.mark.slow),
        pytest.param("landscape compare", "file", marks=pytest.mark.slow),
    ],
)
def test_like_repeats_a_run_bit_for_bit(command_line_of, name: str, of: str) -> None:
    run = command_line_of(COMMANDS[name])
    code, _, err = run("--weight-bits", "3", *SMALL, *QUICK[name], "--seed", "7", "--out", "a")
    assert code == 0, err
    file = next(Path("a").glob("*.nc"))
    code, _, err = run("--like", "a" if of == "folder" else str(file), "--out", "b")
    assert code == 0, err
    assert (Path("b") / file.name).read_bytes() == file.read_bytes()
    assert read_configuration(Path("a")) == read_configuration(Path("b"))


@pytest.mark.parametrize(
    "name",
    [n if n != "landscape compare" else pytest.param(n, marks=pytest.mark.slow) for n in COMMANDS],
)
def test_json_alone_goes_to_standard_output(command_line_of, name: str) -> None:
    arguments = (*SMALL, *QUICK[name], "--json", "--quiet", "--out", "out")
    code, out, err = command_line_of(COMMANDS[name])(*arguments)
    assert code == 0, err
    assert json.loads(out)["folder"] == "out"
    assert err == ""
    stored = yaml.safe_load(Path("out/config.yaml").read_text())
    assert stored["model"] == "fashion_resnet"
    own = {field.name for field in dataclasses.fields(Output)}
    assert not own & stored.keys(), "where results go is not part of what is repeated"


def test_the_package_lists_its_commands(command_line_of) -> None:
    from landscape import __main__ as package

    def named(tokens: Sequence[str]) -> None:
        package.main(tokens)

    named.name = "landscape"
    run = command_line_of(named)
    code, out, _ = run()
    assert code == 0
    assert all(name in out for name in package.COMMANDS)
    assert run("scan", "--points", "1")[::2] == (
        2,
        "error: --points is 1; give a whole number from 2 to 100000000\n",
    )
    known = ", ".join(package.COMMANDS)
    assert run("scann")[2] == f"error: there is no command 'scann'; choose from {known}\n"
    assert run("--version")[1].startswith("evolq ")


@pytest.mark.slow
def test_an_output_without_some_letters_loses_only_them(tmp_path: Path) -> None:
    arguments = ("--points", "2", "--radius", "0.1", *SMALL, "--out", "out")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-m", "landscape.scan", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "scan.png").exists()
    assert "?" in done.stdout


@pytest.mark.parametrize("module", ["evolq", "landscape"])
def test_shells_complete_the_options(module: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    subprocess.run(
        [sys.executable, "-m", module, "--install-completion", "--shell", "bash"],
        env=environment,
        check=True,
        capture_output=True,
    )
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "--weight-bits" in written


def test_ctrl_c_within_an_exec_ends_as_any_other(tmp_path: Path) -> None:
    # `python -m` would die of the signal, which is not the same to a batch system
    program = "from evolq.command_line import run\nrun(lambda _: exec('raise KeyboardInterrupt'))"
    (tmp_path / "stopped.py").write_text(program)
    done = subprocess.run([sys.executable, "-m", "stopped"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 130
    assert done.stderr.decode().splitlines() == ["stopped: Interrupt"]


def test_a_compiler_cache_that_cannot_be_written_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    seen = []
    for name in ("file/cache", "new/cache"):
        monkeypatch.setenv(COMPILER_CACHE, str(tmp_path / name))
        with pytest.raises(SystemExit) as ended:
            run(lambda _: seen.append(os.environ.get(COMPILER_CACHE)))
        assert ended.value.code == 0
    assert seen == [None, str(tmp_path / "new" / "cache")]
    assert capsys.readouterr().err.splitlines() == [
        f"warning: cannot write to {COMPILER_CACHE} {tmp_path}/file/cache; PyTorch's own is used"
    ]
