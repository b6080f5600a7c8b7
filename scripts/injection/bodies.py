"""Bodies that prove themselves: the first line names the URL, the version and the length, and the rest follows from
that line. So a truncated body, another URL's and a damaged one are all told from the right one, by whoever knows what
was asked for."""

import hashlib
from collections.abc import Iterator

# Large ones repeat themselves, or the making of them would be most of the load. A prime, so that no power of two fits.
BLOCK_BYTES = 65521


def make(url: str, version: int, size: int = 0) -> bytes:
    return b"".join(pieces(url, version, size))


def pieces(url: str, version: int, size: int) -> Iterator[bytes]:
    """The same in parts, so that many may be sent at a time."""
    line = f"{url} {version} {size}\n".encode()
    yield line
    left = max(0, size - len(line))
    block = hashlib.shake_128(line).digest(min(left, BLOCK_BYTES))
    while left > 0:
        yield block[:left]
        left -= len(block)


def complaint(url: str, body: bytes) -> str | None:
    """What is wrong with a body that was presented as the complete one of this URL."""
    line, end, _ = body.partition(b"\n")
    parts = line.decode("latin-1").split(" ")
    if not end or len(parts) != 3 or not (parts[1] + parts[2]).isdigit():
        return f"{url} got a body that names no URL: {body[:60]!r}"
    if parts[0] != url:
        return f"{url} got the body of {parts[0]}"
    right = make(url, int(parts[1]), int(parts[2]))
    if len(body) != len(right):
        return f"{url} got {len(body)} bytes of {len(right)} as if they were all"
    return None if body == right else f"{url} got a damaged body"
