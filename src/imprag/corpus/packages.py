"""Finds and checks data files of other Python packages without importing the packages."""

import hashlib
from importlib import metadata
from pathlib import Path

from imprag.errors import ImpRAGError


def package_data(package: str, version: str, path: str, sha256: str) -> Path:
    """Path of a file, or of a folder of JSON files, in an installed package.

    The package is never imported: its code may have missing dependencies or an unsuitable licence.

    Args:
        package: the distribution's name, as for ``pip install``.
        version: the version that has the expected data; named in errors.
        path: the path of the data, relative to the folder that the package is installed in.
        sha256: the expected :func:`content_hash`.

    Raises:
        ImpRAGError: the package is missing or its data are not the expected ones.
    """
    install = f'pip install "{package}=={version}" (or pip install "imprag[demo]")'
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise ImpRAGError(f"the package {package} is not installed: {install}") from error
    data = Path(str(distribution.locate_file(path)))
    if not data.exists() or content_hash(data) != sha256:
        raise ImpRAGError(
            f"the package {package} {distribution.version} does not hold the data of "
            f"{package} {version}: {install}"
        )
    return data


def content_hash(path: Path) -> str:
    """SHA-256 over the name and content of a file, or of all JSON files below a folder."""
    digest = hashlib.sha256()
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(path.parent).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
