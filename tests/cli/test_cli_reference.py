"""The reference page of the command line."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from imprag.cli.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"


@pytest.mark.skipif(version("cyclopts").startswith("4."), reason="cyclopts 4 has another layout")
def test_the_committed_page_is_current() -> None:
    """Make it again with ``python -m imprag.cli.reference > docs/reference/cli.md``."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_option_is_explained() -> None:
    options = re.findall(r"^\* `(--[^`]+)`(.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(options) > 80
    assert [name for name, text in options if not re.match(r": \w", text.replace("`", ""))] == []
