"""Folders of labeled images: which files there are, and which class each belongs to.

A folder has one of two shapes: one folder of images per class, or a `labels.csv` with columns
`file` (relative to the csv file) and `label` (0-based class index) beside images that lie anywhere.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from timm.data import ImageNetInfo, infer_imagenet_subset

from evolq.errors import InputError

LABELS_FILE = "labels.csv"
IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
SHAPES = f"wanted one folder of images per class, or images with a {LABELS_FILE} (file,label)"


@dataclass(frozen=True)
class ImageFile:
    """An image that has not been read: where it lies, its name within its folder, its class."""

    path: Path
    name: str
    label: int


def list_images(folders: Sequence[str | Path], class_count: int) -> list[list[ImageFile]]:
    """Return the labeled images of each folder, in name order, without opening any of them.

    Class folders are labeled over all `folders` together: by timm's class order if all are named
    by ImageNet synsets (n01440764) and the model knows an ImageNet class list of `class_count`
    classes; by the number if all names are numbers; otherwise by their place in sorted order, for
    which every class must have its folder.

    Raises:
        InputError: for a missing or empty folder, a class folder or a label that the model has no
            class for, and a `labels.csv` that lacks a column, lists a file twice or one that is
            not there.
    """
    roots = [_existing_folder(Path(folder)) for folder in folders]
    class_folders = {
        root: _class_folders(root) for root in roots if not (root / LABELS_FILE).exists()
    }
    labels = _label_class_folders(
        {name for names in class_folders.values() for name in names}, class_count, roots
    )
    listings = []
    for root in roots:
        if root in class_folders:
            listing = list(_images_in_class_folders(root, class_folders[root], labels))
        else:
            listing = list(_images_in_csv(root / LABELS_FILE, class_count))
        if not listing:
            raise InputError(f"no labeled images in {root}; {SHAPES}")
        listings.append(sorted(listing, key=lambda image: image.name))
    return listings


def _existing_folder(folder: Path) -> Path:
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"image folder {folder} {found}; {SHAPES}")
    return folder.resolve()


# Class folders ------------------------------------------------------------------------------------


def _class_folders(root: Path) -> list[str]:
    return [
        entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    ]


def _label_class_folders(
    names: Iterable[str], class_count: int, roots: Sequence[Path]
) -> dict[str, int]:
    ordered = sorted(names)
    if all(name.isdecimal() for name in ordered):
        for name in ordered:
            if int(name) >= class_count:
                raise InputError(
                    f"class folder {name!r} is out of range: the model has {class_count} classes, "
                    f"and folders named by numbers are labels 0 to {class_count - 1}"
                )
        return {name: int(name) for name in ordered}
    subset = infer_imagenet_subset({"num_classes": class_count})
    if subset is not None:
        labels = {synset: label for label, synset in enumerate(ImageNetInfo(subset).label_names())}
        if labels.keys() >= set(ordered):
            return {name: labels[name] for name in ordered}
    if len(ordered) != class_count:
        raise InputError(
            f"{len(ordered)} class folders ({', '.join(ordered[:3])}, ...) in "
            f"{' and '.join(map(str, roots))} for a model of {class_count} classes, so their order "
            f"says nothing; name them by ImageNet synset or class number, or add a {LABELS_FILE}"
        )
    return {name: label for label, name in enumerate(ordered)}


def _images_in_class_folders(
    root: Path, class_folders: Iterable[str], labels: Mapping[str, int]
) -> Iterator[ImageFile]:
    for class_folder in class_folders:
        for parent, _, files in os.walk(root / class_folder, followlinks=True):
            for file in files:
                path = Path(parent, file)
                # Hidden files such as ._photo.jpg are what macOS leaves on foreign disks.
                if path.suffix.lower() in IMAGE_SUFFIXES and not file.startswith("."):
                    name = path.relative_to(root).as_posix()
                    yield ImageFile(path, name, labels[class_folder])


# labels.csv ---------------------------------------------------------------------------------------


def _images_in_csv(table: Path, class_count: int) -> Iterator[ImageFile]:
    seen = set()
    for line, name, label in _rows(table):
        where = f"{table}, line {line}"
        if not (label.isascii() and label.isdecimal() and int(label) < class_count):
            raise InputError(
                f"{where}: label {label!r} of {name!r} is none of the model's {class_count} "
                f"classes; labels are whole numbers from 0 to {class_count - 1}"
            )
        path = table.parent / name
        if not path.is_file():
            raise InputError(f"{where}: no file {name!r} in {table.parent}; correct the list")
        if path in seen:
            raise InputError(f"{where}: {name!r} is listed twice; keep one of the two lines")
        seen.add(path)
        yield ImageFile(path, Path(name).as_posix(), int(label))


def _rows(table: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, file and label; the label as it is written, without spaces around it."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:  # Excel begins with a mark
            reader = csv.DictReader(lines)
            missing = {"file", "label"} - set(reader.fieldnames or ())
            if missing:
                raise InputError(
                    f"{table} has no column {' and no column '.join(sorted(missing))} (it has "
                    f"{', '.join(reader.fieldnames or ()) or 'none'}); wanted file,label"
                )
            for row in reader:
                yield reader.line_num, (row["file"] or "").strip(), (row["label"] or "").strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {table} ({error}); wanted UTF-8 text: file,label") from error
