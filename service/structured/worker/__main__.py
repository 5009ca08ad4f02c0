"""The trial process; the gateway starts it.

    python -m service.structured.worker --base DIRECTORY --cpu-s N --memory-mib N

It loads xgrammar and the base model's vocabulary once and forks a child for each trial. A child has a bound of CPU time
and memory that the kernel holds it to, so whatever a specification does to xgrammar's native code (an endless loop, a
stack that overflows, all memory) ends that child and nothing else.

Lines of JSON come on standard input and go to standard output: `{"id", "kind", "text", "parts", "wholes"}` asks for a
trial, `{"cancel": id}` ends one, and each is answered by one line. The first line out is `{"ready": true}` or
`{"error"}`. The process ends when its standard input does: with the gateway, however that went.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import selectors
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from service.structured.parts import GrammarPart
from service.structured.worker.native import NoTokenizer, load_native, load_tokenizer
from service.structured.worker.trial import Costs, Invalid, Vocabulary, try_out

MIB: Final = 1024 * 1024
LOWER_PRIORITY_AFTER_S: Final = 0.1
"""A trial that takes longer continues at a lower priority, so that it does not slow an engine on the same cores."""
BACKGROUND_NICE: Final = 10
CHUNK: Final = 1 << 20


@dataclass(slots=True)
class _Child:
    job: object
    pid: int
    pipe: int
    began: float
    low_priority: bool = False
    output: bytes = b""


class ForkServer:
    """Forks a child process for each job and reports its result."""

    def __init__(self, native: Any, vocabulary: Vocabulary, cpu_s: float, memory: int) -> None:
        self._native = native
        self._vocabulary = vocabulary
        self._cpu_s = cpu_s
        self._memory = memory
        self._children: dict[int, _Child] = {}
        """By their pipe."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(0, selectors.EVENT_READ)
        self._input = b""

    def run(self) -> None:
        """Serve until standard input ends, then end every child."""
        while True:
            for key, _ in self._selector.select(self._until_next_demotion()):
                if key.fd == 0:
                    data = os.read(0, CHUNK)
                    if not data:
                        for child in self._children.values():
                            os.kill(child.pid, signal.SIGKILL)
                        return
                    self._take(data)
                elif key.fd in self._children:
                    self._read_child(self._children[key.fd])
            self._lower_priorities()

    def _take(self, data: bytes) -> None:
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            message = orjson.loads(line)
            if "cancel" not in message:
                self._fork(message)
                continue
            for child in list(self._children.values()):
                if child.job == message["cancel"]:
                    os.kill(child.pid, signal.SIGKILL)

    def _fork(self, job: dict[str, Any]) -> None:
        ours, theirs = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(ours)
            os.close(theirs)
            _send({"id": job["id"], "outcome": "unavailable", "reason": str(error)})
            return
        if pid == 0:
            try:
                os.close(ours)
                self._run_trial(job, theirs)
            finally:
                os._exit(1)
        os.close(theirs)
        self._children[ours] = _Child(job["id"], pid, ours, time.monotonic())
        self._selector.register(ours, selectors.EVENT_READ)

    def _run_trial(self, job: dict[str, Any], pipe: int) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        self._bound()
        try:
            wholes = job["wholes"]
            parts = [GrammarPart(kind, text, wholes[whole]) for kind, text, whole in job["parts"]]
            costs: Costs = try_out(self._native, self._vocabulary, job["kind"], job["text"], parts)
            answer = {"outcome": "ok", **asdict(costs)}
        except Invalid as error:
            answer = {"outcome": "invalid", "reason": str(error)}
        except MemoryError:
            answer = {"outcome": "memory"}
        os.write(pipe, orjson.dumps(answer))
        os._exit(0)

    def _bound(self) -> None:
        """Set the kernel's limits of CPU time and memory for this process."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        memory = pages * resource.getpagesize() + self._memory
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        seconds = int(self._cpu_s) + 2  # behind the timer, should that be caught
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, self._cpu_s)

    def _read_child(self, child: _Child) -> None:
        data = os.read(child.pipe, CHUNK)
        child.output += data
        if data:
            return
        self._selector.unregister(child.pipe)
        os.close(child.pipe)
        del self._children[child.pipe]
        _, status, usage = os.wait4(child.pid, 0)
        answer: dict[str, Any] = {"id": child.job, "cpu_s": usage.ru_utime + usage.ru_stime}
        if child.output:
            answer |= orjson.loads(child.output)
        else:
            ended_by = status & 0x7F
            if ended_by in (signal.SIGPROF, signal.SIGXCPU):
                answer["outcome"] = "slow"
            else:  # the kernel short of memory kills, a failed allocation aborts
                answer["outcome"] = "memory" if ended_by in (signal.SIGKILL, signal.SIGABRT) else "crash"
        _send(answer)

    def _until_next_demotion(self) -> float | None:
        now = time.monotonic()
        left = [
            child.began + LOWER_PRIORITY_AFTER_S - now for child in self._children.values() if not child.low_priority
        ]
        return max(min(left), 0.0) if left else None

    def _lower_priorities(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            if not child.low_priority and now - child.began >= LOWER_PRIORITY_AFTER_S:
                child.low_priority = True
                with suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, child.pid, BACKGROUND_NICE)


def _send(answer: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
    sys.stdout.buffer.flush()


def main() -> int:
    """Load the vocabulary, report that it is ready, and serve."""
    parser = argparse.ArgumentParser(prog="python -m service.structured.worker")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--cpu-s", type=float, required=True)
    parser.add_argument("--memory-mib", type=int, required=True)
    arguments = parser.parse_args()
    try:
        native = load_native()
        vocabulary = Vocabulary(load_tokenizer(native, arguments.base))
    except (ImportError, NoTokenizer, AttributeError, OSError) as error:
        _send({"error": f"{type(error).__name__}: {error}"})
        return 3
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that it shares with this process
    _send({"ready": True})
    ForkServer(native, vocabulary, arguments.cpu_s, arguments.memory_mib * MIB).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
