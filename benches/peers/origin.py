"""The origin that fills the caches under measurement: 1 KiB, fresh for an hour, and a count of what was asked of it.

Usage: origin.py PORT. `GET /count` tells how many other requests have come: a peer that does not cache shows here.
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY = b"0123456789abcdef" * 64
asked = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        global asked
        if self.path == "/count":
            body, lifetime = str(asked).encode(), "no-store"
        else:
            asked += 1
            body, lifetime = BODY, "public, max-age=3600"
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", lifetime)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
