"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def evolq_data() -> Path:
    """Return the folder of real data (ImageNet images and weights) that EVOLQ_DATA names."""
    folder = os.environ.get("EVOLQ_DATA")
    if not folder:
        pytest.skip("EVOLQ_DATA is not set: it names the folder of real images and weights")
    return Path(folder)


@pytest.fixture(autouse=True)
def _own_image_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """Keep decoded images of tests out of the user's cache, but share them between tests."""
    folder = tmp_path_factory.getbasetemp() / "evolq-cache"
    monkeypatch.setenv("EVOLQ_CACHE", str(folder))
