"""How scans grow: points a second by workers, the cost of handing points out, a plan for a cluster.

python benchmarks/scale.py                     rates and costs, as lines of JSON
python benchmarks/scale.py --only plan         ViT-Base: 101 x 101 points, 50,000 images

rates   points of the default scan (fashion_vit) a second, in one process with 1 and with 2
        threads, and in 1 and 2 workers of one thread, which are warm. In turns, so that a
        machine that is busy is busy for all; the median of the repeats.
costs   seconds of this process for each point, with evaluations that take no time: 10,000
        points of 100 calibration images and 200 or 50,000 test images, with and without a
        ledger, here, in 2 workers, and on a local Dask cluster of 2 workers. A time of an
        evaluation divided by it is the number of workers from which on this process is the
        bottleneck.
plan    seconds of an evaluation of ViT-Base by the scales of all of it, in forward passes of the
        model itself (fp32, one thread, the two in turns), and what the plan makes of it
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
import typer
from timing import moved, seconds

from evolq import Quantization, Settings, calibrate, prepare, quantize
from evolq.data.images import LabeledImages
from evolq.losses.objective import TestEvaluation, predict
from evolq.points import select
from landscape.ledger import Arrays, Ledger
from landscape.probes.directions import orthogonal_pair
from landscape.probes.evaluation import Evaluation, evaluate
from landscape.probes.slices import Plane
from landscape.work.cluster import Cluster
from landscape.work.pieces import Here, Piece, finish
from landscape.work.shared import Shared
from landscape.work.workers import Workers

POINTS, IMAGES = 101 * 101, 50_000


def say(**values: Any) -> None:
    """Print a line."""
    print(json.dumps(values), flush=True)


def default_points(threads: int, count: int) -> list[Piece]:
    """Return points of the default scan."""
    problem = prepare(Settings(threads=threads))
    scales = select(problem.start, {"scale"})
    plane = Plane(problem.start, *orthogonal_pair(scales, torch.Generator().manual_seed(0)))
    shared = Shared(Evaluation(problem.objective, problem.test, problem.start, plane.at))
    names = tuple(sorted(scales))
    return [Piece(str(n), evaluate, (shared, names, 1e-3 * n, 1e-3)) for n in range(count)]


def points_a_second(pieces: Iterable[Piece], executor: Executor) -> float:
    """Return the rate between the first and the last results."""
    ends = [time.perf_counter() for _ in finish(pieces, None, executor)]
    skipped = len(ends) // 4  # of warm workers these only fill the queue
    return (len(ends) - 1 - skipped) / (ends[-1] - ends[skipped])


def rates(repeats: int) -> None:
    """Measure points a second."""
    one, two = default_points(1, 12), default_points(2, 12)
    with Workers(1) as alone, Workers(2) as both:
        ways = {
            "1 process, 1 thread": (one, Here()),
            "1 process, 2 threads": (two, Here()),
            "1 worker, 1 thread": (one, alone),
            "2 workers, 1 thread": (one, both),
        }
        found: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(repeats + 1):
            for way, (pieces, executor) in ways.items():
                rate = points_a_second(pieces, executor)
                if repeat:  # in the first round workers start
                    found[way].append(rate)
    base = found["1 process, 1 thread"]
    for way, values in found.items():
        ratios = [value / own for value, own in zip(values, base, strict=True)]
        say(
            way=way,
            points_a_second=round(statistics.median(values), 2),
            times_as_fast=round(statistics.median(ratios), 2),
            from_to=[round(min(ratios), 2), round(max(ratios), 2)],
        )


def instant(images: int, number: int) -> Arrays:
    """Return what an evaluation returns, at once."""
    return {
        "loss": np.zeros(100, dtype=np.float32),
        "test_loss": np.full(images, number, dtype=np.float32),
        "test_correct": np.zeros(images, dtype=bool),
    }


def costs(points: int) -> None:
    """Measure what a point costs the process that hands points out and writes results down."""
    from distributed import LocalCluster

    cluster = LocalCluster(2, threads_per_worker=1, dashboard_address=None)
    address = cluster.scheduler_address
    for way, make in {
        "here": Here,
        "2 workers": lambda: Workers(2),
        "Dask, 2 workers": lambda: Cluster(address),
    }.items():
        for images, with_ledger in ((200, False), (200, True), (IMAGES, True)):
            count = points if images == 200 else points // 10
            with make() as executor, tempfile.TemporaryDirectory() as folder:
                ledger = Ledger(Path(folder) / "ledger", {}) if with_ledger else None
                warm = [Piece(f"warm {n}", instant, (200, n)) for n in range(8)]
                for _ in finish(warm, None, executor):
                    pass
                pieces = (Piece(str(n), instant, (images, n)) for n in range(count))
                busy = time.process_time()
                spent = seconds(lambda: [None for _ in finish(pieces, ledger, executor)])  # noqa: B023
                busy = time.process_time() - busy
            say(
                way=way,
                images=images,
                ledger=with_ledger,
                points=count,
                milliseconds_a_point=round(1000 * spent / count, 3),
                milliseconds_of_this_process=round(1000 * busy / count, 3),
            )
    cluster.close()


def plan(repeats: int, count: int = 8) -> None:
    """Measure an evaluation of ViT-Base, and say how long so many take."""
    torch.set_num_threads(1)
    model = timm.create_model("vit_base_patch16_224").eval()
    images = torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    quantization = Quantization(weight_observer="minmax", activation_observer="minmax")
    network = quantize(model, images[:2], quantization)
    start = calibrate(network, images[:2])
    data = LabeledImages(
        images, torch.zeros(count, dtype=torch.int64), tuple(map(str, range(count)))
    )
    names = list(select(start, {"scale"}))
    test = TestEvaluation.of(network, data).vary(names, start)
    forward, evaluation = [], []
    for repeat in range(repeats + 1):
        point = moved(start, names, repeat)
        forward.append(seconds(lambda: predict(model, images)))
        evaluation.append(seconds(lambda: test.per_image(point)))  # noqa: B023
    pairs = zip(forward[1:], evaluation[1:], strict=True)
    ratios = [own / plain for plain, own in pairs]
    ratio, seconds_an_image = statistics.median(ratios), statistics.median(evaluation[1:]) / count
    say(
        forward_seconds_an_image=round(statistics.median(forward[1:]) / count, 3),
        evaluation_in_forward_passes=round(ratio, 3),
        from_to=[round(min(ratios), 3), round(max(ratios), 3)],
        core_hours=round(POINTS * IMAGES * seconds_an_image / 3600),
        gpu_hours_at_1000_images_a_second=round(POINTS * IMAGES * ratio / 1000 / 3600),
    )


PARTS = {"rates": rates, "costs": costs, "plan": plan}


def main(
    only: Annotated[str, typer.Option(help="rates, costs or plan")] = "",
    repeats: int = 5,
    points: int = 10_000,
) -> None:
    """Measure, and print lines of JSON."""
    for name, part in PARTS.items():
        if only in ("", name):
            part(points if part is costs else repeats)


if __name__ == "__main__":  # workers import this file
    typer.run(main)
