"""What an origin on the other end of the wire can do to the gateway."""

import time
from collections.abc import Callable

from .asking import Outcome
from .kind import Kind, Round, jitter
from .rig import DEADLINE_S
from .wire import FRESH, Handler, Talk, good

# So long after what was sent comes what breaks it, so that it is not one read for the gateway.
MOMENT_S = 0.02


# --- Handlers --------------------------------------------------------------------------------------------------------


def says(sent: Callable[[Talk], bytes], end: Callable[[Talk], None]) -> Handler:
    def answer(talk: Talk) -> None:
        if data := sent(talk):
            talk.send(data)
            talk.pause(MOMENT_S)
        end(talk)

    return answer


def nothing(_talk: Talk) -> bytes:
    return b""


def part_of_head(talk: Talk) -> bytes:
    return talk.head(FRESH, "Content-Length: 2000")[:-20]


def head_alone(talk: Talk) -> bytes:
    return talk.head(FRESH, "Content-Length: 2000")


def half(talk: Talk) -> bytes:
    return talk.head(FRESH, "Content-Length: 2000") + talk.body()[:1000]


def chunked(talk: Talk) -> bytes:
    """Everything but the last chunk."""
    body = talk.body()
    return talk.head(FRESH, "Transfer-Encoding: chunked") + b"%x\r\n%s\r\n" % (len(body), body)


def half_a_chunk(talk: Talk) -> bytes:
    return talk.head(FRESH, "Transfer-Encoding: chunked") + b"7d0\r\n" + talk.body()[:1000]


def broken_chunk(talk: Talk) -> bytes:
    return chunked(talk) + b"zz\r\n\r\n"


def fin(talk: Talk) -> None:
    talk.fin()


def rst(talk: Talk) -> None:
    talk.rst()


def hold(talk: Talk) -> None:
    """Says nothing more, until the gateway leaves."""
    talk.pause(DEADLINE_S)


def drip(sent: Callable[[Talk], bytes], every_s: float) -> Handler:
    """A byte at a time, well within the time-out for silence."""

    def answer(talk: Talk) -> None:
        data = sent(talk)
        head, _, body = data.partition(b"\r\n\r\n")
        if body:
            talk.send(head + b"\r\n\r\n")
        for byte in body or head:
            talk.send(bytes([byte]))
            talk.pause(every_s)

    return answer


def endless_head(talk: Talk) -> None:
    talk.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        talk.send(b"X-And-So-On: and so on, and so on\r\n" * 20)


def interim_flood(talk: Talk) -> None:
    for _ in range(100_000):
        talk.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")


# --- Kinds -----------------------------------------------------------------------------------------------------------


def does(handler: Handler, copies: int = 2):
    """Two clients want the same, so that on a route that is cached one of them waits for the other's fetch."""

    def run(round: Round) -> tuple[list[Outcome], list[str]]:
        urls = [round.url(number) for number in round.numbers]
        for url in urls:
            round.rig.wire.arrange(url, handler)
        outcomes = round.together(lambda number: round.ask(round.url(number)), copies)
        round.rig.wire.forget(urls)
        return outcomes, urls

    return run


def lets_in(mode: str):
    """Trouble before there is a connection."""

    def run(round: Round) -> tuple[list[Outcome], list[str]]:
        round.rig.shut.set_mode(mode)
        outcomes = round.together(lambda number: round.ask(round.url(number, "shut")), 2)
        round.rig.shut.set_mode("serve")
        return outcomes, [round.url(number, "shut") for number in round.numbers]

    return run


def spoils_the_pool(spoil: Callable[[Talk], None]):
    """The answer is right, and its connection is spoilt when the gateway has just put it into its pool. The next
    request comes at the same moment, or finds that the connection ends as it uses it."""

    def run(round: Round) -> tuple[list[Outcome], list[str]]:
        def answer(talk: Talk) -> None:
            good(talk)
            time.sleep(jitter(0.003))
            spoil(talk)

        def dooms(talk: Talk) -> None:
            # Its next request is the one that meets the end.
            good(talk)
            talk.stream.until(b"\r\n\r\n")
            spoil(talk)

        def twice(number: int) -> list[Outcome]:
            first = round.ask(round.url(number))
            time.sleep(jitter(0.004))
            return [first, round.ask(round.url(number) + "/next")]

        urls = [round.url(number) for number in round.numbers]
        for number, url in zip(round.numbers, urls):
            round.rig.wire.arrange(url, answer if number % 4 < 2 else dooms)
        outcomes = round.together(twice)
        round.rig.wire.forget(urls)
        return outcomes, urls

    return run


def adds_bytes(talk: Talk) -> None:
    poison = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 6\r\n\r\npoison"
    body = talk.body()
    talk.send(talk.head(FRESH, f"Content-Length: {len(body)}") + body + (poison if talk.number % 2 else b"\r\n"))
    if talk.number % 2 == 0:
        talk.pause(0.002)
        talk.send(poison)


def extra_bytes(round: Round) -> tuple[list[Outcome], list[str]]:
    def twice(number: int) -> list[Outcome]:
        return [round.ask(round.url(number)), round.ask(round.url(number) + "/next")]

    urls = [round.url(number) for number in round.numbers]
    for url in urls:
        round.rig.wire.arrange(url, adds_bytes)
    outcomes = round.together(twice)
    round.rig.wire.forget(urls)
    return outcomes, urls


def answers_early(round: Round) -> tuple[list[Outcome], list[str]]:
    """The answer comes while most of the request is still on its way, and the rest of it is never read."""

    def answer(talk: Talk) -> None:
        good(talk)
        talk.pause(MOMENT_S)
        talk.fin()

    def upload(number: int) -> Outcome:
        return round.ask(round.url(2 * number + 1), method="POST", body=bytes(512 * 1024))

    urls = [round.url(2 * number + 1) for number in round.numbers]
    for url in urls:
        round.rig.wire.arrange(url, answer, early=True)
    outcomes = round.together(upload)
    round.rig.wire.forget(urls)
    return outcomes, urls


# A response that began may break off: then it ends in a way that nobody takes for its end, or nothing of it was sent
# yet.
BROKEN = ("cut", "closed", "reset", "502 *")

KINDS = [
    Kind("refused", lets_in("refuse"), ("502 upstream_refused",), alone=True),
    Kind("black hole", lets_in("hole"), ("504 upstream_connect_timeout",), alone=True),
    Kind("reset at once", lets_in("reset"), ("502 *",), alone=True),
    Kind("RST before the head", does(says(nothing, rst)), ("502 *",)),
    Kind("RST within the head", does(says(part_of_head, rst)), ("502 *",)),
    Kind("RST after the head", does(says(head_alone, rst)), BROKEN),
    Kind("RST within the body", does(says(half, rst)), BROKEN),
    Kind("FIN before the head", does(says(nothing, fin)), ("502 *",)),
    Kind("FIN within the head", does(says(part_of_head, fin)), ("502 *",)),
    Kind("FIN within the body", does(says(half, fin)), BROKEN),
    Kind("FIN within a chunk", does(says(half_a_chunk, fin)), BROKEN),
    Kind("no last chunk", does(says(chunked, fin)), BROKEN),
    Kind("broken chunk size", does(says(broken_chunk, fin)), BROKEN),
    Kind("silence before the head", does(says(nothing, hold)), ("504 upstream_timeout",)),
    Kind("silence within the body", does(says(half, hold)), (*BROKEN, "504 *")),
    Kind("dripping head", does(drip(lambda talk: talk.head(FRESH, "X: " + "x" * 200), 0.1)), ("504 *",)),
    Kind(
        "dripping body",
        does(drip(lambda talk: talk.head(FRESH, "Content-Length: 2000") + talk.body(), 0.1)),
        (*BROKEN, "504 *"),
        at_once=25,
    ),
    Kind("endless head", does(endless_head), ("502 *",)),
    Kind("flood of 1xx", does(interim_flood), ("502 upstream_interim_flood",)),
    Kind("FIN on an idle connection", spoils_the_pool(fin), ("200",), few=8),
    Kind("RST on an idle connection", spoils_the_pool(rst), ("200",), few=8),
    Kind("bytes after a response", extra_bytes, ("200",), few=8),
    # The rest of the request meets a closed socket, and so may what reads the answer.
    Kind("answer before the request", answers_early, ("200", "cut", "closed", "reset", "502 *")),
]
