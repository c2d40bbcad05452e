"""What the tests were last run with: versions of the libraries that compute, and model families.

``pyproject.toml`` allows what lies between ``constraints-lowest.txt`` and
``constraints-newest.txt``; docs/versions.md says what was run.
"""

import functools
from importlib.metadata import version

TESTED_VERSIONS = {
    "torch": ("2.13.0",),
    "transformers": ("5.20.0", "5.23.0", "5.24.0"),
}

TESTED_FAMILIES = frozenset(
    {
        "cohere",
        "gemma2",
        "gemma3_text",
        "granite",
        "llama",
        "mistral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
    }
)
"""``model_type`` of the families with which all tests of the model run (``tests/conftest.py``)."""


@functools.cache
def untested_versions() -> str:
    """The installed versions that the tests were not run with, such as "transformers 5.99.0"."""
    installed = {name: version(name).partition("+")[0] for name in TESTED_VERSIONS}
    return ", ".join(
        f"{name} {found}" for name, found in installed.items() if found not in TESTED_VERSIONS[name]
    )
