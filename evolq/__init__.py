"""Quantize vision networks, and search their scales by evolution.

The names below are loaded when they are first used (PEP 562), so that command lines answer before
PyTorch is imported.
"""

from typing import TYPE_CHECKING

from evolq.lazy import lazy_names

if TYPE_CHECKING:
    from evolq.data.images import (
        LabeledImages,
        Split,
        bundled_split,
        folder_split,
        tensor_split,
    )
    from evolq.data.models import load_model
    from evolq.errors import InputError
    from evolq.files.onnx import export_onnx
    from evolq.files.onnx_report import ExportReport, check_export
    from evolq.files.program import to_torch
    from evolq.files.saved import load, load_point, save
    from evolq.losses.criteria import CRITERIA, Criterion, choose_criterion
    from evolq.losses.objective import Objective, TestEvaluation, predict
    from evolq.losses.paired import paired_difference
    from evolq.network.blocks import find_blocks
    from evolq.network.quantized import QuantizedNetwork, quantize
    from evolq.optimizers.evolve import Iterate, search_scales
    from evolq.optimizers.mixed_precision import search_bits
    from evolq.optimizers.recipes import RECIPES, Recipe, choose_recipe
    from evolq.optimizers.registry import OPTIMIZERS, choose_optimizer
    from evolq.points import Direction, Point, displace, displacement, select
    from evolq.problem import Problem, prepare, problem_of
    from evolq.quantization import Quantization
    from evolq.settings import Settings
    from evolq.starts.calibration import calibrate
    from evolq.tensor.observers import OBSERVERS
    from evolq.tensor.quantizers import PerChannel, PerGroup, PerTensor, QuantSpec
    from evolq.workflow import SearchResult, search

_MODULES = {
    "network.blocks": ("find_blocks",),
    "starts.calibration": ("calibrate",),
    "losses.criteria": ("CRITERIA", "Criterion", "choose_criterion"),
    "losses.paired": ("paired_difference",),
    "data.images": ("LabeledImages", "Split", "bundled_split", "folder_split", "tensor_split"),
    "errors": ("InputError",),
    "optimizers.evolve": ("Iterate", "search_scales"),
    "optimizers.mixed_precision": ("search_bits",),
    "data.models": ("load_model",),
    "network.quantized": ("QuantizedNetwork", "quantize"),
    "losses.objective": ("Objective", "TestEvaluation", "predict"),
    "tensor.observers": ("OBSERVERS",),
    "optimizers.registry": ("OPTIMIZERS", "choose_optimizer"),
    "points": ("Direction", "Point", "displace", "displacement", "select"),
    "problem": ("Problem", "prepare", "problem_of"),
    "quantization": ("Quantization",),
    "settings": ("Settings",),
    "tensor.quantizers": ("PerChannel", "PerGroup", "PerTensor", "QuantSpec"),
    "optimizers.recipes": ("RECIPES", "Recipe", "choose_recipe"),
    "files.onnx": ("export_onnx",),
    "files.onnx_report": ("ExportReport", "check_export"),
    "files.program": ("to_torch",),
    "files.saved": ("load", "load_point", "save"),
    "workflow": ("SearchResult", "search"),
}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [
    "CRITERIA",
    "OBSERVERS",
    "OPTIMIZERS",
    "RECIPES",
    "Criterion",
    "Direction",
    "ExportReport",
    "InputError",
    "Iterate",
    "LabeledImages",
    "Objective",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "Point",
    "Problem",
    "QuantSpec",
    "Quantization",
    "QuantizedNetwork",
    "Recipe",
    "SearchResult",
    "Settings",
    "Split",
    "TestEvaluation",
    "bundled_split",
    "calibrate",
    "check_export",
    "choose_criterion",
    "choose_optimizer",
    "choose_recipe",
    "displace",
    "displacement",
    "export_onnx",
    "find_blocks",
    "folder_split",
    "load",
    "load_model",
    "load_point",
    "paired_difference",
    "predict",
    "prepare",
    "problem_of",
    "quantize",
    "save",
    "search",
    "search_bits",
    "search_scales",
    "select",
    "tensor_split",
    "to_torch",
]
