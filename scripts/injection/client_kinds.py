"""What clients can do to the gateway."""

import select
import time
from collections.abc import Callable

from origin import reset

from . import asking
from .asking import Outcome
from .kind import Kind, Round
from .rig import DEADLINE_S
from .wire import Handler, after, sized

# More than the kernel buffers on both sides.
LARGE_BYTES = 12 << 20
LEFT = "left"


def pass_url(round: Round, number: int, place: str = "wire") -> str:
    return round.url(2 * number + 1, place)


def left(client: asking.Client, started: float, by_reset: bool = True) -> Outcome:
    if by_reset:
        reset(client.sock)
    else:
        client.sock.close()
    return Outcome(LEFT, time.monotonic() - started)


def end_of(client: asking.Client, url: str, started: float) -> Outcome:
    """How the gateway ended a client that it had no reason to be patient with."""
    with client:
        return asking.outcome(client, url, started)


def arranged(round: Round, ask: Callable[[int], Outcome], answers: dict[str, Handler]) -> tuple[list[Outcome], list[str]]:
    """All of them at once, with the origin answering each URL as it is told."""
    for url, handler in answers.items():
        round.rig.wire.arrange(url, handler)
    outcomes = round.together(ask)
    round.rig.wire.forget(list(answers))
    return outcomes, list(answers)


def half_closes(round: Round) -> tuple[list[Outcome], list[str]]:
    def ask(number: int) -> Outcome:
        url, started = round.url(number), time.monotonic()
        client = asking.connect(round.rig.port, DEADLINE_S)
        client.send(asking.request(url))
        client.half_close()
        return end_of(client, url, started)

    return arranged(round, ask, {round.url(number): after(0.08) for number in round.numbers})


def resets_within_the_answer(round: Round) -> tuple[list[Outcome], list[str]]:
    def ask(number: int) -> Outcome:
        url, started = round.url(number), time.monotonic()
        client = asking.connect(round.rig.port, DEADLINE_S)
        client.send(asking.request(url))
        while len(client.stream.buffer) < 10_000:
            if not client.stream.fill() or client.stream.buffer.startswith(b"HTTP/1.1 5"):
                return end_of(client, url, started)
        return left(client, started)

    # On a route that is cached the fetch goes on, so it may not be larger than what is stored.
    sizes = {round.url(number): LARGE_BYTES if number % 2 else 1 << 20 for number in round.numbers}
    return arranged(round, ask, {url: sized(size) for url, size in sizes.items()})


def never_reads(round: Round) -> tuple[list[Outcome], list[str]]:
    def ask(number: int) -> Outcome:
        url, started = pass_url(round, number), time.monotonic()
        client = asking.connect(round.rig.port, DEADLINE_S, receive_buffer=4096)
        client.send(asking.request(url))
        # A reset shows without reading; and nothing less will do, or the kernel would keep megabytes for a client
        # that has no use for them.
        watch = select.poll()
        watch.register(client.sock, 0)
        watch.poll(DEADLINE_S * 1000)
        return end_of(client, url, started)

    return arranged(round, ask, {pass_url(round, number): sized(LARGE_BYTES) for number in round.numbers})


def drips_a_request(round: Round) -> tuple[list[Outcome], list[str]]:
    def ask(number: int) -> Outcome:
        url, started = round.url(number), time.monotonic()
        client = asking.connect(round.rig.port, DEADLINE_S)
        for byte in asking.request(url):
            if not client.send(bytes([byte])):
                break
            # An answer before the request is complete is the refusal.
            if select.select([client.sock], [], [], 0.05)[0]:
                break
        return end_of(client, url, started)

    return round.together(ask), [round.url(number) for number in round.numbers]


def leaves_the_queue(round: Round) -> tuple[list[Outcome], list[str]]:
    """Slow requests hold all slots; of those that wait behind them most leave, by FIN or RST, and one stays."""

    def holder(number: int) -> Outcome:
        return round.ask(pass_url(round, number, "narrow") + "/holder")

    def stays(number: int) -> Outcome:
        time.sleep(0.1)
        return round.ask(pass_url(round, number, "narrow") + "/stays")

    def leaves(number: int) -> list[Outcome]:
        started, clients = time.monotonic(), []
        time.sleep(0.1)
        for place in range(4):
            clients.append(asking.connect(round.rig.port, DEADLINE_S))
            clients[-1].send(asking.request(f"{round.url(number + place, 'narrow')}/{number}-{place}"))
        time.sleep(0.1)
        return [left(client, started, place < 2) for place, client in enumerate(clients)]

    def one(part: tuple[int, int]) -> Outcome | list[Outcome]:
        return (holder, stays, leaves)[part[0]](part[1])

    for number in round.numbers:
        round.rig.narrow.arrange(pass_url(round, number, "narrow") + "/holder", after(0.4))
    parts = [round.workers.submit(one, (part, number)) for part in range(3) for number in round.numbers]
    outcomes = []
    for part in parts:
        result = part.result()
        outcomes += result if isinstance(result, list) else [result]
    round.rig.narrow.forget([pass_url(round, number, "narrow") + "/holder" for number in round.numbers])
    return outcomes, [pass_url(round, number, "narrow") for number in round.numbers]


def upload_stops(round: Round) -> tuple[list[Outcome], list[str]]:
    def ask(number: int) -> Outcome:
        url, started = pass_url(round, number), time.monotonic()
        client = asking.connect(round.rig.port, DEADLINE_S)
        client.send(asking.request(url, "Content-Length: 100000", method="POST"))
        for _ in range(10):
            client.send(bytes(1000))
            time.sleep(0.01)
        return end_of(client, url, started)

    return round.together(ask), [pass_url(round, number) for number in round.numbers]


def upload_resets(round: Round) -> tuple[list[Outcome], list[str]]:
    def ask(number: int) -> Outcome:
        url, started = pass_url(round, number), time.monotonic()
        client = asking.connect(round.rig.port, DEADLINE_S)
        client.send(asking.request(url, "Transfer-Encoding: chunked", method="POST"))
        for _ in range(10):
            client.send(b"3e8\r\n" + bytes(1000) + b"\r\n")
        return left(client, started)

    return round.together(ask), [pass_url(round, number) for number in round.numbers]


KINDS = [
    Kind("client half-closes", half_closes, ("200",)),
    Kind("client resets within the answer", resets_within_the_answer, (LEFT,)),
    Kind("client never reads", never_reads, ("cut", "reset"), at_once=5, few=3),
    Kind("client drips its request", drips_a_request, ("408 header_timeout",), at_once=25),
    Kind(
        "client leaves the queue",
        leaves_the_queue,
        (LEFT, "200", "503 upstream_overloaded", "503 upstream_queue_timeout"),
        at_once=4,
    ),
    Kind("upload stops", upload_stops, ("408 request_body_timeout",), at_once=20),
    Kind("upload is reset", upload_resets, (LEFT,)),
]
