"""Every command and every Python example of the README and the pages runs.

Commands run at a small size, with a small model in place of those that timm downloads. Those that
need a cluster are parsed. docs/extend.md and docs/figures.md have tests of their own.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import synthetic_scans
import timm
import torch
from safetensors.torch import save_file
from torchvision.transforms.functional import to_pil_image

import evolq
from evolq.__main__ import COMMAND as EVOLQ
from evolq.command_line import Command
from landscape.analysis import analyze, with_analysis
from landscape.compare import COMMAND as COMPARE
from landscape.merge import COMMAND as MERGE
from landscape.plot import COMMAND as PLOT
from landscape.report import COMMAND as REPORT
from landscape.scan import COMMAND as SCAN
from landscape.store import save
from landscape.work.resources import Resources

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {
    "evolq": EVOLQ,
    "landscape.scan": SCAN,
    "landscape.compare": COMPARE,
    "landscape.merge": MERGE,
    "landscape.plot": PLOT,
    "landscape.report": REPORT,
}
OWN_TESTS = ("extend.md", "figures.md")
NEEDS_A_CLUSTER = ("--scheduler", "--part", "landscape.merge")

# What a reader puts there.
PLACEHOLDERS = {
    "$SLURM_ARRAY_TASK_ID": "1",
    "$K": "1",
    "[RUN ...]": "",
    "RUN": "runs/scan-fashion_vit-1",
    "DIR": "photos",
    "FILE": "photos",
}
SMALL_MODEL, CLASSES = "test_vit", ("cat", "dog")
LARGE_MODELS = ("deit_tiny_patch16_224", "resnet18", "tf_efficientnet_lite0")
SIZES = {
    **{"points": "2", "radius": "0.1", "repeats": "2", "descents": "0"},
    **{"cliffs": "1", "intervals": "2", "budget": "8", "seeds": "1", "sizes": "8", "passes": "1"},
    **{"calibration_images": "10", "selection_images": "0", "test_images": "10"},
}


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield the module and the arguments of each command on a page."""
    text = text.replace("\\\n", " ")
    for module, rest in re.findall(r"python -m (evolq|landscape\.\w+)\b([^\n`&;#]*)", text):
        for name, value in PLACEHOLDERS.items():
            rest = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", value, rest)
        if "--help" not in rest:
            yield module, " ".join(rest.split())


def in_blocks(text: str) -> str:
    """Return the blocks of a page that are no Python: what readers copy."""
    return "\n".join(re.findall(r"^(?:    |```(?!python)).*(?:\\\n.*)*", text, re.MULTILINE))


ALL = sorted({found for page in PAGES for found in commands(page.read_text())})
TO_RUN = sorted(
    (module, rest)
    for module, rest in {found for page in PAGES for found in commands(in_blocks(page.read_text()))}
    if not any(words in f"{module} {rest}" for words in NEEDS_A_CLUSTER)
)


def test_pages_have_commands() -> None:
    assert {module for module, _ in ALL} == set(COMMANDS)
    assert {module for module, _ in TO_RUN} == set(COMMANDS) - {"landscape.merge"}
    given = {option for _, rest in ALL for option in re.findall(r"--(\w+)", rest)}
    assert {"workers", "part", "scheduler"} <= given


@pytest.mark.parametrize(("module", "rest"), ALL)
def test_a_command_has_options_that_there_are(module: str, rest: str) -> None:
    parsed = COMMANDS[module].parse(shlex.split(rest))
    assert parsed is not None
    Resources(**{name: parsed[0][name] for name in ("part", "workers") if name in parsed[0]})


def small(command: Command, tokens: list[str]) -> list[str]:
    """Return the arguments with a small model and little work."""
    for large in LARGE_MODELS:
        weights = [] if "--weights" in tokens else ["--weights", "checkpoint.pth"]
        if large in tokens:
            tokens = [SMALL_MODEL if token == large else token for token in tokens] + weights
    probe = tokens[tokens.index("--probe") + 1] if "--probe" in tokens else "plane"
    if probe == "layers":
        tokens = [*tokens, "--within", "head.*"]
    chosen = {name for kinds in command.choices.values() for name in vars(kinds[probe]())}
    of_others = {
        name
        for kinds in command.choices.values()
        for kind in kinds.values()
        for name in vars(kind())
    } - chosen
    without = {*of_others, "points" if "--criteria" in tokens else "sizes"}
    for name, value in SIZES.items():
        if name not in command.options or name in without:
            continue
        option = "--" + name.replace("_", "-")
        if option in tokens:
            tokens = [*tokens[: tokens.index(option)], *tokens[tokens.index(option) + 2 :]]
        tokens = [*tokens, option, value]
    return tokens


@pytest.fixture
def _reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what a reader of the pages has: images, checkpoints, a run."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for folder in ("photos", "others"):
        for place, name in enumerate(CLASSES):
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(25):
                pixels = torch.rand(3, 40, 40, generator=generator) * (1 - 0.5 * place)
                to_pil_image(pixels).save(tmp_path / folder / name / f"{number}.png")
    torch.manual_seed(0)
    model = timm.create_model(SMALL_MODEL, num_classes=len(CLASSES))
    torch.save(model.state_dict(), "checkpoint.pth")
    weights = evolq.load_model("fashion_vit").state_dict()
    for epoch in (1, 2):
        generator.manual_seed(epoch)
        near = {
            name: value + 0.01 * torch.randn(value.shape, generator=generator)
            for name, value in weights.items()
        }
        save_file(near, f"epoch{epoch}.safetensors")
    folder = tmp_path / "runs" / "scan-fashion_vit-1"
    folder.mkdir(parents=True)
    scan = synthetic_scans.plane(columns=9, rows=9, noise=0.5)
    save(with_analysis(scan, analyze(scan)), folder / "scan.nc")


@pytest.mark.slow
@pytest.mark.usefixtures("_reader")
@pytest.mark.parametrize(("module", "rest"), TO_RUN)
def test_a_command_runs(module: str, rest: str, command_line_of) -> None:
    if "--onnx" in rest:
        pytest.importorskip("onnxruntime")
    command = COMMANDS[module]
    code, out, err = command_line_of(command)(*small(command, shlex.split(rest)))
    assert code == 0, err
    assert out


def python_blocks(page: Path) -> list[str]:
    """Return the Python examples of a page, at the lines where they stand."""
    text = page.read_text()
    return [
        "\n" * text[: block.start(1)].count("\n") + block[1]
        for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


WITH_PYTHON = [page for page in PAGES if python_blocks(page) and page.name not in OWN_TESTS]


@pytest.mark.slow
@pytest.mark.usefixtures("_reader")
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_python_examples_run_from_top_to_bottom(page: Path) -> None:
    for package, word in {"onnxruntime": "export_onnx", "torchao": "torchao.quantization"}.items():
        if word in page.read_text():
            pytest.importorskip(package)
    own = evolq.bundled_split(calibration=300).calibration
    names = {  # what the pages call your own
        **{"__name__": "__main__", "model": evolq.load_model("fashion_resnet")},
        **{"images": own.images, "labels": own.labels, "calibration_images": own.images[:10]},
    }
    for block in python_blocks(page):
        for large in LARGE_MODELS:
            block = block.replace(f'"{large}"', f'"{SMALL_MODEL}"')
        exec(compile(block, str(page), "exec"), names)
