"""The error codes of records, in words, and what to do next."""

from proxy.refusal_reasons import reason

# code → (what happened, what to do next). Of refusals, refusal_reasons has the words.
_ERRORS = {
    "client_gone": ("The client closed the connection.", "Look for a timeout of the client that is too short."),
    "withdrawn": ("The key, its user, its address or a right was withdrawn.", "Look at the state of the key."),
    "cancelled": (
        "Somebody cancelled the call, on the live page or by the command cancel_call.",
        "Make the call again if it is still wanted.",
    ),
    "first_byte_timeout": (
        "The backend sent no first byte in time.",
        "The model may be too large for it, or the prompt too long: look at “Load” and “Prefill” of other calls.",
    ),
    "gap_timeout": ("The backend fell silent in the middle of its answer.", "Try again; tell an administrator."),
    "total_timeout": ("The call took longer than any may.", "Ask for a shorter answer."),
    "line_timeout": ("It waited in line longer than any call may.", "Try again when fewer calls are running."),
    "draining": ("The gateway was shutting down.", "Make the call again."),
    "backend_error": (
        "The backend reported an error.",
        "The gateway's log has its words, by the request id. Some fail each time: images, where a model sees none.",
    ),
    "broken_stream": ("The connection to the backend broke in the middle of the answer.", "Make the call again."),
    "incomplete": ("The backend ended its answer without its last object.", "Make the call again."),
    "odd_usage": ("The backend reported impossible numbers of tokens: ours are estimates.", "Tell an administrator."),
    "model_not_found": ("No backend has this model.", "Look under Models for the names that there are, tags included."),
    "context_too_long": (
        "More context was asked for than the model runs with.",
        "Leave num_ctx out, or ask for no more than is listed under Models; or have an administrator raise it.",
    ),
    "no_backend": ("No backend could serve the call.", "Ask an administrator to look at the backends."),
    "interrupted": ("The gateway's process ended while the call ran.", "Make the call again."),
}
_TRY_AGAIN = "Try again; if it goes on, tell an administrator the request id."


def error_words(code: str) -> tuple[str, str]:
    return _ERRORS.get(code) or (reason(code), _TRY_AGAIN)
