"""Which version of its library a patch finds, and whether it is for that one."""

from __future__ import annotations

import importlib.metadata

from .patch import Patch


def installed(distribution: str) -> str | None:
    """The version of a distribution; None where there is none, or where nobody knows."""
    try:
        return importlib.metadata.version(distribution) or None
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError):  # no such one; no name; broken metadata
        return None


def within(version: str, releases: str) -> bool | None:
    """Whether a range of releases has a version; None where it is none that can be compared."""
    from packaging.specifiers import SpecifierSet  # here, since it takes as long as half of wrapt to import
    from packaging.version import InvalidVersion, Version

    try:
        # Given the text, packaging 26 says that no range has it, where older ones raise (specifiers.py, contains).
        return SpecifierSet(releases).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return None


def refusal(patch: Patch, version: str | None) -> str | None:
    """Why the patch is not for this version, if so. One that no range can be asked about is let through."""
    if not patch.requires or version is None or within(version, patch.requires) is not False:
        return None
    return f"requires {patch.distribution}{patch.requires}, found {version}"


def reaches(version: str | None, release: str) -> bool:
    """Whether a version is this release or a newer one; not where either is none that can be compared."""
    return _beside(version, release) >= 0


def newer_than_tested(patch: Patch, version: str | None) -> str | None:
    """A note where the version is newer than the newest that the patch was tested with."""
    if _beside(version, patch.tested) <= 0:
        return None
    return f"not tested with {patch.distribution} {version} (newest tested: {patch.tested})"


def _beside(version: str | None, release: str) -> int:
    """Above 0 where a version is newer than a release, 0 where it is that one; below, too, where one is no version."""
    if version is None or not release:
        return -1
    from packaging.version import InvalidVersion, Version

    try:
        found, asked = Version(Version(version).public), Version(release)  # 2.13.0+cpu is no newer than 2.13.0
    except InvalidVersion:
        return -1
    return (found > asked) - (found < asked)
