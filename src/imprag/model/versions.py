"""The library versions and model families that the tests were last run with.

``pyproject.toml`` allows the range from ``constraints-lowest.txt`` to ``constraints-newest.txt``;
docs/versions.md lists the runs.
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
"""``model_type`` of the families that all tests of the model cover (``tests/conftest.py``)."""


@functools.cache
def untested_versions() -> str:
    """The installed versions that the tests were not run with, such as "transformers 5.99.0"."""
    installed = {name: version(name).partition("+")[0] for name in TESTED_VERSIONS}
    return ", ".join(
        f"{name} {found}" for name, found in installed.items() if found not in TESTED_VERSIONS[name]
    )
