"""Data that other Python packages carry: found and checked without importing them."""

import hashlib
from importlib import metadata
from pathlib import Path

from imprag.errors import ImpRAGError


def package_data(package: str, version: str, path: str, sha256: str) -> Path:
    """Path of a file, or a folder of JSON files, inside an installed package.

    The package is never imported: its code may need what is not installed, or stand under a
    licence that does not suit.

    Args:
        package: distribution name, as for ``pip install``.
        version: the version whose data are known; named in errors.
        path: where the data lie, relative to the folder the package is installed in.
        sha256: what :func:`content_hash` must give.

    Raises:
        ImpRAGError: the package is missing or its data are not the known ones.
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
    """SHA-256 over names and content of a file, or of all JSON files below a folder."""
    digest = hashlib.sha256()
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(path.parent).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
