"""Options of earlier versions, and what takes their place."""

from collections.abc import Sequence

_KEPT_TOKENS = "every token is kept now; --codec pq takes less disk and keeps more answers"
_RETRIEVER = "use --retrieval; self is called implicit, bm25 lexical, and teacher dense"

INSTEAD = {
    "adapt": {
        "--leave-out": "it is an argument of imprag.training.adapt_run.adapt_model",
        "--learning-rate": "it is an argument of imprag.training.adapt.adapt",
        "--seed": "it is an argument of imprag.training.adapt_run.adapt_model",
        "--split": "the split is train; import another one with: imprag tasks import",
        "--start-share": "use --wise-ft-alpha, which is 1 minus that share",
    },
    "ask": {
        "--memory": "use --kv-cache",
        "--retriever": _RETRIEVER,
        "--teacher-retrieval": "use --retrieval dense",
    },
    "bench": {
        "--compiled": "it is an argument of imprag.evaluation.speed.benchmark",
        "--json": "read speed.json in --out",
        "--runs": "leave it out; --quick makes fewer runs",
        "--threads": "set the environment variable OMP_NUM_THREADS",
    },
    "compare": {
        "--markdown": "redirect the output: imprag compare ... > FILE",
        "--metrics": "use --json, which has all metrics",
    },
    "eval": {
        "--batch-size": "leave it out; it suits the device",
        "--among": "use --passages gold-among-others --k N",
        "--memory": "use --kv-cache",
        "--no-retrieval": "use --passages none",
        "--oracle-passages": "use --passages gold",
        "--reading-score-weight": "use --attention-score-bias",
        "--retriever": _RETRIEVER,
        "--seed": "leave it out; every run draws the same examples",
    },
    "export": {
        "--corpus": "leave it out; it is the built-in corpus",
        "--dtype": "it is an argument of imprag.training.export.export",
    },
    "kv build": {
        "--chat": "it is an argument of rag.retrieve; see imprag.kv_cache.hot",
        "--keep-tokens": _KEPT_TOKENS,
        "--kv-keep-ratio": _KEPT_TOKENS,
        "--seed": "leave it out; every call draws the same sample",
    },
    "search": {
        "--kv-cache": "leave it out; searching reads no keys and values",
        "--memory": "leave it out; searching reads no keys and values",
        "--retriever": _RETRIEVER,
        "--teacher-retrieval": "use --retrieval dense",
    },
    "tasks build": {
        "--json": "read benchmark.json in --out",
        "--seed": "it is an argument of the benchmark's Python function",
    },
    "tasks import-squad": {"--split": "leave it out, or give the file of that split"},
    "tasks import": {"--task": "write TASK=FILE in place of FILE"},
}


def removed_option(command: Sequence[str], words: Sequence[str]) -> str | None:
    """The error message for an option or a command of an earlier version.

    Args:
        command: the names of the command, such as ``("kv", "build")``.
        words: of the command line.

    Returns:
        which one it is and what takes its place; None if there is no such option or command.
    """
    if words and words[0] == "memory":
        return "the command memory was renamed: use imprag kv"
    removed = INSTEAD.get(" ".join(command), {})
    for option in (word.partition("=")[0] for word in words):
        if option in removed:
            return f"{option} was removed: {removed[option]}"
    return None
