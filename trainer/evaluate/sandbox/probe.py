"""Attempts to escape from the sandbox: the text of this file is the program of the self-test.

`ASKED` has the targets outside: a listening port and abstract socket, a secret file, a process id, and the limits.
`RESULT` maps each attempt to whether it succeeded. A test runs this file outside of a sandbox, where the attempts must
succeed.
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
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        client.connect("\0" + ASKED["abstract"])
        return True


def hypervisor() -> bool:
    """AF_VSOCK, a virtual machine's connection to its host, belongs to no network namespace."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM):
        return True


def interfaces() -> bool:
    return any(name != "lo" for _, name in socket.if_nameindex())


def secret_file() -> bool:
    with open(ASKED["secret"]) as file:
        return bool(file.read())


def other_files() -> bool:
    paths = {"/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/1/root", "/sys/kernel", "/home", "/var"}
    return any(os.path.exists(path) for path in paths)


def walk_up() -> bool:
    return sorted(os.listdir("/")) != sorted(os.listdir("/../..")) or bool(ASKED["outside"] & set(os.listdir("/")))


def environment() -> bool:
    return bool(set(os.environb) - {b"PATH", b"HOME", b"LC_ALL", b"LC_CTYPE"})


def write_outside() -> bool:
    directories = ["/", os.path.dirname(os.__file__), "/etc", "/dev", "/usr", "/lib"]
    for directory in directories:
        try:
            with open(os.path.join(directory, f"probe-{os.getpid()}"), "w"):
                pass
        except OSError:
            continue
        os.remove(os.path.join(directory, f"probe-{os.getpid()}"))
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
    with mmap.mmap(-1, ASKED["memory_bytes"] + 4096) as mapping:
        return len(mapping) > 0


def system_v_memory() -> bool:
    """An unmapped segment counts towards no process's limits."""
    handle = LIBC.shmget(0, ctypes.c_size_t(4096), 0o1600)  # IPC_PRIVATE, IPC_CREAT
    return bool(handle >= 0 and LIBC.shmctl(handle, 0, None) == 0)  # IPC_RMID


def system_v_messages() -> bool:
    handle = LIBC.msgget(0, 0o1600)
    return bool(handle >= 0 and LIBC.msgctl(handle, 0, None) == 0)


def system_v_semaphores() -> bool:
    handle = LIBC.semget(0, 1, 0o1600)
    return bool(handle >= 0 and LIBC.semctl(handle, 0, 0) == 0)


def posix_messages() -> bool:
    name = f"/probe-{os.getpid()}".encode()
    handle = LIBC.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, None)
    return bool(handle >= 0 and LIBC.mq_unlink(name) == 0)


def memory_file() -> bool:
    os.close(os.memfd_create("probe"))
    return True


def shared_memory() -> bool:
    return os.path.exists("/dev/shm")  # noqa: S108 (whether there is one)


def file_locks() -> bool:
    """The kernel allocates a record for each locked range."""
    with open(os.path.join(ASKED["scratch"], "locked"), "wb") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1)
        return True


def directory_events() -> bool:
    """Unread events queue up in the kernel."""
    handle = LIBC.inotify_init1(0)
    if handle < 0:
        return False
    os.close(handle)
    return True


def many_timers() -> bool:
    """The kernel allocates a record for each timer."""
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
    header, data = struct.pack("=Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    if LIBC.capget(header, data) != 0:
        return True
    return any(data.raw) or any(LIBC.prctl(23, number, 0, 0, 0) == 1 for number in range(64))


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
    open_numbers = []
    for number in range(3, 256):
        try:
            os.fstat(number)
        except OSError:
            continue
        open_numbers.append(number)
    return len(open_numbers) > 1  # the descriptor for the result


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
