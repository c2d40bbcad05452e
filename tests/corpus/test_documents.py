"""Markdown and reStructuredText become the titles and text that a reader of the page sees."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imprag.corpus import Passage, read_passages
from imprag.corpus.markdown import parse_markdown
from imprag.corpus.rest import parse_rest


def passages(tmp_path: Path, name: str, text: str) -> list[Passage]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return list(read_passages(tmp_path / name))


def test_markdown_keeps_text_and_code_and_drops_invisible_parts(tmp_path: Path) -> None:
    source = """\
[![Build](https://ci.example/badge.svg)](https://ci.example)
<!-- a comment -->
<p align="center"><img src="logo.png" alt="Logo"></p>

# *Guide* to `tool`

- [Install](#install)
- [Use](#use)

See the [manual](https://example.org/very/long) &amp; [notes][n]. <br>Next ![picture](p.png) line.

## Install

```bash
# a comment, no heading
pip install tool
```

| Name | Use |
|------|-----|
| `a`  | [b](https://example.org) |

1. First
2. Second
   - deeper

[n]: https://example.org/notes "Notes"

Final
=====

End.
"""
    assert [(p.title, p.text) for p in passages(tmp_path, "tool.md", source)] == [
        ("Guide to tool", "See the manual & notes. \nNext  line."),
        (
            "Guide to tool > Install",
            "# a comment, no heading\npip install tool\n\nName | Use\n\na | b\n\n"
            "1. First\n2. Second\n  - deeper",
        ),
        ("Guide to tool > Final", "End."),
    ]


@pytest.mark.parametrize(
    ("source", "title"),
    [
        ("```bash\n# install it\n```\n\n# The real title\n\nText.\n", "The real title"),
        ("---\n# only a note\ntitle: Foo\n---\n\n# Foo\n\nText.\n", "Foo"),
        ("---\ntitle: 'It''s: a title'\ndate: 2020-01-01\n---\nText.\n", "It's: a title"),
        ('+++\ntitle = "Toml"\n+++\nText.\n', "Toml"),
        ("Set\next\n===\n\nText.\n", "Set ext"),
        ('<h1 align="center">In <b>HTML</b> &amp; more</h1>\n\nText.\n', "In HTML & more"),
        ("<h1>\n\nOver\n\n</h1>\n\nText.\n", "Over"),
        ("    # code\n\n~~~\n# code\n~~~\n\n## Second\n\nText.\n", "x"),
        ("# a" + " " * 5000 + "b\n\nText.\n", "a b"),
        ("---\nText without front matter.\n\n# Title\n", "Title"),
    ],
)
def test_a_markdown_title_comes_from_front_matter_or_heading_or_file(
    tmp_path: Path, source: str, title: str
) -> None:
    found = passages(tmp_path, "x.md", source)
    assert found[0].title.partition(" > ")[0] == title


def test_the_name_of_the_file_is_part_of_the_title(tmp_path: Path) -> None:
    assert passages(tmp_path, "typer.md", "# Build CLIs\n\nText.")[0].title == "Build CLIs (typer)"
    assert passages(tmp_path, "my-tool.md", "# My *tool*\n\nText.")[0].title == "My tool"
    (tmp_path / "notes" / "cats").mkdir(parents=True)
    (tmp_path / "notes" / "cats" / "README.md").write_text("# Pets\n\nText.")
    assert next(iter(read_passages(tmp_path / "notes"))).title == "Pets (cats/README)"


def test_headings_without_text_and_long_headings_are_kept(tmp_path: Path) -> None:
    long = "very long heading " * 30
    found = passages(tmp_path, "x.md", f"# Top\n\n## Empty\n\n## {long}\n\nText.\n\n## Last")
    assert [(p.title, p.text.split("\n\n")[0]) for p in found] == [
        ("Top > Empty", "Empty"),
        (found[1].title, long.strip()),
        ("Top > Last", "Last"),
    ]
    assert len(found[1].title) < 200
    assert [p.text for p in passages(tmp_path, "y.md", "# Only a title")] == ["Only a title"]


def test_an_unclosed_html_heading_swallows_no_text(tmp_path: Path) -> None:
    text = "A paragraph of words. " * 20
    found = passages(tmp_path, "x.md", f"<h1>Open\n\n{text}\n\n{text}\n")
    assert sum(p.text.count("paragraph") for p in found) == 40


def test_rest_keeps_text_and_code_and_drops_invisible_parts(tmp_path: Path) -> None:
    source = """\
.. |badge| image:: https://ci.example/badge.svg
   :target: https://ci.example
.. _manual: https://example.org

=====
Guide
=====

|badge|

.. contents::

Install ``tool`` from `the index <https://example.org>`_ and read the manual_.

.. a comment
   over two lines

Use
---

.. code-block:: python
   :linenos:

   import tool  # run_ it

.. note:: Mind the *gap*.

   And :ref:`this <target>`.

Like so::

    tool --help `x`_

Deeper
~~~~~~

End.
"""
    assert [(p.title, p.text) for p in passages(tmp_path, "tool.rst", source)] == [
        ("Guide (tool)", "Install tool from the index and read the manual."),
        (
            "Guide (tool) > Use",
            "import tool  # run_ it\n\nMind the gap.\n\nAnd this.\n\nLike so:\n\ntool --help `x`_",
        ),
        ("Guide (tool) > Use > Deeper", "End."),
    ]


def test_rest_headings_of_one_style_are_sections_and_not_a_title(tmp_path: Path) -> None:
    found = passages(tmp_path, "pkg.rst", "Intro.\n\nInstall\n=======\n\nA.\n\nUse\n===\n\nB.\n")
    assert [p.title for p in found] == ["pkg", "pkg > Install", "pkg > Use"]


HARD = (
    *("[", "![", "[a](", "*a **b", "`", "<!--", "<a ", "<![CDATA[", "> ", "- ", "[a]: b\n"),
    *("a|b\n-|-\n", "a\n", " ", "\\", "&", "_a_", "1. ", "---\n", ".. note::\n ", "`a <b"),
    *(":a:`", "|a"),
)


@pytest.mark.parametrize("parse", [parse_markdown, parse_rest])
def test_parsing_takes_linear_time(parse: Callable[[str], object]) -> None:
    for pattern in HARD:
        many = pattern * (5_000 // len(pattern))
        text = f"# a{many}\n\na {many}"
        # The quickest of some calls: collecting other tests' garbage may fall into one of them.
        assert any(seconds_of(parse, text) < 1.5 for _ in range(3)), pattern


def seconds_of(parse: Callable[[str], object], text: str) -> float:
    start = time.process_time()
    parse(text)
    return time.process_time() - start


def test_rest_substitutions_are_replaced_and_tables_keep_their_cells() -> None:
    source = """Go
==

Needs |Min| or |x| of |other|; |Badge|.

|Attribute  | Index |

.. |Min| replace:: 3.11
   or later
.. |Badge| image:: badge.svg
   :target: page
"""
    outline = parse_rest(source)
    assert outline.title == "Go"
    assert outline.sections[0].blocks == [
        "Needs 3.11 or later or |x| of |other|; .",
        "|Attribute  | Index |",
    ]


def test_arguments_and_captions_of_rest_directives_are_text() -> None:
    source = """.. tab:: Linux

   apt install

.. py:function:: foo(a, b)

   Does foo.

.. csv-table:: Prices
   :header: "Item", "Price"

   tea, 1

.. code-block:: python
   :caption: Example

   print()

.. figure:: picture.png

   The legend.
"""
    assert [block for section in parse_rest(source).sections for block in section.blocks] == [
        *("Linux", "apt install", "foo(a, b)", "Does foo."),
        *('"Item", "Price"', "Prices", "tea, 1", "Example", "print()", "The legend."),
    ]


@pytest.mark.parametrize("line", ["|a|b|c|d|\n", "- a\n", "- - - a\n", "a\n\n", "1. a\n"])
def test_markdown_of_only_tiny_blocks_is_kept_unparsed(line: str) -> None:
    source = line * (1_000_000 // len(line))
    start = time.process_time()
    outline = parse_markdown(source)
    assert time.process_time() - start < 2
    assert outline.sections[0].text == source.strip("\n")


def test_rest_with_a_long_indented_block_takes_linear_time() -> None:
    start = time.process_time()
    parse_rest(".. a comment\n" + "   y\n" * 100_000)
    assert time.process_time() - start < 3
