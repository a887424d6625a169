"""Pieces of work in any order, in other processes, on processes that die."""

import json
import os
import pickle
import random
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from test_sampling import ORIGIN, PLANE, XS, YS, Never, Toy, ToyTest, X, Y
from tqdm import tqdm

from evolq.errors import InputError
from evolq.settings import Settings
from landscape.ledger import Ledger
from landscape.probes.evaluation import Evaluation, evaluate
from landscape.probes.sampling import sample_plane, sample_rays
from landscape.probes.slices import Line
from landscape.work import parts
from landscape.work import workers as workers_module
from landscape.work.pieces import HOPELESS, TRIES, Failed, Here, Piece, finish
from landscape.work.resources import Resources
from landscape.work.shared import PREFIX, Shared
from landscape.work.workers import Automatic, Workers

POINTS = XS.size * YS.size
WHOLE = sample_plane(PLANE, XS, YS, Toy(), ToyTest())


class Shuffled(Executor):
    """Runs all calls in random order once there are `in_flight`."""

    def __init__(self, in_flight, seed):
        self.in_flight = in_flight
        self.random = random.Random(seed)
        self.held = []

    def submit(self, function, /, *arguments):
        self.held.append((Future(), function, arguments))
        future = self.held[-1][0]
        if len(self.held) == self.in_flight:
            self.random.shuffle(self.held)
            for each, called, given in self.held:
                each.set_result(called(*given))
        return future


def square(number):
    return {"value": np.array(number * number)}


def squares(function=square, count=20):
    return [Piece(f"x={number}", function, (number,)) for number in range(count)]


def found(pieces, *rest):
    return {
        key: value if isinstance(value, Failed) else int(value["value"])
        for key, value in finish(pieces, *rest)
    }


@pytest.mark.parametrize("seed", range(5))
def test_results_depend_on_no_order(seed):
    executor = Shuffled(POINTS, seed)
    shuffled = sample_plane(PLANE, XS, YS, Toy(), ToyTest(), executor=executor)
    assert shuffled.identical(WHOLE)


def test_any_executor_does():
    rays = [Line(ORIGIN, X), Line(ORIGIN, Y)]
    with ThreadPoolExecutor(3) as executor:
        threads = sample_rays(rays, XS, Toy(), ToyTest(), executor=executor)
    assert threads.identical(sample_rays(rays, XS, Toy(), ToyTest()))


@pytest.mark.parametrize("how_often", range(TRIES + 1))
def test_a_piece_is_tried_three_times(tmp_path, how_often):
    tried = []

    def fails(number):
        tried.append(number)
        if number == 0 and tried.count(0) <= how_often:
            raise RuntimeError("no memory")
        return square(number)

    ledger = Ledger(tmp_path / "a", {})
    results = found(squares(fails), ledger)
    assert tried[:20] == [*range(20)], "the others come first"
    assert len(tried) == 20 + min(how_often, TRIES - 1)
    wanted = {f"x={number}": number * number for number in range(20)}
    if how_often == TRIES:
        wanted["x=0"] = Failed("RuntimeError: no memory")
        with sqlite3.connect(tmp_path / "a") as reader:
            rows = list(reader.execute("SELECT key, error FROM piece WHERE state = 'failed'"))
        assert rows == [("x=0", "RuntimeError: no memory")]
    assert results == wanted
    assert found(squares(), ledger) == {**wanted, "x=0": 0}, "the next run tries again"
    assert found(squares(pytest.fail), ledger) == {**wanted, "x=0": 0}, "nothing is computed twice"
    ledger.close()


@pytest.mark.parametrize(("count", "tries"), [(100, HOPELESS), (2, 2 * TRIES)])
def test_if_everything_fails_the_error_is_raised(count, tries):
    tried = []

    def fails(number):
        tried.append(number)
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        found(squares(fails, count))
    assert len(tried) in (tries, tries - 1)


def test_what_is_no_failure_is_not_tried_again():
    def stopped(number):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found(squares(stopped))
    cancelled = []

    class Held(Executor):
        def submit(self, function, /, *arguments):
            future = Future()
            future.add_done_callback(lambda done: cancelled.append(done.cancelled()))
            if not arguments[0]:
                future.set_exception(KeyboardInterrupt())
            return future

    with pytest.raises(KeyboardInterrupt):
        found(squares(), None, Held())
    assert cancelled.count(True) in (19, 0)  # those that were submitted before it ended


def test_a_sample_with_failures_says_so():
    class Fails(Toy):
        def losses(self, point):
            if point["w"][0] == 3:
                raise RuntimeError("no memory")
            return super().losses(point)

    partial_ = sample_plane(PLANE, XS, YS, Fails(), ToyTest())
    failed = json.loads(partial_.attrs["failed"])
    assert failed == {f"y={row} x=2": "RuntimeError: no memory" for row in range(YS.size)}
    assert (partial_.status.sel(x=2) == 0).all()
    others = partial_.drop_sel(x=2)
    assert others.drop_attrs().identical(WHOLE.drop_sel(x=2).drop_attrs())


class Product(Toy):
    """A loss whose float32 sums are rounded in another order by another number of threads."""

    def losses(self, point):
        drawn = torch.randn(80, 4608, generator=torch.Generator().manual_seed(0))
        return torch.nn.functional.linear(drawn[:10], drawn * point["w"][0]).sum(1)


def test_work_has_the_threads_of_the_process_that_made_it(tmp_path):
    before = torch.get_num_threads()

    def measured(shared):
        return evaluate(shared, ("w",), ORIGIN)["loss"].tobytes()

    try:
        torch.set_num_threads(1)
        shared = Shared(Evaluation(Product(), ToyTest(), ORIGIN, dict), tmp_path)
        one = measured(shared)
        made, arguments = shared.__reduce__()
        for received in (shared, made(*arguments), pickle.loads(pickle.dumps(made(*arguments)))):
            torch.set_num_threads(2)
            assert measured(received) == one
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_shared_value_is_one_file_that_goes_with_it(tmp_path):
    shared = Shared({"weights": torch.arange(5.0)}, tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is written before it is sent"
    made, arguments = shared.__reduce__()
    assert shared.__reduce__() == (made, arguments)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith(PREFIX)
    received = made(*arguments)
    assert torch.equal(received.get()["weights"], shared.get()["weights"])
    assert received.get() is made(*arguments).get(), "read once"
    del shared
    assert not list(tmp_path.iterdir())


class Instant(Executor):
    """What stands in for processes: so many times as fast."""

    def __init__(self, count, factor):
        self.in_flight = workers_module.QUEUED * count
        self.factor = factor
        self.calls = 0

    def submit(self, function, /, *arguments):
        self.calls += 1
        CLOCK[0] += 1 / self.factor
        future = Future()
        future.set_result(function(*arguments))
        return future


CLOCK = [0.0]


def automatic(monkeypatch, factor):
    """Return an Automatic, the instant workers that it starts, and what it says."""

    def start(count):
        made.append(Instant(count, factor))
        return made[-1]

    made, said = [], []
    monkeypatch.setattr(workers_module, "Workers", start)
    monkeypatch.setattr(workers_module.time, "perf_counter", lambda: CLOCK[0])
    monkeypatch.setattr(workers_module, "_memory_available", lambda: 1e12)
    return Automatic(2, said.append), made, said


@pytest.mark.parametrize(("factor", "words"), [(1.6, "1.6 times"), (0.5, "0.5 times")])
def test_workers_take_over_if_they_are_faster(monkeypatch, factor, words):
    def slow(number):
        if not made:
            CLOCK[0] += 1.0
        return square(number)

    executor, made, said = automatic(monkeypatch, factor)
    assert found(squares(slow, 100), None, executor) == found(squares(count=100))
    (workers,) = made
    assert len(said) == 1
    assert words in said[0]
    assert (workers.calls > 90) == (factor > 1)
    assert ("going on with one" in said[0]) == (factor < 1)


def test_calls_that_take_another_time_are_compared_anew(monkeypatch):
    def slow(seconds, number):
        if alone(seconds):
            CLOCK[0] += seconds
        return square(number)

    def alone(seconds):
        return not made or (seconds > 1 and made[0].calls == 6)

    executor, made, said = automatic(monkeypatch, 1.0)
    # too few to be compared: 2 alone, 6 by workers; then those that take 3 seconds alone
    short, long = (partial(slow, seconds) for seconds in (1.0, 3.0))
    assert found(squares(short, 8), None, executor) == found(squares(count=8))
    assert (len(made), made[0].calls, said) == (1, 6, [])
    assert found(squares(long, 60), None, executor) == found(squares(count=60))
    assert len(made) == 1, "the same workers"
    assert len(said) == 1
    assert "3.0 times" in said[0]


def test_an_executor_that_takes_on_workers_gets_more_at_a_time():
    class Growing(ThreadPoolExecutor):
        in_flight = 1

        def submit(self, *call):
            self.in_flight = 2
            return super().submit(*call)

    both = Barrier(2, timeout=20)  # two calls wait for each other

    def together(number):
        both.wait()
        return square(number)

    with Growing(2) as executor:
        assert found(squares(together, 4), None, executor) == found(squares(count=4))


def test_workers_are_not_started_for_little_work_or_without_memory(monkeypatch):
    monkeypatch.setattr(workers_module, "Workers", lambda count: pytest.fail("started"))
    assert found(squares(), None, Automatic(2, pytest.fail)) == found(squares())
    monkeypatch.setattr(workers_module, "ALONE", 0)
    monkeypatch.setattr(workers_module, "_memory_available", lambda: 0)
    said = []
    assert found(squares(), None, Automatic(2, said.append)) == found(squares())
    assert len(said) == 1
    assert "One process: another one would need" in said[0]


def test_a_number_of_workers_out_of_range_is_refused():
    with pytest.raises(InputError, match="`workers` is 0; give a whole number from 1 to"):
        Resources(workers=0)
    assert isinstance(Resources(workers=1).executor(Settings(), print), Here)


# In parts -----------------------------------------------------------------------------------------


def measured(folder, name, part, function=None):
    (folder / name).mkdir()
    ledger = Ledger(folder / name / "scan.sqlite", {"seed": 0})
    ledger.part = part
    seen = []

    def on_point(dataset, done, total):
        seen.append((done, total))

    if function is None:
        dataset = sample_plane(PLANE, XS, YS, Toy(), ToyTest(), on_point, None, ledger)
    else:
        dataset = found(squares(function), ledger)
    ledger.close()
    return dataset, seen


@pytest.mark.parametrize("count", [1, 2, 5, POINTS, POINTS + 3])
def test_parts_make_the_whole(tmp_path, count):
    for number in range(1, count + 1):
        dataset, seen = measured(tmp_path, str(number), (number, count))
        own = int((dataset.status == 1).sum())
        assert own in (POINTS // count, -(-POINTS // count))
        assert seen == [(done, own) for done in range(own + 1)]
    folders = [tmp_path / str(number) for number in range(count, 0, -1)]
    whole = Ledger(tmp_path / "whole", {"seed": 0})
    parts.merge(parts.open_parts(folders, "scan.sqlite"), whole)
    merged = sample_plane(PLANE, XS, YS, Never(), Never(), None, None, whole)
    assert merged.identical(WHOLE)


def test_what_is_missing_is_named(tmp_path):
    def fails(number):
        if number == 7:
            raise RuntimeError("no memory")
        return square(number)

    for number in (1, 2):
        measured(tmp_path, str(number), (number, 4), fails)
    measured(tmp_path, "4", (4, 4), fails)
    with pytest.raises(InputError) as refused:
        parts.open_parts([tmp_path / "1", tmp_path / "4"], "scan.sqlite")
    assert str(refused.value).startswith(
        "11 of 20 points are missing; --part 2/4: x=1, x=5, x=9 and 2 more; "
        "--part 3/4: x=2, x=6, x=10 and 2 more; --part 4/4: x=7 (RuntimeError: no memory); "
    )
    with pytest.raises(InputError, match=r"nowhere holds no part: there is no scan.sqlite"):
        parts.open_parts([tmp_path / "1", tmp_path / "nowhere"], "scan.sqlite")
    Ledger(tmp_path / "scan.sqlite", {"seed": 1}).close()
    with pytest.raises(InputError, match="is no part; parts are made with --part"):
        parts.open_parts([tmp_path], "scan.sqlite")
    with pytest.raises(InputError, match="seed 1 then, 0 now"):
        parts.open_parts([tmp_path / "1", tmp_path], "scan.sqlite")


def test_parts_that_disagree_are_refused(tmp_path):
    measured(tmp_path, "1", (1, 2), square)
    measured(tmp_path, "2", (2, 2), square)
    ledger = Ledger(tmp_path / "2" / "scan.sqlite", None)
    ledger.keep("x=0", {"value": np.array(1e-7)})
    with pytest.raises(InputError, match=r"1 and .*2 disagree on 'x=0'"):
        parts.open_parts([tmp_path / "1", tmp_path / "2"], "scan.sqlite")


@pytest.mark.parametrize(
    "part", ["0/4", "5/4", "4", "a/b", "1/0", "-1/4", "1/4/2", "9" * 5000 + "/1"]
)
def test_a_part_that_there_is_not_is_refused(part):
    with pytest.raises(InputError, match=r"`part` is .*; give number/count"):
        Resources(part=part)


# In processes -------------------------------------------------------------------------------------


def die_once(path, number):
    """Kill the process that takes piece 3, the first time; and always that which takes piece 5."""
    if number == 5 or (number == 3 and not path.exists()):
        path.touch()
        os._exit(1)
    return square(number)


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_own_piece(tmp_path):
    pieces = squares(partial(die_once, tmp_path / "died"))
    with Workers(2) as executor:
        results = found(pieces, None, executor)
    assert results.pop("x=5").error.startswith("BrokenProcessPool: ")
    assert results == {f"x={n}": n * n for n in range(20) if n != 5}


@pytest.mark.slow
def test_workers_give_the_same_bits(tmp_path):
    ledger = Ledger(tmp_path / "a", {})
    with Workers(2) as executor:
        sampled = sample_plane(PLANE, XS, YS, Toy(), ToyTest(), None, None, ledger, executor)
    assert sampled.identical(WHOLE)
    ledger.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a"], "no shared file is left"


def process(number):
    """Return the number of the process, after some time that is long for nobody else."""
    if number:
        time.sleep(1000)
    return {"value": np.array(os.getpid())}


EARLY = """
import multiprocessing.forkserver
from landscape.work import processes
if __name__ == "__main__":
    processes.NEEDED = ["sleeps"]
    processes.start_method()
    print(multiprocessing.forkserver._forkserver._forkserver_pid)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are spawned there")
def test_what_workers_are_forked_from_ends_with_a_command_that_ends_early(tmp_path):
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(1000)\n")
    paths = os.pathsep.join([str(tmp_path), str(Path.cwd())])
    done = subprocess.run(  # returns when all that inherited the pipe is gone
        [sys.executable, "-c", EARLY],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 0


BARS = """
import sys
sys.path.insert(0, {tests!r})
from test_work import Workers, bar, finish, squares
if __name__ == "__main__":
    with Workers(2) as executor:
        print(sum(int(found["value"]) for _, found in finish(squares(bar, 4), None, executor)))
"""


def bar(number):
    """Show a progress bar to nobody, as Inductor does when it compiles."""
    with tqdm(disable=True):
        return {"value": np.array(number)}


@pytest.mark.slow
def test_progress_bars_of_workers_leak_no_lock():
    done = subprocess.run(
        [sys.executable, "-c", BARS.format(tests=str(Path(__file__).parent))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("6\n", "")


PARENT = """
import sys
sys.path.insert(0, {tests!r})
from test_work import finish, process, squares, Workers
if __name__ == "__main__":
    for _, value in finish(squares(process, 2), None, Workers(1)):
        print(int(value["value"]), flush=True)
"""


@pytest.mark.slow
def test_workers_end_with_a_process_that_is_killed(tmp_path):
    program = tmp_path / "parent.py"
    program.write_text(PARENT.format(tests=os.path.dirname(__file__)))  # noqa: PTH120
    parent = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE)
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.kill()
    parent.wait()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")
