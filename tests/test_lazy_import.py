import subprocess
import sys

import pytest

import landscape


def test_importing_the_package_imports_neither_torch_nor_xarray():
    check = "import sys, landscape; sys.exit(any(m in sys.modules for m in ('torch', 'xarray')))"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize("name", landscape.__all__)
def test_every_public_name_can_be_used_and_listed(name):
    assert getattr(landscape, name)
    assert name in dir(landscape)


def test_other_names_are_missing_as_usual():
    with pytest.raises(AttributeError, match="'no_such_name'"):
        landscape.no_such_name  # noqa: B018
