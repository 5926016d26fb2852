"""The HTTP server in front of the application: uvicorn with strict framing, deadlines, caps and a drain.

    run("gateway_site.asgi:application", "gateway_site.asgi:gateway", ServerOptions(port=8080))

`gateway_site.asgi:gateway` is a `Drainable`. The application finds `scope["extensions"]["gateway.disconnect"]`,
a function that takes a callback for the moment the client leaves.
"""

from .options import ServerOptions
from .process import run
from .worker import Drainable

__all__ = ["Drainable", "ServerOptions", "run"]
