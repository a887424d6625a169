"""What a long run says meanwhile, on a clock that the test turns."""

from __future__ import annotations

import pytest

from evolq import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the module's clock shows, as a list of one."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_an_estimate_and_a_line_a_minute(clock, capsys) -> None:
    with progress.Progress().task("Preparing") as task:
        clock[0] += 50  # what went before is no measurement of a point
        task.update(0, 100, "Measuring")
        for done in range(1, 100):
            clock[0] += 3
            task.update(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Measuring: about 5 min for 99 more steps"
    assert lines[1] == "Measuring: 4 of 100 after 12 s"  # a minute after the beginning
    assert len(lines) == 1 + (50 + 99 * 3) // 60
    assert all("\x1b" not in line for line in lines)


def test_short_work_and_quiet_commands_say_nothing(clock, capsys) -> None:
    for quiet, seconds in ((False, 0.1), (True, 30)):
        with progress.Progress(quiet).task("Measuring", 10) as task:
            for done in range(1, 11):
                clock[0] += seconds
                task.update(done)
    assert capsys.readouterr().err == ""
