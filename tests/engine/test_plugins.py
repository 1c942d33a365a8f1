"""Third parties' patches are found among the distributions that are installed."""

import sys

import pytest

from qlora_bf16_patch.engine import plugins

GROUP = "qlora_bf16_patch.patches"


def install(path, name, text=None):
    path.mkdir(parents=True)
    (path / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (path / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    if text is not None:
        (path / "entry_points.txt").write_text(text)


@pytest.fixture
def only_path(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "does not exist")])
    return tmp_path


@pytest.mark.parametrize("folder", ["third_party-1.0.dist-info", "third_party.egg-info"])
def test_an_entry_point_of_the_group_is_found(only_path, folder):
    install(only_path / "other-1.0.dist-info", "other", "[console_scripts]\nother = other:main\n")
    assert plugins.find(GROUP) == ()
    install(only_path / folder, "third-party", f"[{GROUP}]\nfake.layer = third_party:PATCH\n")
    assert [(point.name, point.value) for point in plugins.find(GROUP)] == [("fake.layer", "third_party:PATCH")]


def test_the_metadata_of_all_distributions_is_not_parsed_where_none_names_the_group(only_path, monkeypatch):
    install(only_path / "other-1.0.dist-info", "other", "[console_scripts]\nother = other:main\n")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: 1 / 0)
    assert plugins.find(GROUP) == ()


class Finder:
    """Somebody's own way to find distributions."""

    def find_spec(self, *arguments):
        return None

    def find_distributions(self, *arguments):
        return []


@pytest.mark.parametrize("elsewhere", ["a zip file", "a finder"])
def test_distributions_that_are_not_folders_are_asked_for(only_path, monkeypatch, elsewhere):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ["asked"])
    if elsewhere == "a zip file":
        (only_path / "library.zip").touch()
        sys.path.append(str(only_path / "library.zip"))
    else:
        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    assert plugins.find(GROUP) == ("asked",)


@pytest.mark.parametrize("line", [b"this is no entry point", b"\xff = x:y"])
def test_metadata_that_cannot_be_read_is_logged_and_breaks_no_import(only_path, caplog, line):
    install(only_path / "broken-1.0.dist-info", "broken")
    (only_path / "broken-1.0.dist-info" / "entry_points.txt").write_bytes(b"[%s]\n%s\n" % (GROUP.encode(), line))
    assert plugins.find(GROUP) == ()
    assert "could not be read: " in caplog.text
