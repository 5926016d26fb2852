"""What a call can end with, other than its answer.

ApiError            an answer with a status and a text, in the shape of the route's family
RunnerError         the runner failed after the answer may have begun
SilentEnd           the runner stopped without its final object
Cut                 the connection breaks here
"""


class ApiError(Exception):
    def __init__(self, status: int, text: str, *, charset: bool = True, extra: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        # Errors of a stream that had not begun leave without a charset.
        self.charset = charset
        self.extra = extra or {}
        # Cloud errors come in Ollama's shape on every family.
        self.native = bool(extra)


class RunnerError(Exception):
    def __init__(self, text: str, status: int = 500) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


class SilentEnd(Exception):
    pass


class Cut(Exception):
    def __init__(self, *, reset: bool) -> None:
        super().__init__("reset" if reset else "fin")
        self.reset = reset


BUSY = "server busy, please try again.  maximum pending requests exceeded"
RUNNER_STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)
RUNNER_DIED = "an error was encountered while running the model: unexpected EOF"
LOAD_FAILED = "llama-server process has terminated: exit status 2"


class EmptyRequest(ApiError):
    """No body. The text depends on the family of the route."""

    def __init__(self) -> None:
        super().__init__(400, "missing request body")
