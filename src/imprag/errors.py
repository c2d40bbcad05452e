"""The exceptions that users of ImpRAG are meant to see."""


class ImpRAGError(ValueError):
    """A mistake that the user can mend: bad input, a mismatched file, a missing package.

    The message is one line that says what is wrong and what to do. The command line prints it
    without a traceback and exits with status 2.
    """


class FaultError(ImpRAGError):
    """Stored files or a server that cannot be used: whoever runs ImpRAG can mend it.

    The HTTP server logs the message and answers with the status 500; other errors of requests are
    described to their senders.
    """
