"""The sdist and the wheel hold the package's files alone, and all of them; one line says the version."""

import importlib.metadata
import tarfile

import pytest

import qlora_bf16_patch

from .packages import ROOT, tracked, unpacked

PACKAGE = "qlora_bf16_patch"
BESIDE = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg"}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    return unpacked(wheel, tmp_path_factory.mktemp("site-packages"))


def test_a_wheel_has_what_git_tracks_of_the_package_and_nothing_else(installed):
    names = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {name for name in names if ".dist-info/" not in name} == tracked(PACKAGE)
    assert {"page.css", "page.html", "page.js"} <= {name.rpartition("/")[2] for name in names}


def test_an_sdist_has_the_package_and_what_it_is_built_with(sdist):
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {name for name in names if name == "PKG-INFO" or name.startswith(f"{PACKAGE}.egg-info/")}
    assert names - made == tracked(PACKAGE) | BESIDE


def test_the_metadata_says_what_it_is(installed):
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    assert found.version == qlora_bf16_patch.__version__
    assert [point.value for point in found.entry_points] == [f"{PACKAGE}.commands:main"]
    assert found.metadata["License"] == "Apache-2.0"
    assert found.metadata["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in found.metadata.get_all("Classifier")


def test_the_readme_and_the_changelog_name_the_version():
    version = qlora_bf16_patch.__version__
    assert f"`qlora-bf16-patch=={version}` in `requirements.txt`" in (ROOT / "README.md").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
