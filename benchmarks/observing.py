"""What metrics, the access log and traces add to the CPU of a call. Part of `make bench`; alone:

python benchmarks/run.py --only observing
"""

import argparse
import statistics
import sys
import threading
from contextlib import ExitStack
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks import processes
from benchmarks.limits import SLICES, call
from benchmarks.processes import cost

# µs of CPU a call that issue 7 allows.
ALLOWED = {"metrics": 10.0, "log": 10.0}
BASE = "nothing"


class Sink(BaseHTTPRequestHandler):
    """A collector that throws away what it is sent."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def measure(options: argparse.Namespace, directory: Path) -> None:
    with ExitStack() as stack:
        fake = processes.Fake("--models", "llama3.2", "--slots", "4096", "--tokens", "1000")
        stack.callback(fake.close)
        sink = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
        threading.Thread(target=sink.serve_forever, daemon=True).start()
        stack.callback(sink.shutdown)
        ways = {
            BASE: {"METRICS_ENABLED": "False"},
            "metrics": {},
            "log": {"METRICS_ENABLED": "False", "ACCESS_LOG": "True"},
            "traces": {
                "METRICS_ENABLED": "False",
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink.server_address[1]}",
            },
        }
        gateways = {}
        for name, env in ways.items():
            place = directory / f"observing-{name}"
            gateway, key, _ = processes.make_gateway(fake.url, place, **env)
            stack.callback(gateway.stop)
            gateways[name] = gateway, key
        figures: dict[str, list[float]] = {name: [] for name in ways}
        calls = options.requests // SLICES
        for number in range(options.rounds * SLICES + 1):
            for name, (gateway, key) in gateways.items():
                print(f"\rround {number} of {options.rounds * SLICES}: {name}   ", end="", file=sys.stderr, flush=True)
                figure = cost(partial(list, [gateway.process.pid]), partial(call, gateway.url, key, calls), calls)
                if number:  # the first round warms up
                    figures[name].append(figure)
        print(file=sys.stderr)
    report(figures)


def report(figures: dict[str, list[float]]) -> None:
    print(f"{'CPU µs of a call':18} {'in all':>8} {'more':>8} {'allowed':>8}")
    for name, values in figures.items():
        more = statistics.median(value - base for value, base in zip(values, figures[BASE], strict=True))
        allowed = f"{ALLOWED[name]:8.0f}" if name in ALLOWED else ""
        print(f"{name:18} {statistics.median(values):8.1f} {more:8.1f} {allowed}")
