"""Tries to get out of the sandbox: the text of this file is the program of its self-test.

`ASKED` has what is outside: a port and an abstract socket that somebody listens on, a secret file, a process id, and
the limits. `RESULT` becomes what was tried, and whether it got through. It also runs outside of any sandbox, where it
gets through; a test holds it to that.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

ASKED: dict[str, Any] = globals().get("ASKED", {})
LIBC = ctypes.CDLL(None, use_errno=True)


def tcp() -> bool:
    with socket.create_connection(("127.0.0.1", ASKED["port"]), timeout=1):
        return True


def abstract_socket() -> bool:
    with socket.socket(socket.AF_UNIX) as other:
        other.settimeout(1)
        other.connect("\0" + ASKED["abstract"])
        return True


def hypervisor() -> bool:
    """A virtual machine's line to its host belongs to no network namespace."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM):
        return True


def interfaces() -> bool:
    return any(name != "lo" for _, name in socket.if_nameindex())


def secret_file() -> bool:
    with open(ASKED["secret"]) as file:
        return bool(file.read())


def other_files() -> bool:
    shown = {"/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/1/root", "/sys/kernel", "/home", "/var"}
    return any(os.path.exists(path) for path in shown)


def walk_up() -> bool:
    return sorted(os.listdir("/")) != sorted(os.listdir("/../..")) or bool(ASKED["outside"] & set(os.listdir("/")))


def environment() -> bool:
    return bool(set(os.environb) - {b"PATH", b"HOME", b"LC_ALL", b"LC_CTYPE"})


def write_outside() -> bool:
    places = ["/", os.path.dirname(os.__file__), "/etc", "/dev", "/usr", "/lib"]
    for place in places:
        try:
            with open(os.path.join(place, f"probe-{os.getpid()}"), "w"):
                pass
        except OSError:
            continue
        os.remove(os.path.join(place, f"probe-{os.getpid()}"))
        return True
    return False


def write_python() -> bool:
    with open(os.__file__, "r+b"):
        return True


def large_file() -> bool:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with open(os.path.join(ASKED["scratch"], "large"), "wb") as file:
        file.write(bytes(ASKED["file_bytes"] + 4096))
    return True


def full_disk() -> bool:
    written = 0
    while written <= ASKED["tmp_bytes"]:
        with open(os.path.join(ASKED["scratch"], f"piece-{written}"), "wb", buffering=0) as file:
            written += file.write(bytes(ASKED["file_bytes"] // 2))
    return True


def execute_file() -> bool:
    path = os.path.join(ASKED["scratch"], "script")
    with open(path, "w") as file:
        file.write("#!/bin/sh\n")
    os.chmod(path, 0o700)
    return os.access(path, os.X_OK)


def fork() -> bool:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return True


def thread() -> bool:
    started = threading.Thread(target=int)
    started.start()
    started.join()
    return True


def memory() -> bool:
    return len(bytearray(ASKED["memory_bytes"] + 1)) > 0


def mapped_memory() -> bool:
    with mmap.mmap(-1, ASKED["memory_bytes"] + 4096) as found:
        return len(found) > 0


def system_v_memory() -> bool:
    """A segment counts for nobody while nobody has it mapped."""
    found = LIBC.shmget(0, ctypes.c_size_t(4096), 0o1600)  # IPC_PRIVATE, IPC_CREAT
    return bool(found >= 0 and LIBC.shmctl(found, 0, None) == 0)  # IPC_RMID


def system_v_messages() -> bool:
    found = LIBC.msgget(0, 0o1600)
    return bool(found >= 0 and LIBC.msgctl(found, 0, None) == 0)


def system_v_semaphores() -> bool:
    found = LIBC.semget(0, 1, 0o1600)
    return bool(found >= 0 and LIBC.semctl(found, 0, 0) == 0)


def posix_messages() -> bool:
    name = f"/probe-{os.getpid()}".encode()
    found = LIBC.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, None)
    return bool(found >= 0 and LIBC.mq_unlink(name) == 0)


def memory_file() -> bool:
    os.close(os.memfd_create("probe"))
    return True


def shared_memory() -> bool:
    return os.path.exists("/dev/shm")  # noqa: S108 (whether there is one)


def file_locks() -> bool:
    """The kernel keeps a record for each range that is locked."""
    with open(os.path.join(ASKED["scratch"], "locked"), "wb") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1)
        return True


def directory_events() -> bool:
    """What nobody reads waits in the kernel."""
    found = LIBC.inotify_init1(0)
    if found < 0:
        return False
    os.close(found)
    return True


def many_timers() -> bool:
    """The kernel keeps a record for each."""
    made: list[ctypes.c_void_p] = []
    while len(made) < 65:
        timer = ctypes.c_void_p()
        if LIBC.timer_create(1, None, ctypes.byref(timer)) != 0:  # CLOCK_MONOTONIC
            break
        made.append(timer)
    for timer in made:
        LIBC.timer_delete(timer)
    return len(made) > 64


def other_processes() -> bool:
    os.kill(ASKED["process"], 0)
    return True


def become_root() -> bool:
    os.setresuid(0, 0, 0)
    return True


def capabilities() -> bool:
    header, found = struct.pack("=Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    if LIBC.capget(header, found) != 0:
        return True
    return any(found.raw) or any(LIBC.prctl(23, number, 0, 0, 0) == 1 for number in range(64))


def privileges() -> bool:
    return bool(LIBC.prctl(39, 0, 0, 0, 0) != 1)  # PR_GET_NO_NEW_PRIVS


def raise_limits() -> bool:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard + 1 if hard != resource.RLIM_INFINITY else hard))
    return True


def new_namespace() -> bool:
    return any(LIBC.unshare(flag) == 0 for flag in (0x10000000, 0x20000, 0x40000000))


def mount() -> bool:
    return bool(LIBC.mount(b"tmpfs", b"/work", b"tmpfs", 0, None) == 0)


def descriptors() -> bool:
    found = []
    for number in range(3, 256):
        try:
            os.fstat(number)
        except OSError:
            continue
        found.append(number)
    return len(found) > 1  # the one that the result is said on


ATTEMPTS: tuple[Callable[[], bool], ...] = (
    *(tcp, abstract_socket, hypervisor, interfaces, secret_file, other_files, walk_up, environment, write_outside),
    *(
        write_python,
        large_file,
        full_disk,
        execute_file,
        fork,
        thread,
        memory,
        mapped_memory,
        system_v_memory,
        system_v_messages,
        system_v_semaphores,
        posix_messages,
        memory_file,
        shared_memory,
        file_locks,
        directory_events,
        many_timers,
        other_processes,
        become_root,
    ),
    *(capabilities, privileges, raise_limits, new_namespace, mount, descriptors),
)


def got_through(attempt: Callable[[], bool]) -> bool:
    try:
        return attempt()
    except (OSError, MemoryError, ValueError, OverflowError, RuntimeError):
        return False


if __name__ == "__main__":
    ASKED["outside"] = set(ASKED["outside"])
    RESULT = {attempt.__name__: got_through(attempt) for attempt in ATTEMPTS}
