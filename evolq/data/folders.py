"""Folders of labeled images: which files there are, and which class each belongs to.

A folder has one of two shapes: one folder of images per class, or a `labels.csv` with columns
`file` (relative to the csv file) and `label` (0-based class index) beside images that lie anywhere.
Links are followed; each real folder and each real file counts once.
"""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import PIL.features
from timm.data import ImageNetInfo, infer_imagenet_subset

from evolq.errors import InputError

LABELS_FILE = "labels.csv"
IMAGE_SUFFIXES = frozenset(
    (
        *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"),
        *(".pgm", ".png", ".ppm", ".tif", ".tiff"),
    )
)
# What Pillow must have been built with (`PIL.features`); no Pillow so far has the last two.
OPTIONAL_SUFFIXES = {
    ".webp": "webp",
    ".avif": "avif",
    ".jp2": "jpg_2000",
    ".j2k": "jpg_2000",
    ".heic": "heif",
    ".heif": "heif",
    ".jxl": "jxl",
}
SHAPES = f"wanted one folder of images per class, or images with a {LABELS_FILE} (file,label)"


@dataclass(frozen=True, order=True)
class ImageFile:
    """An image that has not been read: where it lies, its name within its folder, its class.

    The name is text that can be written anywhere, also where the path is not UTF-8.
    """

    path: Path
    name: str
    label: int


def readable(path: str | Path) -> str:
    r"""Return a path as text that can be written anywhere: bytes that are not UTF-8 as `\xff`."""
    return os.fsencode(Path(path).as_posix()).decode("utf-8", "backslashreplace")


def list_images(folders: Sequence[str | Path], class_count: int) -> list[list[ImageFile]]:
    """Return the labeled images of each folder, in name order, without opening any of them.

    Class folders are labeled over all `folders` together: by timm's class order if all are named
    by ImageNet synsets (n01440764) and the model knows an ImageNet class list of `class_count`
    classes; by the number if all names are numbers; otherwise by their place in sorted order, for
    which every class must have its folder. A link to a folder that contains it is not followed.
    One warning counts what was left out: images in formats that this Pillow does not read, and
    entries that are no files (pipes, devices, links in a circle).

    Raises:
        InputError: for a missing, empty or closed folder, a class folder or a label that the model
            has no class for, a file that has two labels, and a `labels.csv` that lacks a column,
            lists a file twice or one that is not there.
    """
    left_out: Counter[str] = Counter()
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
            listing = list(_images_in_class_folders(root, class_folders[root], labels, left_out))
        else:
            listing = list(_images_in_csv(root / LABELS_FILE, class_count))
        if not listing:
            found = f", left out: {_listed(left_out)}" if left_out else ""
            raise InputError(f"no labeled images in {root}{found}; {SHAPES}")
        listings.append(sorted(_once(listing), key=lambda image: image.name))
    if left_out:
        warnings.warn(
            f"left out in {' and '.join(map(readable, roots))}: {_listed(left_out)}", stacklevel=2
        )
    return listings


def _existing_folder(folder: Path) -> Path:
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"image folder {folder} {found}; {SHAPES}")
    return folder.resolve()


def _once(listing: Iterable[ImageFile]) -> list[ImageFile]:
    """Return each real file once, under the first of its names; two labels are refused."""
    found: dict[Path, ImageFile] = {}
    real_folder = cache(Path.resolve)
    ordered = sorted((image.path.is_symlink(), image.name, image) for image in listing)
    for is_link, _, image in ordered:  # real files first
        real = real_folder(image.path.parent) / image.path.name
        if is_link and image.path.exists():  # links to nowhere are told when they are opened
            real = image.path.resolve()
        twin = found.setdefault(real, image)
        if twin.label != image.label:
            raise InputError(
                f"{twin.name!r} (label {twin.label}) and {image.name!r} (label {image.label}) are "
                "one file; keep one of the two"
            )
    return list(found.values())


def _listed(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{what} ({count})" for what, count in sorted(left_out.items()))


# Class folders ------------------------------------------------------------------------------------


def _class_folders(root: Path) -> list[str]:
    above = {root, *root.parents}
    return sorted(
        entry.name
        for entry in root.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.resolve() not in above
    )


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
    root: Path, class_folders: Iterable[str], labels: Mapping[str, int], left_out: Counter[str]
) -> Iterator[ImageFile]:
    codecs = PIL.features.get_supported()
    for class_folder in class_folders:
        for entry in _entries_below(root, class_folder, left_out):
            path = Path(entry.path)
            suffix = path.suffix.lower()
            if suffix not in IMAGE_SUFFIXES and suffix not in OPTIONAL_SUFFIXES:
                continue
            if not _may_be_file(entry):
                left_out["pipes or devices"] += 1
            elif suffix not in IMAGE_SUFFIXES and OPTIONAL_SUFFIXES[suffix] not in codecs:
                left_out[f"{suffix}, which this Pillow does not read"] += 1
            else:
                yield ImageFile(path, readable(path.relative_to(root)), labels[class_folder])


def _entries_below(
    root: Path, class_folder: str, left_out: Counter[str]
) -> Iterator[os.DirEntry[str]]:
    """Yield all that is no folder; each real folder is read once, under its own name if it can be.

    Hidden entries are skipped: `._photo.jpg` is what macOS leaves on foreign disks,
    `.ipynb_checkpoints` holds copies.
    """
    start = (root / class_folder).resolve()
    seen = {root, *root.parents, *start.parents}
    folders = [str(root / class_folder)]
    links: list[str] = []
    while folders or links:
        folder = (folders or links).pop()
        real = Path(folder).resolve()
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            raise InputError(
                f"cannot read folder {readable(folder)} ({error.strerror}); make it readable or "
                "remove it"
            ) from error
        for entry in ordered:
            if entry.name.startswith("."):
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link in a circle
                left_out["links in a circle"] += 1
                continue
            if not is_folder:
                yield entry
            else:
                (links if entry.is_symlink() else folders).append(entry.path)


def _may_be_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file; a link to nowhere is one that cannot be read."""
    return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())


# labels.csv ---------------------------------------------------------------------------------------


def _images_in_csv(table: Path, class_count: int) -> Iterator[ImageFile]:
    seen = set()
    for line, name, label in _rows(table):
        where = f"{table}, line {line}"
        known = label.isascii() and label.isdecimal() and len(label) < 20  # int() has a limit
        if not (known and int(label) < class_count):
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
        yield ImageFile(path, readable(name), int(label))


def _rows(table: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, file and label; the label as it is written, without spaces around it."""
    try:
        if not table.is_file():
            raise OSError("it is no file")
        content = table.read_bytes()
        if b"\0" in content:
            raise OSError("it is no UTF-8 text")
        # Excel begins with a mark; names of files need not be UTF-8.
        text = content.decode("utf-8-sig", "surrogateescape")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        missing = {"file", "label"} - set(reader.fieldnames or ())
        if missing:
            raise InputError(
                f"{table} has no column {' and no column '.join(sorted(missing))} (it has "
                f"{', '.join(reader.fieldnames or ()) or 'none'}); wanted file,label"
            )
        for row in reader:
            yield reader.line_num, (row["file"] or "").strip(), (row["label"] or "").strip()
    except (OSError, csv.Error) as error:
        raise InputError(f"cannot read {table} ({error}); wanted UTF-8 text: file,label") from error
