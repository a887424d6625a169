"""The published Evol-Q / FQ-ViT code's numbers from our formulas: all but the integer softmax's.

`golden/official.npz` holds what that code (github enyac-group/evol-q at 9a39a35) computes on small
seeded tensors in float32: numbers only. Keys `in/...` are inputs.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evolq.losses.criteria import info_nce
from evolq.tensor.integer_layer_norm import integer_layer_norm
from evolq.tensor.moments import moment_match
from evolq.tensor.observers import OBSERVERS, power_of_two_factor
from evolq.tensor.quantizers import PerChannel, QuantSpec, fake_quantize

with np.load(Path(__file__).with_name("golden") / "official.npz") as _archive:
    GOLDEN = {key: torch.from_numpy(np.asarray(_archive[key])) for key in _archive.files}

# What `integer_layer_norm` reads, besides what the power-of-two factor gives it.
INPUTS = ("in/", "int_layer_norm/weight", "int_layer_norm/bias", "int_layer_norm/out_scale")
OUTPUTS = [key for key in GOLDEN if not key.startswith((*INPUTS, "log_int_softmax/"))]
ACTIVATIONS = [GOLDEN[f"in/activation_{batch}"] for batch in range(3)]

# Largest error relative to the largest magnitude. All else is equal bit for bit.
TOLERANCES = {
    # torch.quantile computes the fractional rank in float32, we in float64.
    "percentile/": 1e-6,
    # The same shift and scale, in another order of operations.
    "_moment_matched": 5e-7,
    # Sums over 1,000 classes, in another order; at T = 0.07 the loss is 4e-5 and almost all of it
    # is the rounding of exponents near 14.
    "info_nce/T=0.07": 1e-2,
    "info_nce/": 1e-6,
}


def reproduce(key: str) -> Tensor:
    """Compute the array that `key` names."""
    method, subject, *rest = key.split("/")
    if method == "info_nce":
        student, teacher = GOLDEN["in/student_logits"], GOLDEN["in/teacher_logits"]
        labels = torch.zeros(len(student), dtype=torch.int64)
        return info_nce(student, teacher, labels, float(subject.removeprefix("T="))).mean()
    if method == "log2":
        attention = GOLDEN["in/attention_logits"].softmax(-1)
        spec = QuantSpec(4, kind="log2")
        return fake_quantize(attention, *OBSERVERS["minmax"]([attention], spec), 4, spec)
    if method == "int_layer_norm":
        scale, value = (
            reproduce("ptf/activation/uint8/scale"),
            "ptf/activation/uint8/fake_quantized",
        )
        if subject == "in_scale":
            return scale
        if subject == "in":
            return reproduce(value)
        weight, bias = GOLDEN["int_layer_norm/weight"], GOLDEN["int_layer_norm/bias"]
        out_scale = GOLDEN["int_layer_norm/out_scale"]
        return integer_layer_norm(reproduce(value), scale, weight, bias, out_scale)

    codes, wanted = rest
    signed, bits = codes.startswith("int"), int(codes[-1])
    spec = QuantSpec(bits, signed, symmetric=signed)
    batches = ACTIVATIONS
    if method == "ptf":
        spec = QuantSpec(bits, granularity=PerChannel(-1))
        scale, zero_point, factors = power_of_two_factor(batches, spec)
        scale = scale * factors
    else:
        if subject != "activation":
            spec = QuantSpec(bits, signed, symmetric=signed, granularity=PerChannel(0))
            batches = [GOLDEN[f"in/{subject}"]]
        scale, zero_point = OBSERVERS[method](batches, spec)
    if wanted == "scale":
        return scale
    if wanted == "zero_point":
        return torch.zeros(GOLDEN[key].shape) if zero_point is None else zero_point
    quantized = fake_quantize(batches[-1], scale, zero_point, bits, spec)
    if wanted == "fake_quantized":
        return quantized
    assert wanted == "fake_quantized_moment_matched"
    return moment_match(quantized, batches[-1], spec)


@pytest.mark.parametrize("key", OUTPUTS)
def test_the_published_number_is_reproduced(key: str) -> None:
    expected = GOLDEN[key]
    result = reproduce(key).reshape(expected.shape).to(expected.dtype)
    tolerance = next((t for part, t in TOLERANCES.items() if part in key), 0.0)
    torch.testing.assert_close(
        result, expected, rtol=0, atol=tolerance * float(expected.abs().max())
    )


def test_all_arrays_are_there() -> None:
    assert len(GOLDEN) == 114
