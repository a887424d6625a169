import itertools
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, features
from torch import Tensor

from evolq import on_disk
from evolq.data import folders
from evolq.data.decoding import decoder
from evolq.data.folders import list_images
from evolq.data.images import (
    LEAST,
    ROLES,
    LabeledImages,
    Split,
    bundled_split,
    fit_counts,
    folder_split,
    stratified_order,
)
from evolq.data.models import load_model, preprocessing
from evolq.data.pixels import batches, normalize
from evolq.errors import InputError
from evolq.problem import Settings, prepare

SMALL = {
    "input_size": (3, 8, 8),
    "interpolation": "bicubic",
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.4),
    "crop_pct": 0.8,
    "crop_mode": "center",
}
GRAY = SMALL | {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.2,)}


def save_image(path: Path, seed: int, mode: str = "RGB") -> Path:
    """Write a 20 x 16 image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def class_folders(root: Path, classes: dict[str, int], first_seed: int = 0) -> Path:
    """Write a folder of noise images for each class, of the given number."""
    seeds = itertools.count(first_seed)
    for name, count in classes.items():
        for number in range(count):
            save_image(root / name / f"{number}.png", next(seeds))
    return root


def table(root: Path, text: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "labels.csv").write_text(text)
    return root


def small_split(folder: Path, test_folder: Path | None = None, **options) -> Split:
    """Return one image to calibrate, one to select and two to test, unless options say other."""
    defaults = {"calibration": 1, "selection": 1, "test": 2, "class_count": 2}
    return folder_split(folder, test_folder, preprocessing=SMALL, **(defaults | options))


def all_names(split: Split) -> list[str]:
    return [name for images in vars(split).values() for name in images.names]


def labeled(count: int, prefix: str = "") -> LabeledImages:
    names = tuple(f"{prefix}{number}" for number in range(count))
    return LabeledImages(torch.rand(count, 1, 2, 2), torch.arange(count), names)


# Sets of images -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        (torch.rand(2, 2, 2), torch.arange(2), ("a", "b")),
        (torch.rand(2, 1, 2, 2).double(), torch.arange(2), ("a", "b")),
        (torch.rand(2, 1, 2, 2), torch.arange(2).int(), ("a", "b")),
        (torch.rand(3, 1, 2, 2), torch.arange(2), ("a", "b")),
        (torch.rand(2, 1, 2, 2), torch.arange(3), ("a", "b")),
        (torch.rand(2, 1, 2, 2), torch.arange(2), ("a",)),
        (torch.rand(2, 1, 2, 2), torch.arange(2), ("a", "a")),
    ],
)
def test_images_that_do_not_fit_together_are_refused(images, labels, names):
    with pytest.raises(InputError):
        LabeledImages(images, labels, names)


def test_images_say_how_many_and_how_large_they_are():
    assert len(labeled(2)) == 2
    assert repr(labeled(2)) == "LabeledImages(2 images of 1x2x2)"


def test_fingerprint_covers_pixels_labels_and_order_but_not_names():
    images = labeled(3)
    same = LabeledImages(images.images.clone(), images.labels.clone(), ("x", "y", "z"))
    assert same.fingerprint == images.fingerprint
    other_pixel = images.images.clone()
    other_pixel[1, 0, 1, 1] += 1e-6
    others = [
        LabeledImages(other_pixel, images.labels, images.names),
        LabeledImages(images.images, images.labels.flip(0), images.names),
        LabeledImages(images.images.view(3, 1, 1, 4), images.labels, images.names),
        LabeledImages(images.images[[1, 0, 2]], images.labels[[1, 0, 2]], images.names),
        LabeledImages(images.images[:2], images.labels[:2], images.names[:2]),
    ]
    assert len({images.fingerprint, *(other.fingerprint for other in others)}) == 6


@pytest.mark.parametrize(("i", "j"), [(0, 1), (0, 2), (1, 2)])
def test_a_split_of_sets_that_share_a_name_is_refused(i, j):
    prefixes = ["a", "b", "c"]
    Split(*(labeled(2, prefix) for prefix in prefixes))
    prefixes[j] = prefixes[i]
    with pytest.raises(InputError, match="disjoint"):
        Split(*(labeled(2, prefix) for prefix in prefixes))


# The order ----------------------------------------------------------------------------------------


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    seed=st.integers(),
    cut=st.floats(0, 1),
)
@example(labels=[0] * 50 + [1] * 5, seed=0, cut=0.2)
def test_first_and_last_images_hold_one_share_of_all_classes(labels, seed, cut):
    names = [str(number) for number in range(len(labels))]
    order = stratified_order(names, labels, seed)
    assert sorted(order) == list(range(len(labels)))
    sizes = Counter(labels)
    for part in (order[: round(cut * len(labels))], order[round(cut * len(labels)) :]):
        found = Counter(labels[index] for index in part)
        least = max((found[label] - 1) / size for label, size in sizes.items())
        most = min((found[label] + 1) / size for label, size in sizes.items())
        assert least <= most


def test_equal_classes_take_turns():
    labels = [number // 20 for number in range(100)]
    order = stratified_order([str(number) for number in range(100)], labels, seed=0)
    rounds = [tuple(labels[index] for index in order[5 * k : 5 * k + 5]) for k in range(20)]
    assert all(sorted(classes) == [0, 1, 2, 3, 4] for classes in rounds)
    assert len(set(rounds)) > 10


def test_order_depends_on_the_seed_and_on_nothing_else():
    names = [f"image{number}" for number in range(6)]
    assert stratified_order(names, [0, 1] * 3, seed=0) == [4, 5, 3, 0, 1, 2]
    orders = {tuple(stratified_order(names, [0, 1] * 3, seed)) for seed in range(20)}
    assert len(orders) > 10


# Bundled images -----------------------------------------------------------------------------------


def test_bundled_sets_are_balanced_seeded_and_normalized():
    split = bundled_split(100, 50, 200, seed=3)
    assert [len(images) for images in vars(split).values()] == [100, 50, 200]
    for images in vars(split).values():
        assert images.images.shape[1:] == (1, 28, 28)
        assert images.labels.bincount().tolist() == [len(images) // 10] * 10
    assert abs(split.test.images.mean()) < 0.05
    assert abs(split.test.images.std() - 1) < 0.05
    again, other = bundled_split(100, 50, 200, seed=3), bundled_split(100, 50, 200, seed=4)
    assert split.test.fingerprint == again.test.fingerprint
    for role in vars(split):
        assert getattr(split, role).names != getattr(other, role).names


def test_number_of_one_bundled_set_does_not_change_the_others():
    small, large = bundled_split(20, 20, 40), bundled_split(60, 30, 40)
    assert small.test.names == large.test.names
    assert large.calibration.names[:20] == small.calibration.names


def test_all_bundled_images_can_be_had_and_are_different():
    split = bundled_split(1000, 1000, 10_000)
    assert len(set(all_names(split))) == 12_000
    training = {row.numpy().tobytes() for row in split.calibration.images}
    selection = {row.numpy().tobytes() for row in split.selection.images}
    assert not training & selection


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((1001, 10, 10), "1001 calibration images asked for.* has 1000.*ask for fewer"),
        ((10, 1001, 10), "1001 selection images asked for.* has 1000.*ask for fewer"),
        ((10, 10, 10_001), "10001 test images asked for.* has 10000.*ask for fewer"),
        ((0, 10, 10), "0 calibration images asked for.* at least 1"),
        ((10, -1, 10), "-1 selection images asked for.* at least 0"),
        ((10, 10, 0), "0 test images asked for.* at least 1"),
    ],
)
def test_impossible_numbers_of_bundled_images_are_refused(counts, message):
    with pytest.raises(InputError, match=message):
        bundled_split(*counts)


# Shapes of folders --------------------------------------------------------------------------------


def labels_of(folder: Path, class_count: int) -> dict[str, int]:
    return {image.name: image.label for image in list_images([folder], class_count)[0]}


def test_synset_folders_are_in_the_order_of_imagenet(tmp_path):
    synsets = {"n01443537": 1, "n01440764": 0, "n15075141": 999, "n02123045": 281}
    class_folders(tmp_path, dict.fromkeys(synsets, 1))
    assert labels_of(tmp_path, 1000) == {f"{name}/0.png": k for name, k in synsets.items()}


def test_synset_folders_of_a_model_of_their_number_are_in_sorted_order(tmp_path):
    class_folders(tmp_path, {"n02123045": 1, "n01440764": 1})
    assert labels_of(tmp_path, 2) == {"n01440764/0.png": 0, "n02123045/0.png": 1}


def test_named_folders_are_in_sorted_order(tmp_path):
    class_folders(tmp_path, {"zebra": 1, "ant": 2})
    (tmp_path / ".thumbnails").mkdir()
    assert labels_of(tmp_path, 2) == {"ant/0.png": 0, "ant/1.png": 0, "zebra/0.png": 1}


def test_folders_named_by_numbers_are_labels(tmp_path):
    class_folders(tmp_path, {"10": 1, "9": 1, "002": 1})
    assert labels_of(tmp_path, 11) == {"10/0.png": 10, "9/0.png": 9, "002/0.png": 2}
    with pytest.raises(InputError, match=r"folder '10' is out of range.*10 classes"):
        list_images([tmp_path], 10)


@pytest.mark.parametrize("class_count", [3, 1000])
def test_folders_whose_order_is_unknown_are_refused(tmp_path, class_count):
    class_folders(tmp_path, {"n01440764": 1, "dog": 1})
    with pytest.raises(InputError, match=f"2 class folders.*dog.*{class_count} classes"):
        list_images([tmp_path], class_count)


def test_class_folders_are_labeled_over_both_folders_together(tmp_path):
    class_folders(tmp_path / "train", {"a": 1, "c": 1})
    class_folders(tmp_path / "val", {"b": 1, "c": 1})
    first, second = list_images([tmp_path / "train", tmp_path / "val"], 3)
    assert [image.label for image in first] == [0, 2]
    assert [image.label for image in second] == [1, 2]


def test_only_image_files_count_at_any_depth(tmp_path):
    class_folders(tmp_path, {"a/deep/er": 1, "b": 1})
    (tmp_path / "a" / "notes.txt").write_text("no image")
    shutil.copy(tmp_path / "b" / "0.png", tmp_path / "b" / "._0.png")
    shutil.copy(tmp_path / "b" / "0.png", tmp_path / "b" / "1.PNG")
    assert labels_of(tmp_path, 2) == {"a/deep/er/0.png": 0, "b/0.png": 1, "b/1.PNG": 1}


def test_labels_file_names_images_and_classes(tmp_path):
    class_folders(tmp_path, {"images": 2})
    table(tmp_path, "\ufefflabel,author,file\n3,me,images/1.png\n 0 ,you,images/0.png\n")
    assert labels_of(tmp_path, 4) == {"images/0.png": 0, "images/1.png": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\n0.png,1\n", "no column file .*it has name, label"),
        ("file\n0.png\n", "no column label"),
        ("", "no column file and no column label .*it has none"),
        ("file,label\n", "no labeled images"),
        ("file,label\n0.png,cat\n", "line 2: label 'cat' of '0.png'.* 0 to 1"),
        ("file,label\n0.png,1.0\n", "label '1.0'"),
        (f"file,label\n0.png,{'1' * 5000}\n", "label '1+' of '0.png' is none"),
        ("file,label\n0.png,-1\n", "label '-1'"),
        ("file,label\n0.png,2\n", "label '2' of '0.png' is none of the model's 2 classes"),
        ("file,label\n0.png\n", "label ''"),
        ("file,label\n0.png,1\n9.png,1\n", "line 3: no file '9.png'"),
        ("file,label\n0.png,1\n./0.png,1\n", "line 3: './0.png' is listed twice"),
    ],
)
def test_faulty_labels_files_are_refused(tmp_path, text, message):
    save_image(tmp_path / "0.png", 0)
    with pytest.raises(InputError, match=message):
        list_images([table(tmp_path, text)], 2)


def test_labels_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_bytes("file,label\n0.png,1\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"cannot read .*labels\.csv .*UTF-8"):
        list_images([tmp_path], 2)


# What folders hold besides images -----------------------------------------------------------------


def make_odd(path: Path) -> None:
    try:
        save_image(path, seed=len(list(path.parent.parent.rglob("*"))))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")


def test_names_that_are_not_utf_8_are_read_and_shown(tmp_path):
    folder = tmp_path / os.fsdecode(b"a\xe9")
    first, second = (folder / os.fsdecode(name) for name in (b"caf\xe9.png", b"caf\xea.png"))
    make_odd(first)
    make_odd(second)
    class_folders(tmp_path, {"b": 2}, first_seed=7)
    split = small_split(tmp_path, calibration=2, selection=0, test=2)
    assert set(all_names(split)) == {
        r"a\xe9/caf\xe9.png", r"a\xe9/caf\xea.png", "b/0.png", "b/1.png"
    }  # fmt: skip
    first.write_bytes(b"rubbish")
    with pytest.raises(InputError, match=r"cannot read image .*a\\xe9/caf\\xe9\.png "):
        small_split(tmp_path, calibration=2, selection=0, test=2)


def test_labels_files_may_name_files_that_are_not_utf_8(tmp_path):
    make_odd(tmp_path / os.fsdecode(b"\xff.png"))
    save_image(tmp_path / "0.png", 0)
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff.png,1\n0.png,0\n")
    assert labels_of(tmp_path, 2) == {r"\xff.png": 1, "0.png": 0}


def test_links_to_what_is_there_lead_to_nothing_new(tmp_path, recwarn):
    class_folders(tmp_path, {"a": 3, "b": 3, "a/deep": 1})
    expected = labels_of(tmp_path, 2)
    assert len(expected) == 7
    for link, target in (
        ("a/+", "deep"),  # in front of the real folder, which keeps its own name
        ("a/up", ".."),
        ("a/self", "."),
        ("a/deep/up", ".."),
        ("b/out", "../.."),
        ("b/far", "/"),
        ("root", "."),
    ):
        (tmp_path / link).symlink_to(target)
    assert labels_of(tmp_path, 2) == expected
    assert not recwarn


def test_linked_folders_and_files_count_once_under_their_own_names(tmp_path):
    class_folders(tmp_path / "store", {"x": 2})
    class_folders(tmp_path / "data", {"a": 1, "b": 1})
    (tmp_path / "data" / "b" / "c").symlink_to(tmp_path / "store" / "x")
    (tmp_path / "data" / "b" / "d").symlink_to(tmp_path / "store" / "x")
    (tmp_path / "data" / "a" / "+.png").symlink_to("0.png")
    (tmp_path / "data" / "a" / "x.png").symlink_to(tmp_path / "store" / "x.png")  # to nowhere
    (tmp_path / "data" / "a" / "y.png").symlink_to(tmp_path / "store" / "x.png")
    assert labels_of(tmp_path / "data", 2) == {
        "a/0.png": 0, "a/x.png": 0, "a/y.png": 0, "b/0.png": 1, "b/c/0.png": 1, "b/c/1.png": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("link", "target", "other"),
    [("a/b", "../b", "a/b/0.png"), ("a/z.png", "../b/0.png", "a/z.png"), ("c", "b", "c/0.png")],
)
def test_files_with_two_labels_are_refused_with_both_names(tmp_path, link, target, other):
    class_folders(tmp_path, {"a": 1, "b": 1})
    (tmp_path / link).symlink_to(target)
    with pytest.raises(InputError, match=r"one file") as refused:
        list_images([tmp_path], 3 if link == "c" else 2)
    assert "'b/0.png' (label 1)" in str(refused.value)
    assert f"{other!r} (label {2 if link == 'c' else 0})" in str(refused.value)


def test_a_labels_file_that_gives_one_file_two_labels_is_refused(tmp_path):
    save_image(tmp_path / "0.png", 0)
    (tmp_path / "1.png").symlink_to("0.png")
    table(tmp_path, "file,label\n0.png,0\n1.png,1\n")
    with pytest.raises(InputError, match=r"'0\.png' \(label 0\) and '1\.png' \(label 1\)"):
        list_images([tmp_path], 2)


def test_hidden_folders_are_skipped_at_any_depth(tmp_path):
    class_folders(tmp_path, {"a": 1, "b": 1, "a/.ipynb_checkpoints": 1})
    assert labels_of(tmp_path, 2) == {"a/0.png": 0, "b/0.png": 1}


def test_what_is_no_file_is_left_out_and_told(tmp_path):
    class_folders(tmp_path, {"a": 1, "b": 1})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "b" / "circle").symlink_to("circle")
    told = r"left out in .*: links in a circle \(1\), pipes or devices \(2\)$"
    with pytest.warns(UserWarning, match=told):
        assert labels_of(tmp_path, 2) == {"a/0.png": 0, "b/0.png": 1}


@pytest.mark.parametrize("text", ["pipe.png", "circle.png"])
def test_a_labels_file_that_names_no_file_is_refused(tmp_path, text):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    with pytest.raises(InputError, match=f"no file '{text}'"):
        list_images([table(tmp_path, f"file,label\n{text},0\n")], 2)


def test_a_labels_file_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(InputError, match=r"cannot read .*it is no file"):
        list_images([tmp_path], 2)


def test_a_closed_folder_is_refused(tmp_path, monkeypatch):
    class_folders(tmp_path, {"a": 1, "b": 1})

    def closed(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(InputError, match=r"cannot read folder .*a \(Permission denied\)"):
        list_images([tmp_path], 2)


def test_images_that_pillow_does_not_read_here_are_counted(tmp_path, monkeypatch):
    class_folders(tmp_path, {"a": 1, "b": 1})
    for name in ("a/1.avif", "b/1.AVIF", "b/1.heic", "b/notes.txt"):
        (tmp_path / name).write_bytes(b"rubbish")
    monkeypatch.setattr(features, "get_supported", lambda: ["webp"])
    told = r"\.avif, which this Pillow does not read \(2\), \.heic, which .* \(1\)$"
    with pytest.warns(UserWarning, match=told):
        assert labels_of(tmp_path, 2) == {"a/0.png": 0, "b/0.png": 1}
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "b" / "0.png").unlink()
    with pytest.raises(InputError, match=r"no labeled images in .*\.heic, which .* \(1\)"):
        list_images([tmp_path], 1)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        list_images([tmp_path / "nowhere"], 2)
    with pytest.raises(InputError, match="no labeled images"):
        list_images([tmp_path], 2)
    flat = save_image(tmp_path / "0.png", 0)
    with pytest.raises(InputError, match=r"no labeled images.*labels\.csv"):
        list_images([tmp_path], 2)
    with pytest.raises(InputError, match="is not a folder"):
        list_images([flat], 2)


# Splits of folders --------------------------------------------------------------------------------


def test_one_folder_gives_three_disjoint_stratified_sets(tmp_path):
    class_folders(tmp_path, {"a": 6, "b": 6})
    split = small_split(tmp_path, calibration=4, selection=4, test=4)
    assert len(set(all_names(split))) == 12
    for images in vars(split).values():
        assert images.images.shape == (4, 3, 8, 8)
        assert images.labels.bincount().tolist() == [2, 2]
        assert [int(name[0] == "b") for name in images.names] == images.labels.tolist()


def test_split_depends_on_the_seed_only(tmp_path):
    class_folders(tmp_path, {"a": 6, "b": 6})
    splits = [small_split(tmp_path, seed=seed) for seed in (0, 0, 1)]
    assert all_names(splits[0]) == all_names(splits[1]) != all_names(splits[2])
    assert splits[0].test.fingerprint == splits[1].test.fingerprint


def test_number_of_one_set_does_not_change_calibration_and_test(tmp_path):
    class_folders(tmp_path, {"a": 6, "b": 6})
    small = small_split(tmp_path, calibration=2, selection=0, test=3)
    large = small_split(tmp_path, calibration=3, selection=4, test=5)
    assert large.calibration.names[:2] == small.calibration.names
    assert large.test.names[-3:] == small.test.names


def test_two_folders_give_their_own_sets(tmp_path):
    class_folders(tmp_path / "train", {"a": 2, "b": 2})
    class_folders(tmp_path / "val", {"a": 1, "b": 1}, first_seed=50)
    split = small_split(tmp_path / "train", tmp_path / "val", calibration=2, selection=2)
    assert split.calibration.labels.bincount().tolist() == [1, 1]
    trained = set(split.calibration.names + split.selection.names)
    assert trained == {f"calibration/{c}/{number}.png" for c in "ab" for number in range(2)}
    assert set(split.test.names) == {"test/a/0.png", "test/b/0.png"}


def test_too_few_images_are_refused_with_the_options_to_change(tmp_path):
    class_folders(tmp_path / "train", {"a": 2, "b": 1})
    class_folders(tmp_path / "val", {"a": 1, "b": 2}, first_seed=50)
    with pytest.raises(InputError, match=r"has 3 usable images, but 1 .* = 4 .*ask for 1 fewer"):
        small_split(tmp_path / "train")
    with pytest.raises(InputError, match=r"train has 3 .*3 calibration.* = 4 "):
        small_split(tmp_path / "train", tmp_path / "val", calibration=3)
    with pytest.raises(InputError, match=r"val has 3 .*but 4 test = 4 .*ask for 1 fewer"):
        small_split(tmp_path / "train", tmp_path / "val", test=4)
    with pytest.raises(InputError, match=r"0 test images asked for.* at least 1"):
        small_split(tmp_path / "train", test=0)


def test_folders_that_share_files_are_refused(tmp_path):
    class_folders(tmp_path / "train", {"a": 3, "b": 3})
    (tmp_path / "link").symlink_to(tmp_path / "train")
    for twin in (tmp_path / "train", tmp_path / "train" / ".." / "train", tmp_path / "link"):
        with pytest.raises(InputError, match="share files"):
            small_split(tmp_path / "train", twin)


def test_the_same_image_in_two_sets_is_refused_under_any_name(tmp_path):
    class_folders(tmp_path / "train", {"a": 1, "b": 1})
    class_folders(tmp_path / "val", {"a": 1, "b": 1}, first_seed=50)
    shutil.copy(tmp_path / "train" / "a" / "0.png", tmp_path / "val" / "b" / "0.png")
    with pytest.raises(InputError, match=r"a.0\.png.*b.0\.png \(test\) are the same image"):
        small_split(tmp_path / "train", tmp_path / "val")
    within = class_folders(tmp_path / "within", {"a": 1, "b": 1}, first_seed=90)
    shutil.copy(within / "a" / "0.png", within / "b" / "0.png")
    with pytest.raises(InputError, match="are the same image"):  # of two classes
        small_split(tmp_path / "train", within)


@given(
    wanted=st.lists(st.integers(0, 3000), min_size=1, max_size=3),
    available=st.integers(0, 3000),
    explicit=st.sets(st.sampled_from("abc")),
)
@example(wanted=[200, 200, 2000], available=1000, explicit=set())
@example(wanted=[2, 3], available=4, explicit=set())
def test_numbers_shrink_in_proportion_to_what_is_there(wanted, available, explicit):
    counts = dict(zip("abc", wanted, strict=False))
    least = {role: n if role in explicit else min(n, LEAST) for role, n in counts.items()}
    if sum(least.values()) > available:
        with pytest.raises(InputError, match=f"^{available} usable images, but .* fewer"):
            fit_counts(counts, available, explicit)
        return
    fitted = fit_counts(counts, available, explicit)
    assert list(fitted) == list(counts)
    assert all(least[role] <= n <= counts[role] for role, n in fitted.items())
    if sum(wanted) <= available:
        assert fitted == counts
        return
    # Of whole numbers rounded down, each loses less than one.
    assert available - len(counts) < sum(fitted.values()) <= available
    free = [role for role in counts if role not in explicit and counts[role] > LEAST]
    shares = [(fitted[role] - LEAST) / (counts[role] - LEAST) for role in free]
    allowed = [1 / (counts[role] - LEAST) for role in free]
    assert max(shares) - min(shares) <= max(allowed)


def test_numbers_that_nobody_chose_adapt_to_a_folder_and_are_told(tmp_path):
    class_folders(tmp_path, {"a": 6, "b": 6})
    options = {"calibration": 20, "selection": 20, "test": 40, "explicit": ()}
    told = "has 12 images: 3 calibration . 3 selection . 5 test are taken instead of 20 "
    with pytest.warns(UserWarning, match=told):
        split = small_split(tmp_path, **options)
    assert [len(images) for images in vars(split).values()] == [3, 3, 5]
    assert all_names(split) == all_names(small_split(tmp_path, calibration=3, selection=3, test=5))
    with pytest.warns(UserWarning, match="6 test are taken instead"):
        split = small_split(tmp_path, **options | {"test": 6, "explicit": ("test",)})
    assert [len(images) for images in vars(split).values()] == [3, 3, 6]
    with pytest.raises(
        InputError, match=r"12 usable .* 2 selection . 40 test = 44 .*ask for 32 fewer"
    ):
        small_split(tmp_path, **options | {"explicit": ("test",)})


def test_each_of_two_folders_fits_its_own_numbers(tmp_path):
    class_folders(tmp_path / "train", {"a": 3, "b": 3})
    class_folders(tmp_path / "val", {"a": 1, "b": 2}, first_seed=50)
    with pytest.warns(UserWarning, match="train has 6 images and .*val has 3 images: 3 cal"):
        split = small_split(
            tmp_path / "train", tmp_path / "val", calibration=9, selection=9, test=9, explicit=()
        )
    assert [len(images) for images in vars(split).values()] == [3, 3, 3]


def test_a_problem_says_how_many_images_were_taken(tmp_path):
    class_folders(tmp_path, {"0": 8, "1": 8})
    wanted = Settings("fashion_resnet", images=tmp_path, test_images=80, calibration_images=8)
    with pytest.raises(InputError, match="has 16 usable images, but 8 calibration"):
        prepare(wanted)
    with pytest.warns(UserWarning, match="8 calibration . 4 selection . 3 test are taken"):
        problem = prepare(wanted, explicit={"calibration"})
    for found in (vars(problem.settings), problem.provenance["configuration"]):
        assert [found[f"{role}_images"] for role in ROLES] == [8, 4, 3]
    again = prepare(problem.settings)  # what the provenance says repeats the problem
    assert again.provenance["hashes"] == problem.provenance["hashes"]


def test_unreadable_images_shrink_numbers_too(tmp_path):
    class_folders(tmp_path, {"a": 6, "b": 6})
    spoil(tmp_path / "a" / "0.png", "truncated")
    options = {"calibration": 4, "selection": 4, "test": 4, "explicit": ()}
    with (
        pytest.warns(UserWarning, match="has 11 images: 3 calibration . 3 selection . 3 test are"),
        pytest.warns(UserWarning, match="skipped 1 unreadable"),
    ):
        split = small_split(tmp_path, skip_unreadable=True, **options)
    assert len(set(all_names(split))) == 9


def test_images_that_are_not_chosen_are_not_opened(tmp_path):
    class_folders(tmp_path, {"a": 5, "b": 5})
    chosen = all_names(small_split(tmp_path))
    for path in tmp_path.glob("*/*.png"):
        if path.relative_to(tmp_path).as_posix() not in chosen:
            path.write_bytes(b"rubbish")
    assert all_names(small_split(tmp_path)) == chosen


# Unreadable images --------------------------------------------------------------------------------


def spoil(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "broken link":
        path.unlink()
        path.symlink_to("nowhere.png")


@pytest.mark.parametrize("how", ["truncated", "empty", "broken link"])
def test_an_unreadable_image_is_named_or_skipped(tmp_path, how):
    class_folders(tmp_path / "images", {"a": 5, "b": 5})
    options = {"calibration": 2, "selection": 2, "test": 2}
    names = all_names(small_split(tmp_path / "images", **options))
    for name in names[1:4:2]:
        spoil(tmp_path / "images" / name, how)
    with pytest.raises(InputError, match=re.escape(names[1]) + ".*skip_unreadable"):
        small_split(tmp_path / "images", **options)
    with pytest.warns(UserWarning, match="skipped 2 unreadable images"):
        skipped = small_split(tmp_path / "images", skip_unreadable=True, **options)
    assert len(all_names(skipped)) == 6
    for name in names[1:4:2]:
        (tmp_path / "images" / name).unlink()
    without = small_split(tmp_path / "images", **options)
    assert all_names(skipped) == all_names(without)
    assert skipped.test.fingerprint == without.test.fingerprint


def test_skipping_cannot_replace_images_that_are_not_there(tmp_path):
    class_folders(tmp_path, {"a": 2, "b": 2})
    spoil(tmp_path / "a" / "0.png", "truncated")
    with pytest.raises(InputError, match="has 3 usable images"):
        small_split(tmp_path, skip_unreadable=True)


# Decoding -----------------------------------------------------------------------------------------


def only(path: Path, config=SMALL) -> Tensor:
    return decoder(config)(path).pixels


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_pixels_equal_timms_own_preprocessing(tmp_path, crop_mode):
    config = SMALL | {"crop_mode": crop_mode, "input_size": (3, 9, 8)}
    path = save_image(tmp_path / "0.png", 0)
    expected = timm.data.create_transform(**config)(Image.open(path))
    found = normalize(only(path, config)[None], config["mean"], config["std"])
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_odd_modes_become_color_or_grey(tmp_path, mode):
    path = save_image(tmp_path / ("0.jpg" if mode == "CMYK" else "0.png"), 0, mode)
    shutil.copy(path, twin := tmp_path / f"twin{path.suffix}")
    image = Image.open(path)
    assert image.mode == mode
    image.convert("RGB").save(tmp_path / "rgb.png")
    image.convert("L").save(tmp_path / "gray.png")
    assert torch.equal(only(path), only(tmp_path / "rgb.png"))
    assert torch.equal(only(twin, GRAY), only(tmp_path / "gray.png", GRAY))


def test_transparent_palettes_need_no_warning(tmp_path, recwarn):
    image = Image.open(save_image(tmp_path / "0.png", 0)).convert("P")
    image.save(tmp_path / "1.png", transparency=bytes(range(256)))
    image.convert("RGB").save(tmp_path / "rgb.png")
    assert torch.equal(only(tmp_path / "1.png"), only(tmp_path / "rgb.png"))
    assert not recwarn


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    gray = np.arange(320, dtype=np.uint16).reshape(16, 20) * 200
    Image.fromarray(gray).save(tmp_path / "16.png")
    Image.fromarray((gray // 256).astype(np.uint8)).save(tmp_path / "8.png")
    assert torch.equal(only(tmp_path / "16.png", GRAY), only(tmp_path / "8.png", GRAY))


@pytest.mark.parametrize("kind", ["little.tiff", "big.tiff", "16.png", "16.pgm"])
def test_sixteen_bits_are_the_same_in_every_order_and_format(tmp_path, kind):
    gray = np.arange(320, dtype=np.uint16).reshape(16, 20) * 200
    stored = gray.astype(">u2" if kind == "big.tiff" else "<u2")
    if kind.endswith("pgm"):
        (tmp_path / kind).write_bytes(b"P5 20 16 65535\n" + gray.astype(">u2").tobytes())
    else:
        Image.fromarray(stored).save(tmp_path / kind)
    if kind == "big.tiff":
        assert (tmp_path / kind).read_bytes()[:2] == b"MM"
    Image.fromarray((gray // 256).astype(np.uint8)).save(tmp_path / "8.png")
    assert torch.equal(only(tmp_path / kind, GRAY), only(tmp_path / "8.png", GRAY))


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "jp2", "j2k", "webp"])
def test_less_usual_formats_are_read(tmp_path, suffix):
    codec = folders.OPTIONAL_SUFFIXES.get(f".{suffix}")
    if codec and not features.check(codec):
        pytest.skip(f"this Pillow was built without {codec}")
    class_folders(tmp_path, {"a": 1})
    (tmp_path / "b").mkdir()
    image = Image.open(tmp_path / "a" / "0.png")
    image.save(path := tmp_path / "b" / f"1.{suffix}")
    assert labels_of(tmp_path, 2) == {"a/0.png": 0, f"b/1.{suffix}": 1}
    difference = only(path).float() - only(tmp_path / "a" / "0.png").float()
    # Noise is hard to compress with losses; other noise differs by 85 on average.
    assert difference.abs().mean() < 30


def test_pixels_without_a_known_range_are_refused(tmp_path):
    Image.fromarray(np.zeros((16, 20), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(InputError, match=r"float\.tiff .*mode F have no known range"):
        only(tmp_path / "float.tiff")


def test_models_of_other_channels_are_refused(tmp_path):
    with pytest.raises(InputError, match="images of 4 channels"):
        only(save_image(tmp_path / "0.png", 0), SMALL | {"input_size": (4, 8, 8)})


def test_progress_counts_to_the_number_of_images(tmp_path):
    class_folders(tmp_path / "images", {"a": 4, "b": 4})
    names = all_names(small_split(tmp_path / "images"))
    spoil(tmp_path / "images" / names[2], "truncated")
    calls: list[tuple[int, int]] = []
    with pytest.warns(UserWarning, match="skipped 1"):
        small_split(
            tmp_path / "images", skip_unreadable=True, progress=lambda *call: calls.append(call)
        )
    assert calls[:4] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert calls[-1] == (4, 4)


# Real images --------------------------------------------------------------------------------------


def deit(evolq_data: Path) -> torch.nn.Module:
    return load_model("deit_tiny_patch16_224", evolq_data / "deit_tiny_patch16_224.safetensors")


def real_accuracy(model: torch.nn.Module, evolq_data: Path, test: int) -> float:
    split = folder_split(
        evolq_data / "imagenet_cc",
        preprocessing=preprocessing(model),
        class_count=1000,
        calibration=1,
        selection=0,
        test=test,
    )
    return accuracy(model, split.test)


def accuracy(model: torch.nn.Module, images: LabeledImages) -> float:
    with torch.inference_mode():
        pairs = zip(batches(images.images, 50), images.labels.split(50), strict=True)
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs) / len(images)


@pytest.mark.slow
def test_deit_tiny_on_a_hundred_images(evolq_data):
    assert real_accuracy(deit(evolq_data), evolq_data, 100) == pytest.approx(0.867, abs=0.06)


@pytest.mark.slow
def test_deit_tiny_reaches_its_accuracy(evolq_data):
    assert real_accuracy(deit(evolq_data), evolq_data, 999) == pytest.approx(0.867, abs=0.003)


# Bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1 / 64, 0])
def test_images_are_bytes_and_normalized_as_all_at_once(tmp_path, monkeypatch, share):
    monkeypatch.setattr(on_disk, "SHARE", share)
    class_folders(tmp_path, {"a": 6, "b": 6})
    images = small_split(tmp_path).test.images
    assert isinstance(images.values, on_disk.DiskArray) == (share == 0)
    values = torch.as_tensor(images.values[:])
    assert values.dtype == torch.uint8
    shift, scale = (torch.tensor(v).view(1, -1, 1, 1) for v in (images.mean, images.std))
    whole = values.to(torch.float32).div_(255).sub_(shift).div_(scale)
    assert torch.equal(images[:], whole)
    assert images.shape == whole.shape
    parts = [batch for size in (1, 2, 5) for batch in batches(images, size)]
    assert torch.equal(torch.cat(parts), whole.repeat(3, 1, 1, 1))
    assert torch.equal(images.to("cpu")[1:2], whole[1:2])
    other = LabeledImages(
        whole, torch.zeros(len(whole), dtype=torch.int64), tuple("abcdef"[: len(whole)])
    )
    same = LabeledImages(images, other.labels, other.names)
    assert same.fingerprint == other.fingerprint
