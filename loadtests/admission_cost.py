"""What the gate costs a request, in microseconds of one core: nothing waiting, and with many flows waiting.

.venv/bin/python loadtests/admission_cost.py
"""

from __future__ import annotations

import asyncio
import time

from service.admission.policy import Policy
from service.admission.queue import AdmissionQueue
from service.admission.request import AdmissionRequest

ROUNDS = 50_000
DEADLINE_S = 3600.0


async def empty_queue() -> float:
    """Enter, first token, leave; 16 flows in turn, half of the places taken."""
    gate = AdmissionQueue(Policy(width=64, common=60, slots=8, queue_size=1024, prefill=16384))
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    tickets = [AdmissionRequest("p", f"k{number % 4}", f"a{number % 4}", 200, prompt=50) for number in range(16)]
    for ticket in tickets * 2:
        (await gate.enter(ticket, deadline)).first_token()
    began = time.perf_counter()
    for number in range(ROUNDS):
        place = await gate.enter(tickets[number % 16], deadline)
        place.first_token()
        place.leave(180)
    return (time.perf_counter() - began) / ROUNDS * 1e6


async def full_queue(flows: int, waiting: int, slots: int | None = None) -> float:
    """One leaves, the next comes in, another arrives: with ``waiting`` requests of ``flows`` keys in the queue.

    With ``slots``, each key asks for an adapter of its own, and so many adapters may be in the engine at once.
    """
    gate = AdmissionQueue(Policy(width=64, common=60, slots=slots, queue_size=waiting + 128, queue_share=1.0))
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    done = 0
    ended = asyncio.Event()

    async def client(number: int) -> None:
        nonlocal done
        while done < ROUNDS // (10 if slots is None else 50):
            key = f"k{number % flows}"
            place = await gate.enter(AdmissionRequest("p", key, None if slots is None else key, 200), deadline)
            await asyncio.sleep(0)
            place.leave(180)
            done += 1
        ended.set()

    clients = [asyncio.create_task(client(number)) for number in range(waiting + 60)]
    await asyncio.sleep(0)
    began = time.perf_counter()
    await ended.wait()
    span = time.perf_counter() - began
    for task in clients:
        task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return span / done * 1e6


async def main() -> None:
    """Print all figures."""
    print(f"empty queue: {await empty_queue():.1f} µs a request")
    for flows, waiting in ((1, 500), (16, 500), (500, 500)):
        print(f"{waiting} waiting in {flows} flows: {await full_queue(flows, waiting):.1f} µs a request")
    took = await full_queue(500, 500, slots=8)
    print(f"500 waiting in 500 flows, each for an adapter of its own, on 8 slots: {took:.1f} µs a request")


if __name__ == "__main__":
    asyncio.run(main())
