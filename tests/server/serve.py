"""Run as a script: the server under test, with options as JSON."""

import ipaddress
import json
import logging
import resource
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]
    from gateway_site.server import ServerOptions, run

    logging.basicConfig()
    options = json.loads(sys.argv[1])
    if limit := options.pop("descriptors", None):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    options["trusted_proxies"] = tuple(ipaddress.ip_network(text) for text in options.get("trusted_proxies", ()))
    sys.exit(run("served_app:application", "served_app:runtime", ServerOptions(**options)))
