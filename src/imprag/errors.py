"""The one exception that users of ImpRAG are meant to see."""


class ImpRAGError(ValueError):
    """A mistake that the user can mend: bad input, a mismatched file, a missing package.

    The message is one line that says what is wrong and what to do. The command line prints it
    without a traceback and exits with status 2.
    """
