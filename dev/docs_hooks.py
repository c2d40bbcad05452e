"""Hooks of mkdocs: pages of the repository outside docs/, and links that lead to them."""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
DOCS = PurePosixPath("docs")
#: Files outside docs/ that the site holds too, under their own paths.
OUTSIDE = (
    "CHANGELOG.md",
    "dev/LOG.md",
    "examples/default_model/README.md",
    "examples/default_model/history.json",
    "src/imprag/default/provenance.json",
)
_LINK = re.compile(r"(?<=\]\()(?![a-z+]+:|#)([^)#\s]+)")
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(<code>)~?")


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ to the site."""
    for path in OUTSIDE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links lead to where the site has their targets, as they do in the repository."""
    outside = page.file.src_uri in OUTSIDE
    source = PurePosixPath(page.file.src_uri) if outside else DOCS / page.file.src_uri
    return _LINK.sub(lambda match: _in_site(match[1], source, page.file.src_uri), markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Leave out the roles of reStructuredText in docstrings."""
    return _ROLE.sub(r"\1", html)


def _in_site(link: str, source: PurePosixPath, page: str) -> str:
    """A link of the file ``source`` of the repository, as the site's ``page`` needs it."""
    target = PurePosixPath(os.path.normpath(source.parent / link))
    if target.is_relative_to(DOCS):
        target = target.relative_to(DOCS)
    return os.path.relpath(target, PurePosixPath(page).parent)
