"""A small application for gunicorn whose bodies prove themselves: `?slow=SECONDS` makes it slow, `/…/kept/…` is fresh
for a second."""

import time
import urllib.parse

from injection import bodies

BYTES = 3000


def answer(environ, start_response):
    url = environ["RAW_URI"]
    query = urllib.parse.parse_qs(environ["QUERY_STRING"])
    time.sleep(float(query.get("slow", ["0"])[0]))
    body = bodies.make(url, 1, BYTES)
    lifetime = "max-age=1, stale-if-error=600" if "/kept/" in url else "max-age=60"
    start_response("200 OK", [("Cache-Control", lifetime), ("Content-Length", str(len(body)))])
    return [body]
