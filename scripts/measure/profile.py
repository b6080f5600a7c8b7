"""Where a server's CPU time goes: samples by the kernel's own clock, sorted into who wrote the code."""

import re
import subprocess
from collections import Counter
from pathlib import Path

from .process import Server, fail, family, popen, stop

# Samples a second: no divisor of anything that happens at round intervals.
RATE = 3989
# The first that matches, of `library symbol`.
PARTS = (
    ("kernel", r"^\[(kernel|guest)|^\[unknown\] \[k\]|\.ko\b"),
    ("clock", r"^\[vdso\]|clock_gettime|Timespec|clock::"),
    ("allocator", r" (_?mi_|mi_|malloc|free|calloc|realloc|posix_memalign|cfree|_int_)|alloc::alloc"),
    ("event loop", r"monoio|io_uring|epoll"),
    ("copying", r" _*mem(cpy|move|set|cmp|chr)"),
)


def sort(library: str, symbol: str) -> str:
    text = f"{library} {symbol}"
    return next((part for part, pattern in PARTS if re.search(pattern, text)), "own code")


def parts(report: str) -> dict[str, float]:
    """Shares, of what `perf report` lists as `share;library;symbol`."""
    found: Counter[str] = Counter()
    for line in report.splitlines():
        fields = [field.strip() for field in line.split(";", 2)]
        if len(fields) == 3 and re.fullmatch(r"[0-9.]+%", fields[0]):
            found[sort(fields[1], fields[2])] += float(fields[0][:-1]) / 100
    total = sum(found.values())
    if not 0.9 < total < 1.1:
        fail(f"the profile adds up to {total:.0%}:\n{report[:2000]}")
    return {part: share / total for part, share in found.items()}


class Profile:
    """Records a server while the block lasts."""

    def __init__(self, server: Server, directory: Path):
        self.file = directory / "perf.data"
        pids = ",".join(str(pid) for pid in family(server.process.pid))
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", RATE, "-o", self.file, "-p", pids]
        self.command = command

    def __enter__(self) -> "Profile":
        self.process = popen(self.command, None, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(2)
        self.process.wait(30)
        stop(self.process)

    def parts(self) -> dict[str, float]:
        command = ["perf", "report", "-i", self.file, "--stdio", "-q", "-F", "overhead,dso,sym", "-t", ";", "-g", "none"]
        said = subprocess.run([str(part) for part in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if said.returncode:
            fail(f"perf report: {said.stderr}")
        return parts(said.stdout)
