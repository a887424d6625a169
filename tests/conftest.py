"""Fixtures of all tests."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from evolq import command_line
from evolq.command_line import Command
from evolq.network import graph, regions
from landscape import scan as scan_module

settings.register_profile("patient", deadline=None)  # how busy the machine is proves nothing
settings.load_profile("patient")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores already
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # and so do notebooks and other processes of theirs


@pytest.fixture(scope="session")
def evolq_data() -> Path:
    """Return the folder of real data (ImageNet images and weights) that EVOLQ_DATA names."""
    folder = os.environ.get("EVOLQ_DATA")
    if not folder:
        pytest.skip("EVOLQ_DATA is not set; it names the folder of real images and weights")
    return Path(folder)


@pytest.fixture
def threads() -> Iterator[None]:
    """Let a test change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def bundled_networks_are_traced_once() -> Iterator[None]:
    """Share the traces of the bundled networks: each takes two seconds, a third of a small scan."""
    trace = graph._trace
    programs: dict[str, torch.export.ExportedProgram] = {}

    def cached(model: torch.nn.Module, images: torch.Tensor) -> torch.export.ExportedProgram:
        if not type(model).__module__.startswith("timm."):  # another model's name says little
            return trace(model, images)
        key = hashlib.sha256(f"{model} {images.shape}".encode())
        for name, value in model.state_dict().items():
            key.update(f"{name} {value.dtype}".encode() + value.cpu().numpy().tobytes())
        if key.hexdigest() not in programs:
            programs[key.hexdigest()] = trace(model, images)
        return programs[key.hexdigest()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "_trace", cached)
        yield


@pytest.fixture
def command_line_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> Callable[[Command], Callable[..., tuple[int, str, str]]]:
    """Return what runs a command line in this process, in a folder of its own.

    Given the command it returns a function of the arguments, which returns exit code, standard
    output and error.
    """
    monkeypatch.chdir(tmp_path)

    def runner(command: Command) -> Callable[..., tuple[int, str, str]]:
        def run(*arguments: str) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", [command.name, *arguments])
            with pytest.raises(SystemExit) as stopped:
                command_line.run(command)
            out, err = capsys.readouterr()
            return stopped.value.code or 0, out, err

        return run

    return runner


@pytest.fixture
def scan(command_line_of):
    """Run `python -m landscape.scan` in this process."""
    return command_line_of(scan_module.COMMAND)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run regions as they are: quick, and the arithmetic is the same."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    regions.compiler_works.cache_clear()
    yield
    regions.compiler_works.cache_clear()
