"""The command ``imprag``. Every subcommand is thin: parse, call the library, print.

Results go to standard output, everything else (progress, notes, errors) to standard error.
Libraries are imported when a command runs, so that ``imprag --help`` is quick.
"""

import os
import sys
from importlib.metadata import version

import cyclopts

from imprag.cli import imports
from imprag.cli.adapt import adapt
from imprag.cli.ask import ask, search
from imprag.cli.bench import bench
from imprag.cli.compare import compare
from imprag.cli.console import prepare_console
from imprag.cli.evaluate import evaluate
from imprag.cli.export import export
from imprag.cli.home import expand_home
from imprag.cli.index import index
from imprag.cli.info import info
from imprag.cli.kv import kv
from imprag.cli.mcp import mcp
from imprag.cli.removed import removed_option
from imprag.cli.reproduce import reproduce
from imprag.cli.serve import serve
from imprag.cli.tasks import tasks
from imprag.cli.train import train
from imprag.errors import ImpRAGError

app = cyclopts.App(
    name="imprag",
    help="One language model that retrieves with its lower layers, reads with its middle layers "
    "and answers with its upper layers.",
    version=lambda: version("imprag"),
    help_format="markdown",
    config=expand_home,
)
for command in (ask, search, serve, index, train, adapt, export, info, compare, bench, mcp):
    app.command(command)
app.command(evaluate, name="eval")
app.command(reproduce)
app.command(tasks)
app.command(kv)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    prepare_console()
    imports.own_process = arguments is None
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        words = sys.argv[1:] if arguments is None else arguments
        command, *_ = app.parse_commands(words)
        print(f"imprag: error: {removed_option(command, words) or error}", file=sys.stderr)
        return 2
    except ImpRAGError as error:
        print(f"imprag: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("imprag: interrupted; see --help for how to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as with `imprag ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
