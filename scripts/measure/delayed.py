"""A server that answers every request after a known time. Arguments: the port, and the time in milliseconds."""

import asyncio
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"


class Delayed(asyncio.Protocol):
    def __init__(self, secs: float):
        self.secs, self.unread = secs, b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self.unread = (self.unread + data).split(b"\r\n\r\n")
        for _ in requests:
            asyncio.get_running_loop().call_later(self.secs, self.transport.write, ANSWER)


async def main() -> None:
    port, ms = int(sys.argv[1]), float(sys.argv[2])
    server = await asyncio.get_running_loop().create_server(lambda: Delayed(ms / 1000), "127.0.0.1", port)
    await server.serve_forever()


asyncio.run(main())
