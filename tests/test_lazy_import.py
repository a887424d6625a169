import subprocess
import sys
from types import ModuleType

import pytest

import evolq
import landscape

NAMES = [(package, name) for package in (evolq, landscape) for name in package.__all__]


@pytest.mark.parametrize("package", ["evolq", "landscape"])
def test_importing_a_package_imports_neither_torch_nor_xarray(package: str) -> None:
    code = f"import sys, {package}; sys.exit(any(m in sys.modules for m in ('torch', 'xarray')))"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_every_public_name_can_be_used_and_listed(package: ModuleType, name: str) -> None:
    assert getattr(package, name)
    assert name in dir(package)


@pytest.mark.parametrize("package", [evolq, landscape])
def test_other_names_are_missing_as_usual(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match="'no_such_name'"):
        package.no_such_name  # noqa: B018


def test_no_public_name_is_a_module_of_the_package() -> None:
    """A module of that name, once imported, would take the function's place."""
    for package, name in NAMES:
        assert not isinstance(getattr(package, name), ModuleType), name
