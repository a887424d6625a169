"""The images of an experiment: three disjoint sets, bundled or from folders.

Sets are drawn by one rule, `stratified_order`: a seeded order that spreads every class evenly.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evolq import on_disk
from evolq.data.decoding import decoder
from evolq.data.fashion import MEAN, STD
from evolq.data.folders import ImageFile, list_images, readable
from evolq.data.pixels import Images, Pixels, batches, normalize
from evolq.declared import check_seed, check_value
from evolq.errors import InputError
from evolq.on_disk import DiskArray

# Hashed at once: bytes, so that their number does not matter.
_HASHED_IMAGES = 64


@dataclass(frozen=True, eq=False, repr=False)
class LabeledImages:
    """Images (n, c, h, w) float32, normalized, with labels (n,) int64 and a name each.

    The images are a Tensor, or bytes that become one where a slice is taken (`Pixels`): all of them
    as a Tensor are `images[:]`.

    Raises:
        InputError: if shapes, types or numbers do not agree, or two images have the same name.
    """

    images: Images
    labels: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that everything fits together."""
        check_value("names", self.names, tuple[str, ...])
        if not hasattr(self.images, "to"):
            raise InputError(f"`images` is a {type(self.images).__name__}; give a tensor")
        check_value("labels", self.labels, Tensor)
        count = len(self.names)
        if (
            len(self.images.shape) != 4
            or self.images[:0].dtype != torch.float32
            or self.labels.dtype != torch.int64
            or len(self.images) != count
            or self.labels.shape != (count,)
        ):
            raise InputError(
                f"images {tuple(self.images.shape)} {self.images[:0].dtype}, labels "
                f"{tuple(self.labels.shape)} {self.labels.dtype} and {count} names do not go "
                "together; wanted (n, c, h, w) float32, (n,) int64 and n names"
            )
        if len(set(self.names)) != count:
            raise InputError("two images have the same name; give each its own")

    def to(self, device: torch.device | str) -> LabeledImages:
        """Return the same images and labels on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def __repr__(self) -> str:
        """Return the number of images and their size."""
        size = "x".join(map(str, self.images.shape[1:]))
        return f"LabeledImages({len(self)} images of {size})"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of shape, pixels and labels in their order; names do not count."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for batch in batches(self.images, _HASHED_IMAGES):
            digest.update(batch.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Split:
    """Three sets that share no image: to calibrate, to select among results, to test.

    Raises:
        InputError: if a name occurs in two of them.
    """

    calibration: LabeledImages
    selection: LabeledImages
    test: LabeledImages

    def __post_init__(self) -> None:
        """Check that no name occurs in two sets."""
        for role, data in vars(self).items():
            check_value(role, data, LabeledImages)
        for (first, a), (second, b) in itertools.combinations(vars(self).items(), 2):
            common = set(a.names) & set(b.names)
            if common:
                raise InputError(
                    f"{min(common)!r} is both a {first} and a {second} image; the sets must be "
                    "disjoint"
                )


def stratified_order(names: Sequence[str], labels: Sequence[int], seed: int) -> list[int]:
    """Return a seeded order of the indices that spreads every class evenly from first to last.

    The first images, however many, hold one share of all classes, to within one image of each; so
    do the last. Classes of equal size take turns, in rounds of one image of each in random order.
    The hash of seed and name decides, not a generator that differs between library versions.
    """
    classes = defaultdict(list)
    for index, (name, label) in enumerate(zip(names, labels, strict=True)):
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        shuffle, jitter = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:12], "big")
        classes[label].append((shuffle, jitter / 2**32, index))
    places = [
        ((rank + jitter) / len(members), index)
        for members in classes.values()
        for rank, (_, jitter, index) in enumerate(sorted(members))
    ]
    return [index for _, index in sorted(places)]


# Bundled images -----------------------------------------------------------------------------------


def bundled_split(
    calibration: int = 100, selection: int = 100, test: int = 200, seed: int = 0
) -> Split:
    """Return images of Fashion-MNIST (1, 28, 28), normalized for the bundled networks.

    Calibration and selection images come from 1,000 training images each, test images from the
    10,000 of the official test set: of each pool the first ones in `stratified_order`.

    Raises:
        InputError: if a number is negative or larger than its pool, or if there is nothing to
            calibrate or to test with.
    """
    counts = {"calibration": calibration, "selection": selection, "test": test}
    _check_counts(counts)
    check_seed(seed)
    sets = {}
    with np.load(Path(__file__).parents[1] / "bundled" / "fashion_mnist.npz") as arrays:
        for role, count in counts.items():
            labels = arrays[f"{role}_labels"].astype(np.int64)
            if count > len(labels):
                raise InputError(
                    f"{count} {role} images asked for, but the bundled set has {len(labels)}; "
                    "ask for fewer, or give a folder of your own images"
                )
            origin = "test" if role == "test" else "train"
            numbers = arrays.get(f"{role}_indices", range(len(labels)))
            names = [f"{origin}/{number:05}" for number in numbers]
            order = stratified_order(names, labels.tolist(), seed)[:count]
            pixels = torch.from_numpy(arrays[f"{role}_images"][order]).unsqueeze(1)
            sets[role] = LabeledImages(
                normalize(pixels, [MEAN], [STD]),
                torch.from_numpy(labels[order]),
                tuple(names[index] for index in order),
            )
    return Split(**sets)


# Images in memory ---------------------------------------------------------------------------------


def tensor_split(
    images: Tensor,
    labels: Tensor,
    calibration: int = 100,
    selection: int = 100,
    test: int = 200,
    seed: int = 0,
) -> Split:
    """Return three disjoint sets of images that lie in memory, each class in proportion.

    In `stratified_order` the first images calibrate, the next ones select, and the last ones test.

    Args:
        images: (n, channels, height, width) float32, as the model wants them.
        labels: (n,) int64.
        calibration: number of calibration images.
        selection: number of selection images.
        test: number of test images.
        seed: decides the order.

    Raises:
        InputError: if images and labels do not go together, a number is negative, or there are
            fewer images than asked for.
    """
    counts = {"calibration": calibration, "selection": selection, "test": test}
    _check_counts(counts)
    check_seed(seed)
    check_value("images", images, Tensor)
    check_value("labels", labels, Tensor)
    count = len(labels)
    names = tuple(map(str, range(count)))
    LabeledImages(images, labels, names)  # checks that they go together
    fit_counts(counts, count, ROLES)
    order = stratified_order(names, labels.tolist(), seed)
    parts = (order[:calibration], order[calibration:][:selection], order[count - test :])
    return Split(
        *(
            LabeledImages(images[part], labels[part], tuple(names[index] for index in part))
            for part in parts
        )
    )


# Images from folders ------------------------------------------------------------------------------

ROLES = ("calibration", "selection", "test")

LEAST = 2
"""Images that a number shrinks to at least: an interval and a contrast between images need two."""


def fit_counts(
    wanted: Mapping[str, int], available: int, explicit: Collection[str]
) -> dict[str, int]:
    """Return numbers of images whose sum is at most `available`.

    Numbers that are not `explicit` shrink in proportion, none below `LEAST` (or below what is
    wanted, if that is less). Numbers that fit already are returned as they are.

    Args:
        wanted: the number of images of each set.
        available: how many images there are.
        explicit: the sets whose number somebody has chosen; it is never changed.

    Raises:
        InputError: if there are fewer images than the explicit numbers and the least of the others.
    """
    fixed = {role: n if role in explicit else min(n, LEAST) for role, n in wanted.items()}
    missing = sum(fixed.values()) - available
    if missing > 0:
        raise InputError(
            f"{available} usable images, but {_request(fixed)} = {sum(fixed.values())} are asked "
            f"for; ask for {missing} fewer, or add images"
        )
    flexible = sum(wanted.values()) - sum(fixed.values())
    room = min(-missing, flexible)
    return {
        role: count + (wanted[role] - count) * room // max(flexible, 1)
        for role, count in fixed.items()
    }


def folder_split(
    folder: str | Path,
    test_folder: str | Path | None = None,
    *,
    preprocessing: Mapping[str, Any],
    class_count: int,
    calibration: int = 100,
    selection: int = 100,
    test: int = 200,
    seed: int = 0,
    explicit: Collection[str] = ROLES,
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Split:
    """Return images from one folder, or calibration and selection from one and test from another.

    The sets are decided on names and labels before any image is opened. In `stratified_order` the
    first images calibrate, the next ones select, and the last ones test (of `test_folder`, if
    given): so the test set does not change with the other two numbers, nor they with it.

    Args:
        folder: Class folders, or images with a `labels.csv`; see `list_images`.
        test_folder: Another such folder.
        preprocessing: As from `models.preprocessing`.
        class_count: Number of classes of the model; labels are below it.
        calibration: Number of calibration images.
        selection: Number of selection images.
        test: Number of test images.
        seed: Decides the order.
        explicit: The sets whose number is never changed; where a folder has fewer images than the
            other numbers ask for, those shrink (`fit_counts`) and a warning tells.
        skip_unreadable: Leave out images that cannot be decoded, as if they were not in the
            folder, and warn of their number.
        progress: Called with the number of images read so far and the number to read.

    Raises:
        InputError: if a folder cannot be used (see `list_images`), has fewer images than asked
            for, or an image cannot be decoded; or if an image occurs, under whatever name, in two
            of the three sets.
    """
    counts = {"calibration": calibration, "selection": selection, "test": test}
    _check_counts(counts)
    check_value("folder", folder, Path)
    check_seed(seed)
    pools = _list_pools(folder, test_folder, class_count)
    decode = decoder(preprocessing)
    decoded: dict[Path, _Decoded] = {}
    unreadable: set[Path] = set()
    while True:
        usable = {
            folder: [image for image in pool if image.path not in unreadable]
            for folder, pool in pools.items()
        }
        sets = _choose(usable, counts, explicit, seed)
        total = sum(map(len, sets.values()))
        missing = [image.path for images in sets.values() for image in images]
        missing = [path for path in missing if path not in decoded]
        if not missing:
            break
        stack = on_disk.full((len(missing), *preprocessing["input_size"]), 0, np.uint8)
        for done, path in enumerate(missing, start=1):
            try:
                pixels, content = decode(path)
                stack[done - 1] = pixels.numpy()
                decoded[path] = _Decoded(stack, done - 1, content)
            except InputError:
                if not skip_unreadable:
                    raise
                unreadable.add(path)
            if progress is not None:
                progress(total - len(missing) + done, total)
    fitted = {role: len(images) for role, images in sets.items()}
    if fitted != counts:
        warnings.warn(
            f"{' and '.join(f'{folder} has {len(pool)} images' for folder, pool in usable.items())}"
            f": {_request(fitted)} are taken instead of {_request(counts)}",
            stacklevel=2,
        )
    _check_contents(sets, decoded)
    if unreadable:
        warnings.warn(
            f"skipped {len(unreadable)} unreadable images, such as {readable(min(unreadable))}",
            stacklevel=2,
        )
    return Split(
        **{role: _labeled(images, decoded, preprocessing) for role, images in sets.items()}
    )


class _Decoded(NamedTuple):
    """Where the pixels of an image are, and the hash of its file."""

    stack: np.ndarray | DiskArray
    row: int
    content: str


def _check_counts(counts: Mapping[str, int]) -> None:
    for role, count in counts.items():
        least = 0 if role == "selection" else 1
        check_value(f"{role}_images", count, int)
        if count < least:
            raise InputError(
                f"{count} {role} images asked for; give a number that is at least {least}"
            )


def _list_pools(
    folder: str | Path, test_folder: str | Path | None, class_count: int
) -> dict[str, list[ImageFile]]:
    """Return each folder's images, under names that are different even across folders."""
    if test_folder is None:
        return {str(folder): list_images([folder], class_count)[0]}
    images, test_images = list_images([folder, test_folder], class_count)
    if {image.path for image in images} & {image.path for image in test_images}:
        raise InputError(
            f"calibration folder {folder} and test folder {test_folder} share files; give folders "
            "apart from each other, or one folder for all sets"
        )
    return {
        str(folder): [replace(image, name=f"calibration/{image.name}") for image in images],
        str(test_folder): [replace(image, name=f"test/{image.name}") for image in test_images],
    }


def _choose(
    pools: Mapping[str, Sequence[ImageFile]],
    counts: Mapping[str, int],
    explicit: Collection[str],
    seed: int,
) -> dict[str, list[ImageFile]]:
    roles = [ROLES] if len(pools) == 1 else [ROLES[:2], ROLES[2:]]
    fitted: dict[str, int] = {}
    ordered = []
    for (folder, pool), wanted in zip(pools.items(), roles, strict=True):
        try:
            fitted |= fit_counts({role: counts[role] for role in wanted}, len(pool), explicit)
        except InputError as error:
            raise InputError(f"{folder} has {error}") from error
        names, labels = [image.name for image in pool], [image.label for image in pool]
        ordered.append([pool[index] for index in stratified_order(names, labels, seed)])
    first, last = ordered[0], ordered[-1]
    start, end = fitted["calibration"], fitted["calibration"] + fitted["selection"]
    return {
        "calibration": first[:start],
        "selection": first[start:end],
        "test": last[len(last) - fitted["test"] :],
    }


def _request(counts: Mapping[str, int]) -> str:
    return " + ".join(f"{count} {role}" for role, count in counts.items())


def _check_contents(
    sets: Mapping[str, Sequence[ImageFile]], decoded: Mapping[Path, _Decoded]
) -> None:
    """Refuse the same file under two names in two sets, or in two classes."""
    owners: dict[str, tuple[str, ImageFile]] = {}
    for role, images in sets.items():
        for image in images:
            owner, twin = owners.setdefault(decoded[image.path].content, (role, image))
            if owner != role or twin.label != image.label:
                here, there = (
                    (f"class {twin.label}", f"class {image.label}")
                    if owner == role
                    else (owner, role)
                )
                raise InputError(
                    f"{readable(twin.path)} ({here}) and {readable(image.path)} ({there}) are the "
                    "same image; remove one"
                )


def _labeled(
    images: Sequence[ImageFile], decoded: Mapping[Path, _Decoded], preprocessing: Mapping[str, Any]
) -> LabeledImages:
    stack = on_disk.full((len(images), *preprocessing["input_size"]), 0, np.uint8)
    for row, image in enumerate(images):
        found = decoded[image.path]
        stack[row] = found.stack[found.row]
    values = torch.from_numpy(stack) if isinstance(stack, np.ndarray) else stack
    mean, std = (tuple(preprocessing[name]) for name in ("mean", "std"))
    return LabeledImages(
        Pixels(values, mean, std),
        torch.tensor([image.label for image in images], dtype=torch.int64),
        tuple(image.name for image in images),
    )
