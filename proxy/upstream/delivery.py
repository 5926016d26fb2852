"""What the kernel knows of a request that got no answer."""

import socket
import struct
import sys
from typing import Any


def was_not_received(sock: Any, exc: BaseException | None) -> bool:
    """Whether the backend had closed before it received all of the request: then it did not start on it (B2, B13).

    `exc`: what the connection died of, None for its end in order. A FIN acknowledges what was received before it, so
    for a connection that was closed in order the kernel knows. A reset alone (ECONNRESET) proves nothing; EPIPE is a
    write after a FIN.
    """
    if exc is not None:
        return isinstance(exc, BrokenPipeError)
    if sock is None or sys.platform != "linux":
        return False
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < 216:  # kernels before 4.19
        return False
    acknowledged, sent, again = (struct.unpack_from("Q", info, offset)[0] for offset in (120, 200, 208))
    # The SYN was acknowledged, too.
    return bool(sent - again > acknowledged - 1)
