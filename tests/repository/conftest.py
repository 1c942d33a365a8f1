"""The sdist of what git tracks, and the wheel that is made of it, as pip makes one."""

import shutil
import tarfile

import pytest

from .packages import ROOT, build, tracked


@pytest.fixture(scope="session")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    for name in tracked():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / "source" / name)
    return build("sdist", folder / "source", folder / "sdist")


@pytest.fixture(scope="session")
def wheel(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # from 3.11.4 on
    return build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder / "wheel")
