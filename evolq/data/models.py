"""Models by name: the two bundled networks and everything in timm, with their preprocessing."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from huggingface_hub.utils import get_session
from torch import Tensor, nn

from evolq.data.fashion import MEAN, STD, fashion_resnet, fashion_vit
from evolq.data.weights import fitted, read_weights
from evolq.declared import check_value
from evolq.errors import InputError, first_line
from evolq.points import fingerprint

BUNDLED: dict[str, Callable[[], nn.Module]] = {
    "fashion_vit": fashion_vit,
    "fashion_resnet": fashion_resnet,
}
"""Networks whose trained weights are part of the package, each with its constructor."""

HUB = "hf-hub:"
NEAR = 4  # names that are offered for an unknown one
ADVICE = "give a file of its weights"

FASHION_PREPROCESSING = {
    "input_size": (1, 28, 28),
    "mean": (MEAN,),
    "std": (STD,),
    "crop_pct": 1.0,
}


def load_model(
    name: str, weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """Return a trained classifier in evaluation mode.

    Args:
        name: `fashion_vit`, `fashion_resnet`, any name of timm's (`resnet18`,
            `resnet18.a1_in1k`), or `hf-hub:OWNER/MODEL` for a timm model on the Hugging Face hub.
        weights: A file with the keys of that model, safetensors or of `torch.save`
            (`weights.read_weights`). If it classifies into another number of classes than timm's
            model, the model gets that many. Without it, bundled networks come with their own
            weights and timm downloads those of its models.
        device: Where the model lies.

    Raises:
        InputError: for an unknown name (with near names), a device that is not there, weights that
            cannot be downloaded or read, that do not fit (with the keys), or that are not finite.
    """
    check_value("weights", weights, Path | None)
    target = _usable_device(device)
    check_name(name)
    if name in BUNDLED and weights is None:
        weights = Path(__file__).parents[1] / "bundled" / f"{name}.safetensors"
    model = _pretrained(name) if weights is None else _with_weights(name, Path(weights))
    class_count(model)
    return model.eval().to(target)


def untrained(name: str, classes: int | None = None) -> nn.Module:
    """Return the architecture of `load_model(name)` with random weights, in training mode.

    Args:
        name: as for `load_model`.
        classes: number of logits, for timm models that were fine-tuned to another number.

    Raises:
        InputError: for an unknown name.
    """
    if name in BUNDLED:
        model = BUNDLED[name]()
        model.pretrained_cfg = FASHION_PREPROCESSING  # type: ignore[assignment]
        return model
    check_name(name)
    return _create(name, num_classes=classes)


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """Return what the model's images must go through, as timm describes it.

    The keys are those of `timm.data.resolve_model_data_config`: `input_size` (channels, height,
    width), `interpolation`, `mean` and `std` (one number per channel, for pixels between 0 and 1),
    `crop_pct`, `crop_mode`. A module that says nothing about it gets timm's defaults for ImageNet.
    """
    config: dict[str, Any] = timm.data.resolve_model_data_config(model)
    return config


def class_count(model: nn.Module) -> int:
    """Return the number of classes that the model tells apart.

    Raises:
        InputError: if the model does not classify.
    """
    count = getattr(model, "num_classes", 0)
    if not isinstance(count, int) or count < 1:
        raise InputError(
            f"{type(model).__name__} has no classifier (num_classes is {count}), but its accuracy "
            "is wanted; choose a model that was trained to classify"
        )
    return count


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 (hex) of all floating-point parameters and buffers, in name order.

    It covers names, shapes and float32 values of the state dict, so it depends neither on the
    device nor on the order in which modules were registered.
    """
    values = model.state_dict()
    return fingerprint({name: v for name, v in values.items() if v.is_floating_point()})


# Names and devices --------------------------------------------------------------------------------


def _usable_device(device: str | torch.device) -> torch.device:
    try:
        value = torch.zeros(1, device=device)
        value.item()  # the device `meta` has no values
        return value.device
    except (RuntimeError, AssertionError) as error:  # torch raises either, depending on its build
        raise InputError(
            f"device {str(device)!r} cannot be used ({first_line(error)}); try cpu"
        ) from error


def check_name(name: str) -> None:
    """Check that `load_model` knows `name`; names on the hub are not looked up.

    Raises:
        InputError: for an unknown name, with those that begin so or look alike.
    """
    check_value("model", name, str)
    if name in BUNDLED:
        return
    strange = re.search(r"[^\w./:@-]", name)
    if strange or not name:
        raise InputError(
            f"model {name!r} is no name: {f'it holds {strange[0]!r}' if strange else 'it is empty'}"
            "; is a variable of the shell not set, or quoted wrongly?"
        )
    if name.startswith(HUB):
        return
    architecture = name.partition(".")[0]
    if timm.is_model(architecture):
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError as error:
            known = ", ".join(timm.list_pretrained(f"{architecture}.*"))
            raise InputError(f"{name!r} names no weights of timm's; it has {known}") from error
        return
    raise InputError(
        f"unknown model {name!r}, wanted {' or '.join(BUNDLED)} or a timm name; "
        f"{_advice(architecture)}"
    )


def _advice(architecture: str) -> str:
    """Return what a user may have meant: a name that begins so, or else one that looks alike."""
    known = [*BUNDLED, *timm.list_models()]
    wanted = architecture.lower().replace("-", "_")
    owner, _, last = wanted.rpartition("/")
    if owner:
        return f"of a model on the Hugging Face hub, the name is {HUB}{architecture}"
    longer = sorted((n for n in known if n.startswith(last)), key=lambda n: (len(n), n))
    if longer and last:
        more = f" ({len(longer)} names begin so)" if len(longer) > NEAR else ""
        return f"did you mean {', '.join(longer[:NEAR])}?{more}"
    near = difflib.get_close_matches(wanted, known, n=NEAR)
    return f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists all names"


# Weights ------------------------------------------------------------------------------------------


def _pretrained(name: str) -> nn.Module:
    """Let timm download the weights, unless it is clear at once that it cannot."""
    check_name(name)
    hub_name: str | None = name.removeprefix(HUB)
    if not name.startswith(HUB):
        source = timm.get_pretrained_cfg(name)
        if source is None or not source.has_weights:
            raise InputError(f"timm has no trained weights for {name!r}; {ADVICE}")
        hub_name = source.hf_hub_id
    # The hub's own client would retry for a minute, with a warning each time.
    if hub_name and not _is_downloaded(hub_name) and not _hub_is_reachable():
        raise InputError(f"cannot download {name!r}: no way to {_hub_address()}; {ADVICE}")
    return _create(name, pretrained=True)


def _create(name: str, **options: Any) -> nn.Module:
    try:
        return timm.create_model(name, **options)
    except Exception as error:  # each host, cache and file format raises its own kind
        reason = " ".join(str(error).split())
        raise InputError(f"timm cannot make {name!r} ({reason}); {ADVICE}") from error


def _is_downloaded(hub_name: str) -> bool:
    names = ("model.safetensors", "pytorch_model.bin")
    return any(
        isinstance(huggingface_hub.try_to_load_from_cache(hub_name, name), str) for name in names
    )


def _hub_address() -> str:
    return huggingface_hub.constants.ENDPOINT


def _hub_is_reachable() -> bool:
    try:
        get_session().head(_hub_address(), timeout=10)
    except Exception:  # its classes changed with the library below the client
        return False
    return True


def _with_weights(name: str, path: Path) -> nn.Module:
    model = untrained(name)
    weights = read_weights(path, model.state_dict().keys())
    fine_tuned = _fine_tuned_class_count(model, weights)
    if fine_tuned is not None:
        model = untrained(name, fine_tuned)
    model.load_state_dict(fitted(model.state_dict(), weights, f"{path} does not fit {name!r}"))
    return model


def _fine_tuned_class_count(model: nn.Module, weights: Mapping[str, Tensor]) -> int | None:
    """Return the checkpoint's number of classes if timm knows its classifier and it is another."""
    classifiers = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    for classifier in (classifiers,) if isinstance(classifiers, str) else classifiers:
        weight = weights.get(f"{classifier}.weight")
        if weight is not None and weight.ndim and len(weight) != model.num_classes:
            return len(weight)
    return None


def reparameterize(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, with branches merged where the model knows how to.

    RepVGG-like blocks and convolutions with their batch norms become single layers
    (`timm.utils.reparameterize_model`), so that what is quantized is what would be deployed. If a
    module has a method of one of timm's names for something else and that fails, nothing is merged;
    whether logits stay is up to the caller to check.
    """
    from timm.utils import reparameterize_model

    try:
        return reparameterize_model(copy.deepcopy(model).eval(), inplace=True).eval()
    except Exception:  # of a method that wanted arguments, for one
        return copy.deepcopy(model).eval()
