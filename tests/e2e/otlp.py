"""An OTLP/HTTP collector for tests: takes spans as protobuf, keeps them, and can refuse or hang."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from harness import wait_until


class Span:
    def __init__(self, span, resource):
        self.trace_id = span.trace_id.hex()
        self.id = span.span_id.hex()
        self.parent = span.parent_span_id.hex()
        self.name = span.name
        self.kind = {2: "server", 3: "client"}.get(span.kind, span.kind)
        self.start = span.start_time_unix_nano / 1e9
        self.end = span.end_time_unix_nano / 1e9
        self.attributes = {a.key: value(a.value) for a in span.attributes}
        self.error = span.status.message if span.status.code == 2 else None
        self.sampled = bool(span.flags & 1)
        self.resource = {a.key: value(a.value) for a in resource.attributes}

    def __repr__(self):
        return f"<{self.kind} {self.name} {self.trace_id} {self.parent}>{self.id} {self.attributes}>"


def value(any_value):
    return getattr(any_value, any_value.WhichOneof("value"))


class Collector:
    def __init__(self):
        self.spans = []
        self.batches = []
        self.problems = []
        self.status = 200
        self.delay = 0.0

    def __enter__(self):
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                time.sleep(collector.delay)
                if self.headers["content-type"] != "application/x-protobuf":
                    collector.problems.append(dict(self.headers))
                if collector.status == 200:
                    request = ExportTraceServiceRequest.FromString(body)
                    batch = [Span(span, of.resource) for of in request.resource_spans
                             for scope in of.scope_spans for span in scope.spans]
                    collector.batches.append((self.path, len(batch)))
                    collector.spans += batch
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(collector.status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def of(self, trace_id, count):
        """The spans of a trace, once there are so many."""
        def found():
            spans = [span for span in self.spans if span.trace_id == trace_id]
            return spans if len(spans) >= count else None

        return wait_until(found, 8, f"{count} spans of {trace_id}; there are {self.spans}")
