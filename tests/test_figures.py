"""The figures of the project, drawn from stored runs."""

from pathlib import Path

import pytest
import synthetic_scans
from synthetic_comparisons import comparison

from evolq.errors import InputError
from figures.__main__ import FIGURES, main
from landscape import compare, scan, store
from landscape.analysis import analyze, with_analysis

COMMANDS = {"landscape.scan": scan.COMMAND, "landscape.compare": compare.COMMAND}


@pytest.mark.parametrize("name", FIGURES)
def test_the_commands_of_a_figure_are_parsed(name: str) -> None:
    for module, *options in FIGURES[name].RUNS.values():
        assert COMMANDS[module].parse(options) is not None


def test_figures_and_captions_come_from_stored_runs(tmp_path: Path, capsys) -> None:
    made = {
        "landscape.scan": lambda: synthetic_scans.plane(columns=9, rows=9, noise=0.5),
        "landscape.compare": comparison,
    }
    for name, script in FIGURES.items():
        for part, (module, *_) in script.RUNS.items():
            place = tmp_path / "runs" / f"{name}-{part}"
            place.mkdir(parents=True)
            kind = module.removeprefix("landscape.")
            dataset = made[module]()
            if kind == "scan":
                dataset = with_analysis(dataset, analyze(dataset))
            store.save(dataset, place / f"{kind}.nc", kind)
    main([], tmp_path)
    said = capsys.readouterr().out
    for name in FIGURES:
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / f"{name}.png").exists()
        caption = (tmp_path / f"{name}.txt").read_text().strip()
        assert f"{name}: {caption}" in said
    assert "deeper than the noise of 40 images" in (tmp_path / "egg_carton.txt").read_text()
    with pytest.raises(InputError, match="choose from egg_carton"):
        main(["no"], tmp_path)
