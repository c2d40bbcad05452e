"""The reference page of recipes."""

import re
from pathlib import Path

from pydantic import BaseModel

from imprag.training.recipe import Recipe
from imprag.training.recipe_file import sections_of
from imprag.training.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "recipe.md"


def undocumented(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Keys whose field or section has no docstring."""
    missing = []
    for name, field in section.model_fields.items():
        inner = [found for found, _ in sections_of(field.annotation)]
        if not inner and not field.description:
            missing.append(prefix + name)
        for found in inner:
            missing += [] if found.__doc__ else [prefix + name]
            missing += undocumented(found, f"{prefix}{name}.")
    return missing


def test_the_committed_page_is_current() -> None:
    """Regenerate it: ``python -m imprag.training.reference > docs/reference/recipe.md``."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_key_is_documented_at_its_field() -> None:
    assert undocumented(Recipe) == []


def test_there_are_at_most_sixty_keys() -> None:
    """The count includes ``extends`` and ``trainer``, whose keys are those of transformers."""
    keys = set(re.findall(r"^\| `([\w.*]+)` \|", page(), re.MULTILINE))
    own = {key for key in keys if not key.startswith("trainer.")}
    leaves = {key for key in own if not any(other.startswith(f"{key}.") for other in own)}
    assert 50 < len(leaves | {"extends", "corpus", "trainer"}) <= 60
