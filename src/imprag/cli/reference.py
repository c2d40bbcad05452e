"""The reference page of the command line, made from the commands themselves.

``python -m imprag.cli.reference > docs/reference/cli.md`` writes it again.
"""

import re

from imprag.cli import app

_INTRODUCTION = """\
# Command line

<!-- Made by `python -m imprag.cli.reference` from the commands in src/imprag/cli. -->

Results go to standard output; progress, notes and errors go to standard error. The exit status is
0 if the command succeeded, 2 for bad input and 130 after Ctrl-C.
"""


def page() -> str:
    """The whole page: every command with its arguments, options and defaults."""
    text = app.generate_docs().replace("```console", "```text")
    commands = text[text.index("\n## imprag ") :]
    # The usage tells how this process was started, as in `imprag ask -m pytest`.
    usage = re.sub(r"^(imprag [a-z -]+?) -m [\w.]+", r"\1", commands, flags=re.MULTILINE)
    return f"{_INTRODUCTION}{usage.rstrip()}\n"


if __name__ == "__main__":
    print(page(), end="")
