"""Quantize vision networks, and search their scales by evolution.

The names below are loaded when they are first used (PEP 562), so that command lines answer before
PyTorch is imported.
"""

from typing import TYPE_CHECKING

from evolq.lazy import lazy_names

if TYPE_CHECKING:
    from evolq.blocks import find_blocks
    from evolq.calibration import calibrate
    from evolq.comparison import paired_difference
    from evolq.criteria import CRITERIA, Criterion, choose_criterion
    from evolq.data import LabelledImages, Split, bundled_split, folder_split
    from evolq.errors import InputError
    from evolq.evolve import Iterate, search_scales
    from evolq.mixed_precision import search_bits
    from evolq.models import load_model
    from evolq.network import QuantizedNetwork, quantize
    from evolq.objective import Objective, TestEvaluation, predict
    from evolq.observers import OBSERVERS
    from evolq.optimizers import OPTIMIZERS, choose_optimizer
    from evolq.points import Direction, Point, displace, displacement, select
    from evolq.problem import Problem, Settings, prepare
    from evolq.quantizers import PerChannel, PerGroup, PerTensor, QuantSpec
    from evolq.recipes import RECIPES, Recipe, choose_recipe
    from evolq.saved import load, load_point, save
    from evolq.workflow import SearchResult, search

_MODULES = {
    "blocks": ("find_blocks",),
    "calibration": ("calibrate",),
    "criteria": ("CRITERIA", "Criterion", "choose_criterion"),
    "comparison": ("paired_difference",),
    "data": ("LabelledImages", "Split", "bundled_split", "folder_split"),
    "errors": ("InputError",),
    "evolve": ("Iterate", "search_scales"),
    "mixed_precision": ("search_bits",),
    "models": ("load_model",),
    "network": ("QuantizedNetwork", "quantize"),
    "objective": ("Objective", "TestEvaluation", "predict"),
    "observers": ("OBSERVERS",),
    "optimizers": ("OPTIMIZERS", "choose_optimizer"),
    "points": ("Direction", "Point", "displace", "displacement", "select"),
    "problem": ("Problem", "Settings", "prepare"),
    "quantizers": ("PerChannel", "PerGroup", "PerTensor", "QuantSpec"),
    "recipes": ("RECIPES", "Recipe", "choose_recipe"),
    "saved": ("load", "load_point", "save"),
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
    "InputError",
    "Iterate",
    "LabelledImages",
    "Objective",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "Point",
    "Problem",
    "QuantSpec",
    "QuantizedNetwork",
    "Recipe",
    "SearchResult",
    "Settings",
    "Split",
    "TestEvaluation",
    "bundled_split",
    "calibrate",
    "choose_criterion",
    "choose_optimizer",
    "choose_recipe",
    "displace",
    "displacement",
    "find_blocks",
    "folder_split",
    "load",
    "load_model",
    "load_point",
    "paired_difference",
    "predict",
    "prepare",
    "quantize",
    "save",
    "search",
    "search_bits",
    "search_scales",
    "select",
]
