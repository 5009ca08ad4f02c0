"""The inside of the sandbox: a script of its own that makes the walls and then becomes the program.

Run as `python -I -S -B inner.py STATUS_FD LIFELINE_FD` with a length (8 bytes, little-endian), a plan (JSON of that
length) and whatever the program reads on stdin. Three processes: the first stays outside and maps users, the second
holds the user namespace and watches the clock, the third is the only process of its PID namespace: it builds a root of
a few read-only files, gives everything away and becomes the program. It is one file, since with -I
there is nothing beside it to import.

The order matters and is that of bubblewrap and of user_namespaces(7), mount_namespaces(7), capabilities(7).
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Final

NOBODY: Final = 65534
# sched.h
NEW_NS, NEW_CGROUP, NEW_UTS, NEW_IPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEW_USER, NEW_PID, NEW_NET, NEW_TIME = 0x10000000, 0x20000000, 0x40000000, 0x80
NAMESPACES: Final = (NEW_USER, NEW_NS, NEW_PID, NEW_NET, NEW_IPC, NEW_UTS, NEW_CGROUP)
# sys/mount.h
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC, REMOUNT = 1, 2, 4, 8, 32
NO_ATIME, NO_DIR_ATIME, BIND, RECURSIVE, PRIVATE, REL_ATIME = 1024, 2048, 4096, 16384, 1 << 18, 1 << 21
STAT_REL_ATIME, DETACH = 4096, 2
# linux/prctl.h
DEATH_SIGNAL, BOUNDING_DROP, SECURE_BITS, NO_NEW_PRIVS = 1, 24, 28, 38
ROOT_IS_NOBODY: Final = 0x1 | 0x2 | 0x20 | 0x40 | 0x80
"""NOROOT and its lock, the lock of KEEP_CAPS, NO_CAP_AMBIENT_RAISE and its lock."""
PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}
# seccomp.h
ALLOW, DENY, NOT_THERE = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38
NOT_EQUAL, MASKED_EQUAL = 1, 7
DENIED: Final = (
    *("socket", "socketcall", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("unshare", "setns", "mount", "umount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "name_to_handle_at", "open_by_handle_at"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "process_madvise"),
    *("keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd", "fanotify_init", "syslog"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff"),
    *("acct", "quotactl", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "personality", "vmsplice"),
    *("modify_ldt", "ioperm", "iopl", "uselib", "mbind", "move_pages", "migrate_pages", "set_mempolicy", "nice"),
    # memory that no limit of a process counts: it outlives its mapping, or is the kernel's own
    *("shmget", "shmat", "shmctl", "shmdt", "msgget", "msgsnd", "msgrcv", "msgctl", "semget", "semop", "semctl"),
    *("semtimedop", "ipc", "mq_open", "mq_unlink", "memfd_create", "memfd_secret", "inotify_init", "inotify_init1"),
    *("landlock_create_ruleset", "io_setup", "setsockopt", "sendmsg", "sendmmsg"),  # larger buffers; files in flight
)
"""What no Python program of a suite needs, and where kernels had their holes."""
LOCKS: Final = (6, 7, 37, 38)
"""fcntl(2)'s F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW: the kernel keeps a record for each range, unbounded."""
LOW_HALF: Final = 0xFFFFFFFF
"""What the kernel looks at of an int; the register may hold anything above it."""
UNIX: Final = 1
"""The one family of socketpair(2) whose buffers are small and whose module is always loaded."""
PENDING_SIGNALS: Final = 64
"""Signals that wait, and timers: the kernel keeps a record for each."""
WATCH_S: Final = 0.02
"""How often the memory of a program is looked at."""


class SetupFailed(Exception):
    """A wall could not be made."""


class SeccompComparison(ctypes.Structure):
    """libseccomp's scmp_arg_cmp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


LIBC: Final = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """A function of libc that gives 0 when it worked. Raises Failed."""
    if getattr(LIBC, name)(*arguments) != 0:
        shown = ", ".join(repr(argument)[:80] for argument in arguments)
        raise SetupFailed(f"{name}({shown}): {os.strerror(ctypes.get_errno())}")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2). Raises Failed."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


def main() -> int:
    """The first process: starts the second in namespaces of its own, and says who is who in there."""
    status, lifeline = int(sys.argv[1]), int(sys.argv[2])
    plan = json.loads(_read_exactly(0, int.from_bytes(_read_exactly(0, 8), "little")))
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    outside = os.geteuid()
    child = os.fork()
    if child == 0:
        return _supervise(plan, status, lifeline, (ready_write, go_read), root=outside == 0)
    os.close(ready_write)
    if os.read(ready_read, 1) == b"1":
        try:
            _map_users(child, outside, os.getegid())
        except OSError as error:
            _report_status(status, {"setup": f"the users of a namespace cannot be mapped: {error}"})
            os.kill(child, signal.SIGKILL)
        else:
            os.write(go_write, b"1")
    os.waitpid(child, 0)
    return 0


def _map_users(pid: int, user: int, group: int) -> None:
    """Inside, the program is nobody. A caller that is root outside keeps that for the making of the walls alone."""
    if user == 0:
        users = groups = f"0 0 1\n{NOBODY} {NOBODY} 1\n"
    else:
        users, groups = f"{NOBODY} {user} 1\n", f"{NOBODY} {group} 1\n"
        _write(f"/proc/{pid}/setgroups", "deny")
    _write(f"/proc/{pid}/uid_map", users)
    _write(f"/proc/{pid}/gid_map", groups)


def _supervise(plan: dict[str, Any], status: int, lifeline: int, pipes: tuple[int, int], *, root: bool) -> int:
    """Watches the third and ends it in time: nothing that runs in there can reach this one."""
    ready, go = pipes
    try:
        call("unshare", sum(NAMESPACES))
    except SetupFailed as error:
        _report_status(status, {"setup": f"this machine gives no namespaces ({error})"})
        return 1
    os.write(ready, b"1")
    if os.read(go, 1) != b"1":
        return 1
    errors_read, errors_write = os.pipe2(os.O_CLOEXEC)
    processes = os.open("/proc", os.O_PATH | os.O_CLOEXEC)  # the third takes the root away from this one, too
    program = os.fork()
    if program == 0:
        _become_program(plan, errors_write, root=root)
    os.close(errors_write)
    for number in (0, 1):
        os.close(number)  # whoever reads what the program says sees its end
    failed = _read_exactly(errors_read, 4096, short=True).decode("utf-8", "replace")
    ended = None
    if not failed:
        try:
            _read_text(f"{os.getpid()}/task/{os.getpid()}/children", processes)  # a kernel may be built without these
            ended = _watch(program, lifeline, plan["wall_s"], lambda: _resident(processes, program), plan["limits"])
        except OSError as error:
            failed = f"the memory of the program cannot be watched: {error}"
            os.kill(program, signal.SIGKILL)
    _, code, used = os.wait4(program, 0)
    result = {
        "setup": failed or None,
        "code": os.waitstatus_to_exitcode(code),
        "timed_out": ended == "time",
        "out_of_memory": ended == "memory",
        "cpu_s": used.ru_utime + used.ru_stime,
        "filtered": plan["seccomp"] is not None,
    }
    _report_status(status, result)
    return 0


def _watch(
    program: int, lifeline: int, wall_s: float, resident: Callable[[], int], limits: dict[str, int]
) -> str | None:
    """Wait for the program, and kill it where it must not go on.

    Returns:
        "time" where its time was over, or nobody is left who would want to know; "memory" where it and all that it
        started held more together than the limit, which for each process alone is its address space; None where it
        ended by itself.
    """
    handle = os.pidfd_open(program)
    waiting = select.poll()
    waiting.register(handle, select.POLLIN)
    waiting.register(lifeline, select.POLLIN | select.POLLHUP)
    deadline, ended = time.monotonic() + wall_s, None
    while ended is None:
        left_s = max(0.0, min(WATCH_S, deadline - time.monotonic()))
        found = {number for number, _ in waiting.poll(left_s * 1000)}
        if handle in found:
            break
        if found or time.monotonic() >= deadline:
            ended = "time"
        elif resident() > limits["memory_bytes"]:
            ended = "memory"
    os.close(handle)
    if ended is not None:
        os.kill(program, signal.SIGKILL)  # it is the first of its PID namespace: all that it started goes with it
    return ended


def _resident(processes: int, program: int) -> int:
    """Bytes that a process and all its descendants hold in memory, what they share counted for each.

    Args:
        processes: A descriptor of /proc.

    Raises:
        OSError: Not of a process that has gone meanwhile.
    """
    total, left = 0, [str(program)]
    while left:
        process = left.pop()
        try:
            total += int(_read_text(f"{process}/statm", processes).split()[1]) * resource.getpagesize()
            threads = os.open(f"{process}/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=processes)
            try:
                for thread in os.listdir(threads):
                    left += _read_text(f"{thread}/children", threads).split()
            finally:
                os.close(threads)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def _read_text(path: str, directory: int) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(descriptor, 65_536).decode("ascii")
    finally:
        os.close(descriptor)


def _become_program(plan: dict[str, Any], errors: int, *, root: bool) -> None:
    """Make the walls and become the program; never returns."""
    try:
        call("prctl", DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
        seccomp = None if plan["seccomp"] is None else ctypes.CDLL(plan["seccomp"])
        os.setsid()
        _no_more_namespaces()
        _build_root(plan)
        call("sethostname", b"sandbox", 7)
        _give_up_rights(root=root)
        _limit(plan["limits"], root=root)
        nothing = os.open("/dev/null", os.O_WRONLY)
        os.dup2(nothing, 2)
        os.closerange(3, errors)
        os.closerange(errors + 1, 65536)
        if seccomp is not None:
            _filter(seccomp)
        os.execve(plan["argv"][0], plan["argv"], {"PATH": "/nowhere", "HOME": "/work", "LC_ALL": "C.UTF-8"})
    except (SetupFailed, OSError, ValueError, AttributeError) as error:
        os.write(errors, f"{type(error).__name__}: {error}"[:4000].encode())
    finally:
        os._exit(97)


def _no_more_namespaces() -> None:
    """A user namespace in this one would give its rights back; where /proc may not be written the filter forbids it."""
    try:
        _write("/proc/sys/user/max_user_namespaces", "0")
    except OSError:
        return


def _build_root(plan: dict[str, Any]) -> None:
    """A root on a tmpfs, with the plan's files bound read-only, and one small directory to write in."""
    os.umask(0o022)  # the trainer's keeps others out; in here the program is one of the others
    mount(None, "/", None, RECURSIVE | PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", NO_SUID | NO_DEV, "size=1m,mode=755")  # noqa: S108 (a mount point, ours alone)
    os.mkdir("/tmp/old")  # noqa: S108
    os.chdir("/tmp")  # noqa: S108
    number = PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise SetupFailed(f"pivot_root's number is not known on {platform.machine()}")
    call("syscall", number, b".", b"old")
    os.chdir("/")
    for source, target in plan["binds"]:
        _bind("/old" + source, target)
    for target in plan["masked"]:
        mount("tmpfs", target, "tmpfs", READ_ONLY | NO_SUID | NO_DEV | NO_EXEC, "size=4k,mode=555")
    os.mkdir("/work")
    options = f"size={plan['limits']['tmp_bytes']},nr_inodes=256,mode=700,uid={NOBODY},gid={NOBODY}"
    mount("tmpfs", "/work", "tmpfs", NO_SUID | NO_DEV | NO_EXEC, options)
    call("umount2", b"/old", DETACH)
    os.rmdir("/old")
    mount(None, "/", None, BIND | REMOUNT | READ_ONLY | NO_SUID | NO_DEV)
    os.chdir("/work")


def _bind(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    device = target.startswith("/dev/")
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    mount(source, target, None, BIND)
    # flags that the mount had when the namespace was made are locked: they have to be said again
    had = os.statvfs(target).f_flag
    kept = had & (NO_EXEC | NO_ATIME | NO_DIR_ATIME) | (REL_ATIME if had & STAT_REL_ATIME else 0)
    kept |= had & NO_DEV if device else NO_DEV
    mount(None, target, None, BIND | REMOUNT | READ_ONLY | NO_SUID | kept)


def _give_up_rights(*, root: bool) -> None:
    call("prctl", SECURE_BITS, ROOT_IS_NOBODY, 0, 0, 0)
    capability = 0
    while LIBC.prctl(BOUNDING_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    if capability == 0:
        raise SetupFailed("no capability could be given up")
    if root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    call("capset", header, bytes(24))
    call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)  # a change of user has taken it back


def _limit(limits: dict[str, int], *, root: bool) -> None:
    # Linux counts processes by user and user namespace; the second process is of the same user where that is not root
    processes = limits["processes"] + (0 if root else 1)
    for kind, most in (
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, PENDING_SIGNALS),
    ):
        resource.setrlimit(kind, (most, most))


def _filter(library: ctypes.CDLL) -> None:
    """Refuse system calls that no program of a suite needs. Raises Failed."""
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ALLOW)))
    if not context:
        raise SetupFailed("libseccomp gives no filter")

    def refuse(name: str, *rules: SeccompComparison, action: int = DENY) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # this machine has no such call
        array = (SeccompComparison * max(1, len(rules)))(*rules)
        if library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(rules), array) != 0:
            raise SetupFailed(f"libseccomp cannot refuse {name}")

    for name in DENIED:
        refuse(name)
    refuse("clone3", action=NOT_THERE)  # its flags lie in memory, where no filter sees them; libc then takes clone
    for flag in NAMESPACES:
        refuse("clone", SeccompComparison(0, MASKED_EQUAL, flag, flag))
    for command in LOCKS:
        refuse("fcntl", SeccompComparison(1, MASKED_EQUAL, LOW_HALF, command))
    refuse("socketpair", SeccompComparison(0, NOT_EQUAL, UNIX, 0))
    if library.seccomp_load(context) != 0:
        raise SetupFailed("the kernel takes no filter")


def _read_exactly(descriptor: int, count: int, *, short: bool = False) -> bytes:
    found = b""
    while len(found) < count:
        piece = os.read(descriptor, count - len(found))
        if not piece:
            if short:
                break
            raise SetupFailed("the plan ended early")
        found += piece
    return found


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _report_status(status: int, found: dict[str, Any]) -> None:
    os.write(status, json.dumps(found).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
