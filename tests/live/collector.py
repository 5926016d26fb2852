"""An OpenTelemetry collector of the tests: OTLP over HTTP, kept as plain values."""

import gzip
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """Takes whatever comes, in threads of its own."""

    def __init__(self) -> None:
        self.spans: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.raw = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def start(self) -> "Collector":
        self.thread.start()
        return self

    def close(self) -> None:
        """More than once, if need be."""
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        assert path == "/v1/traces"
        said = ExportTraceServiceRequest.FromString(body)
        self.raw += body
        self.headers.append(headers)
        for resource in said.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append({
                        "service": {each.key: value_of(each.value) for each in resource.resource.attributes},
                        "trace": span.trace_id.hex(), "id": span.span_id.hex(), "parent": span.parent_span_id.hex(),
                        "name": span.name, "kind": span.kind, "error": span.status.code == 2,
                        "start": span.start_time_unix_nano, "end": span.end_time_unix_nano,
                        "attributes": {each.key: value_of(each.value) for each in span.attributes},
                    })  # fmt: skip

    def traces(self) -> dict[str, list[dict]]:
        found: dict[str, list[dict]] = {}
        for span in list(self.spans):
            found.setdefault(span["trace"], []).append(span)
        return found

    def wait_for(self, holds, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"{len(self.spans)} spans after {seconds} s"
            time.sleep(0.05)


def value_of(value) -> object:
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind else None
