"""How much memory scans and images take: measured in processes of their own, for docs/speed.md.

    python benchmarks/memory.py --json FILE            all cases; goes on where it stopped
    python benchmarks/memory.py --json FILE --full     also 101 x 101 points x 50,000 images
    python benchmarks/memory.py --json FILE --page docs/speed.md       only writes what is there

Arrays beyond 32 MiB are large here (`evolq.on_disk`), so that small cases show what large ones do.
A scan is measured as `landscape.scan` does it (ledger, analysis, table, scan.nc, both pictures),
with an objective that takes no time: a bowl, and noise in each image that neighboring points share
in part. Images are generated files of 256 x 256 pixels. Peak: the most that was resident at any
time (`ru_maxrss`), less what was after the imports for `beyond imports`.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

CASES: list[tuple[str, dict[str, int]]] = [
    *(("scan", {"side": side, "images": 2_000}) for side in (11, 31, 61)),
    ("scan", {"side": 31, "images": 60_000}),
    *(("images", {"count": count}) for count in (200, 800, 3_200)),
]
FULL = [("scan", {"side": 101, "images": 50_000})]

NOISE = 0.5
LARGE = 32 * 2**20
HEADING = "## Memory"


class Synthetic:
    """Losses of a bowl with the noise of images, as objective and as test."""

    def __init__(self, images: int) -> None:
        """Draw what each image adds at the start, and the waves in which it differs."""
        import torch

        generator = torch.Generator().manual_seed(0)
        self.images = images
        self.offset = torch.rand(images, generator=generator)
        self.waves = 200 * torch.randn(2, images, generator=generator)
        self.phase = 6.28 * torch.rand(images, generator=generator)

    def losses(self, point: dict[str, Any]) -> Any:
        """Return the loss of each image, (images,)."""
        place = point["w"]
        wave = (place[0] * self.waves[0] + place[1] * self.waves[1] + self.phase).sin()
        return self.offset + 30 * place.square().sum() + NOISE * (wave - self.phase.sin())

    def vary(self, names: tuple[str, ...], at: Any) -> Synthetic:
        """Return itself: nothing can be computed before."""
        return self


class Calibration(Synthetic):
    """On calibration images."""

    def per_image(self, point: dict[str, Any]) -> Any:
        """Return each image's value."""
        return self.losses(point)


class HeldOut(Synthetic):
    """On test images."""

    def per_image(self, point: dict[str, Any]) -> Any:
        """Return each image's cross entropy, and whether it is right."""
        losses = self.losses(point)
        return losses, losses < 1


def scan(folder: Path, side: int, images: int) -> dict[str, float]:
    """Scan a plane of side x side points, analyse, draw and write it."""
    import torch

    from evolq import on_disk
    from landscape import results
    from landscape.ledger import Ledger
    from landscape.probes.sampling import axis, sample_plane
    from landscape.probes.slices import Plane
    from landscape.words import name_scan

    on_disk.SHARE *= LARGE / on_disk.largest_in_memory()
    before = peak()
    origin, east, north = torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    plane = Plane({"w": origin}, {"w": east}, {"w": north})
    along = axis(0.1, side)
    ledger = Ledger(folder / "scan.sqlite", {"side": side, "images": images})
    clock = time.perf_counter()
    found = sample_plane(plane, along, along, Calibration(100), HeldOut(images), None, None, ledger)
    configuration = {"model": "synthetic", "scheme": "none", "over": "weights", "criterion": "kl"}
    configuration |= {"directions": "gaussian", "normalize": "none"}
    found.attrs["provenance"] = json.dumps({"configuration": configuration})
    name_scan(found, configuration)
    sampled, after = time.perf_counter() - clock, peak()
    results.write(found, folder, as_json=True)
    ledger.remove()
    return {
        "values": side**2 * images,
        "peak": peak(),
        "beyond imports": peak() - before,
        "peak of sampling": after,
        "seconds of sampling": round(sampled, 1),
        "seconds of all else": round(time.perf_counter() - clock - sampled, 1),
        "size of scan.nc": (folder / "scan.nc").stat().st_size,
    }


def images(folder: Path, count: int) -> dict[str, float]:
    """Read images for a network of 224 x 224, and run over the batches once."""
    import numpy as np
    from PIL import Image

    from evolq import on_disk
    from evolq.data.images import folder_split
    from evolq.data.pixels import batches

    on_disk.SHARE *= LARGE / on_disk.largest_in_memory()
    random = np.random.default_rng(0)
    (folder / "0").mkdir(exist_ok=True)
    for number in range(count + 1):
        values = random.integers(256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(values).resize((256, 256)).save(folder / "0" / f"{number}.jpg")
    wanted = {"input_size": (3, 224, 224), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.9}
    wanted |= {"interpolation": "bicubic", "crop_mode": "center"}
    before = peak()
    clock = time.perf_counter()
    split = folder_split(
        folder, preprocessing=wanted, class_count=1, calibration=1, selection=0, test=count
    )
    read = time.perf_counter() - clock
    total = sum(float(batch.mean()) for batch in batches(split.test.images, 50))
    return {
        "values": count * 3 * 224 * 224,
        "peak": peak(),
        "beyond imports": peak() - before,
        "mean": round(total, 3),
        "seconds of reading": round(read, 1),
        "seconds of one pass": round(time.perf_counter() - clock - read, 1),
    }


def peak() -> int:
    """Return the most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(what: str, case: dict[str, int], folder: Path) -> dict[str, Any]:
    """Return what a process of its own found in a case.

    Args:
        what: `scan` or `images`.
        case: arguments.
        folder: for its files; what is finished of a scan stays there if it is killed.

    Raises:
        SystemExit: if it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--case", json.dumps([what, case, str(folder)])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} {case} ended with {done.returncode}; {folder} has what it made")
    shutil.rmtree(folder)
    return {"what": what, **case, **json.loads(done.stdout.splitlines()[-1])}


def table(found: list[dict[str, Any]]) -> str:
    """Return Markdown tables of what was found."""
    mib = 2**20
    lines = ["| points | images | losses, MiB | peak, MiB | beyond imports | seconds |"]
    lines.append("|---|---|---|---|---|---|")
    for one in (one for one in found if one["what"] == "scan"):
        seconds = one["seconds of sampling"] + one["seconds of all else"]
        lines.append(
            f"| {one['side']} x {one['side']} | {one['images']:,} | {4 * one['values'] / mib:,.0f} "
            f"| {one['peak'] / mib:,.0f} | {one['beyond imports'] / mib:,.0f} | {seconds:,.0f} |"
        )
    lines += [
        "",
        "| images of 224 x 224 | as float32, MiB | beyond imports, MiB | ms to read one |",
    ]
    lines.append("|---|---|---|---|")
    for one in (one for one in found if one["what"] == "images"):
        lines.append(
            f"| {one['count']:,} | {4 * one['values'] / mib:,.0f} "
            f"| {one['beyond imports'] / mib:,.0f} "
            f"| {1000 * one['seconds of reading'] / one['count']:.1f} |"
        )
    return "\n".join(lines)


def main(
    to: Annotated[Path, typer.Option("--json", help="File of results.")] = Path("memory.json"),
    full: Annotated[bool, typer.Option(help="Also 101 x 101 points x 50,000 images.")] = False,
    page: Annotated[Path | None, typer.Option(help="Write the tables here.")] = None,
    case: Annotated[str | None, typer.Option(help="One case, in this process.")] = None,
) -> None:
    """Measure all cases, and print tables."""
    if case is not None:
        what, arguments, folder = json.loads(case)
        print(json.dumps({"scan": scan, "images": images}[what](Path(folder), **arguments)))
        return
    found = json.loads(to.read_text()) if to.exists() else []
    for what, arguments in CASES + (FULL if full else []):
        if not any({"what": what, **arguments}.items() <= one.items() for one in found):
            name = "-".join([what, *map(str, arguments.values())])
            found.append(measured(what, arguments, to.with_suffix("") / name))
            print(json.dumps(found[-1]), file=sys.stderr)
            to.write_text(json.dumps(found, indent=1))
    print(table(found))
    if page is not None:
        page.write_text(section(page.read_text(), found))


def section(page: str, found: list[dict[str, Any]]) -> str:
    """Return docs/speed.md with the section on memory, which is its last."""
    before = page.split(HEADING)[0].rstrip()
    return f"""{before}

{HEADING}

Written by `benchmarks/memory.py --page`, which says what is measured. Losses of images and pixels
beyond 1/64 of the memory lie in a file without a name in the folder of the run (pixels: of the
system); here already beyond {LARGE // 2**20} MiB. While a scan is unfinished its ledger holds the
same losses, so that a scan takes up to twice their size on the disk, and `scan.nc` as much again.
Imports alone take some 870 MiB. Seconds are of a machine that did other things, too. Calibration is
no part of this: it keeps what each quantizer sees of all its images, of as many quantizers at a
time as fit in 2 GiB, and some copies of one; commands observe 100 images.

{table(found)}
"""


if __name__ == "__main__":
    typer.run(main)
