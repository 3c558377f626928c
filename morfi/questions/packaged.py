"""Data files of PyPI packages, each of one version."""

from __future__ import annotations

from pathlib import Path

from morfi.errors import InputError


def package_folder(package: str, version: str, *, for_set: str) -> Path:
    """The folder of an installed package's files.

    Raises InputError, with the line that installs it, where the package is absent or of another version;
    `for_set` is the question set that is made from it.
    """
    from importlib import metadata, resources

    install = f"pip install {package}=={version}"
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise InputError(f"{for_set} is made from {package}, which is not installed: {install}") from error
    if found != version:
        raise InputError(f"{for_set} is made from {package} {version}, found {found}: {install}")
    return Path(str(resources.files(package)))
