"""Fixtures of all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("patient", deadline=None)  # how busy the machine is proves nothing
settings.load_profile("patient")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores already
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # and so do notebooks and other processes of theirs


@pytest.fixture(scope="session")
def evolq_data() -> Path:
    """Return the folder of real data (ImageNet images and weights) that EVOLQ_DATA names."""
    folder = os.environ.get("EVOLQ_DATA")
    if not folder:
        pytest.skip("EVOLQ_DATA is not set; it names the folder of real images and weights")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def _own_image_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the decoded images of tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOLQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
