"""A receiver of traces for tests: OTLP over HTTP on a free port; needs the extra `tracing`."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

__all__ = ["TraceReceiver"]


class TraceReceiver:
    """Decodes what it is sent, in a thread; a context manager."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        """Of all traces, in the order in which they came: OTLP's messages `Span`."""
        self.resource: dict[str, str] = {}
        """Attributes of the sender."""
        self._server = HTTPServer(("127.0.0.1", 0), self._handler())
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        """What `tracing.endpoint` names."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def traces(self, name: str) -> list[tuple[Any, list[Any]]]:
        """Each root span of this name, with its children in order of time."""
        spans = list(self.spans)
        return [
            (root, sorted(children, key=lambda span: span.start_time_unix_nano))
            for root in spans
            if root.name == name and not root.parent_span_id
            if (children := [span for span in spans if span.parent_span_id == root.span_id])
        ]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.take(body if self.path == "/v1/traces" else b"")
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Requests are no news."""

        return Handler

    def take(self, body: bytes) -> None:
        """Decode the body of a request."""
        for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = sent.resource.attributes
            self.resource = {one.key: one.value.string_value for one in attributes}
            for scope in sent.scope_spans:
                self.spans += scope.spans

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
