"""What ONNX Runtime makes of an exported network: checked on the file, not hoped for."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evolq.data.pixels import Images, batches
from evolq.errors import InputError, first_line, require
from evolq.files.onnx import export_onnx
from evolq.files.onnx_codes import SHIFT
from evolq.network.quantized import BATCH_SIZE, QuantizedNetwork
from evolq.points import Point

if TYPE_CHECKING:
    import onnx

PRODUCTS = {"MatMul", "Gemm", "Conv", "MatMulInteger", "ConvInteger"}
"""Operators of an exported model that multiply matrices or convolve."""

INTEGER_PRODUCTS = {
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QLinearMatMul",
    "QGemm",
    "ConvInteger",
    "QLinearConv",
}
"""Operators of ONNX Runtime that do it on integers."""

ROUNDS = 5


@dataclass(frozen=True)
class Latency:
    """How long one batch takes.

    Attributes:
        batch: its number of images.
        milliseconds: of the exported network.
        full_precision: milliseconds of the same network, exported without quantizers.
    """

    batch: int
    milliseconds: float
    full_precision: float

    @property
    def ratio(self) -> float:
        """Of the two times; below 1 the exported network is faster."""
        return self.milliseconds / self.full_precision


@dataclass(frozen=True)
class ExportReport:
    """What was found by opening an exported model in ONNX Runtime.

    Attributes:
        onnxruntime: its version.
        threads: that it ran with.
        opset: of the file.
        ir_version: likewise.
        size: of the file, in bytes.
        products: matrix products and convolutions of the network.
        integer_products: how many of them multiply integers once ONNX Runtime has optimized the
            graph.
        float_products: names of the others.
        images: how many were compared.
        top1_agreement: share of them on which the class is the one of our own evaluation, 0 to 1.
        largest_difference: of any of their logits from our own.
        latency: by batch size, beside full precision.
    """

    onnxruntime: str
    threads: int
    opset: int
    ir_version: int
    size: int
    products: int
    integer_products: int
    float_products: tuple[str, ...]
    images: int
    top1_agreement: float
    largest_difference: float
    latency: tuple[Latency, ...]

    def __str__(self) -> str:
        """Return the report in lines of words."""
        lines = [
            f"ONNX Runtime {self.onnxruntime} agrees on {self.top1_agreement:.2%} of {self.images} "
            f"images; logits differ by at most {self.largest_difference:.2g}.",
            f"{self.integer_products} of {self.products} products run on integers"
            + (f", but not {', '.join(self.float_products)}." if self.float_products else "."),
        ]
        if any(".Conv" in name for name in self.float_products):
            lines.append(
                "Convolutions run on integers where a quantizer is all that reads what they make, "
                "and weights have no zero points (`weight_symmetric`) and no matched moments."
            )
        for one in self.latency:
            lines.append(
                f"Batch {one.batch}: {one.milliseconds:.1f} ms, {one.ratio:.2f} times the "
                f"{one.full_precision:.1f} ms of full precision"
                + (", which is faster." if one.ratio > 1 else ".")
            )
        return "\n".join(lines)


def check_export(
    path: str | Path,
    network: QuantizedNetwork,
    point: Point,
    images: Images,
    batches: Sequence[int] = (1, 8),
    rounds: int = ROUNDS,
    batch_size: int = BATCH_SIZE,
    clock: Callable[[], float] = time.perf_counter,
) -> ExportReport:
    """Open an exported model in ONNX Runtime and report what it does with it.

    Quantized activations put a limit to agreement, whatever the runtime: sums that are rounded in
    another order fall into another code here and there, and each such code moves others behind it.
    In a deep network two correct runs then differ by the noise of activation quantization.

    Times are the shortest of some rounds, since other processes only add to them; both networks
    take turns. ONNX Runtime gets as many threads as torch has.

    Args:
        path: a file that `export_onnx` wrote.
        network: that it was written from.
        point: likewise.
        images: (n, channels, height, width), to compare logits on.
        batches: sizes of the batches that are timed; none to leave it out.
        rounds: how often each of them is.
        batch_size: images per pass of the comparison.
        clock: of the times, in seconds; with one thread, `time.process_time` does not count what
            other processes take.

    Raises:
        InputError: if onnx or onnxruntime is not installed, ONNX Runtime cannot run the file, or
            there are no images.
    """
    for package in ("onnx", "onnxruntime"):
        require(package, "onnx", "ONNX")
    import onnx
    import onnxruntime

    if len(images) == 0:
        raise InputError("no images to compare logits on; give at least one")
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        run = logits_of(path, optimized)
        file, graph = onnx.load(path), onnx.load(optimized)
        agreement, difference = _compare(run, network, point, images, batch_size)
        latency: tuple[Latency, ...] = ()
        if batches:
            plain, reference = network.full_precision(), Path(folder) / "full_precision.onnx"
            export_onnx(plain, plain.weights, reference, images[:2])
            latency = side_by_side(run, logits_of(reference), images, batches, rounds, clock)
    names = [node.name for node in file.graph.node if _is_product(node)]
    # ONNX Runtime numbers the nodes that it lays out anew
    integer = {
        node.name.partition("_token_")[0]
        for node in graph.graph.node
        if node.op_type in INTEGER_PRODUCTS
    }
    left = tuple(name for name in names if name not in integer)
    return ExportReport(
        onnxruntime=onnxruntime.__version__,
        threads=torch.get_num_threads(),
        opset=file.opset_import[0].version,
        ir_version=file.ir_version,
        size=Path(path).stat().st_size,
        products=len(names),
        integer_products=len(names) - len(left),
        float_products=left,
        images=len(images),
        top1_agreement=agreement,
        largest_difference=difference,
        latency=latency,
    )


def logits_of(path: str | Path, optimized: str | Path | None = None) -> Callable[[Any], Any]:
    """Return the model in `path` as a function from images to logits, both numpy, in ONNX Runtime.

    Args:
        path: a file that `export_onnx` wrote.
        optimized: where to write the graph that is run, if anywhere.

    Raises:
        InputError: if ONNX Runtime cannot run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # it warns that optimized graphs are for this machine only
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no common base but this
        raise InputError(
            f"ONNX Runtime cannot run {path}: {first_line(error)}; export the network"
        ) from error
    return lambda images: session.run(["logits"], {"images": images})[0]


def _is_product(node: onnx.NodeProto) -> bool:
    """Whether `node` is a product of the network, not one that only adds shifts."""
    last = node.name.rpartition(".")[2].partition("_")[0]
    return node.op_type in PRODUCTS and last != SHIFT


def _compare(
    run: Callable[[Any], Any],
    network: QuantizedNetwork,
    point: Point,
    images: Images,
    batch_size: int,
) -> tuple[float, float]:
    """Return the share of images with the same class, and the largest difference of logits."""
    agree, largest = 0, 0.0
    for batch in batches(images, batch_size):
        logits = torch.from_numpy(run(batch.cpu().numpy()))
        with torch.no_grad():
            expected = network(point, batch).cpu()
        agree += int((logits.argmax(1) == expected.argmax(1)).sum())
        largest = max(largest, float((logits - expected).abs().max()))
    return agree / len(images), largest


def side_by_side(
    run: Callable[[Any], object],
    reference: Callable[[Any], object],
    images: Images,
    batches: Sequence[int],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Latency, ...]:
    """Return the shortest times of two functions of a batch (numpy), which take turns.

    Args:
        run: the exported network.
        reference: the same network without quantizers.
        images: (n, channels, height, width), repeated where a batch needs more.
        batches: sizes of batches.
        rounds: how often each is timed, after one run to warm up.
        clock: in seconds.
    """
    latency = []
    for size in batches:
        few = images[:size]
        batch = few[torch.arange(size) % len(few)].cpu().numpy()
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds + 1):
            for function, times in zip((run, reference), seconds, strict=True):
                began = clock()
                function(batch)
                times.append(clock() - began)
        best, plain = (1000 * min(times[1:]) for times in seconds)
        latency.append(Latency(size, best, plain))
    return tuple(latency)
