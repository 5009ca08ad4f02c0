"""The sandbox's helper: a standalone script that sets up the namespaces and then becomes the program.

Run as `python -I -S -B inner.py STATUS_FD LIFELINE_FD` with a length (8 bytes, little-endian), a plan (JSON of that
length) and the program's stdin. Three processes: the first stays outside and maps users, the second owns the user
namespace and enforces the limits, the third is the init process of its PID namespace: it builds a root of a few
read-only files, drops all privileges and becomes the program. It is a single file because with -I it cannot import a
neighbour.

The order of the steps matters and follows bubblewrap and of user_namespaces(7), mount_namespaces(7), capabilities(7).
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
    # memory that no process limit counts: it outlives its mapping, or belongs to the kernel
    *("shmget", "shmat", "shmctl", "shmdt", "msgget", "msgsnd", "msgrcv", "msgctl", "semget", "semop", "semctl"),
    *("semtimedop", "ipc", "mq_open", "mq_unlink", "memfd_create", "memfd_secret", "inotify_init", "inotify_init1"),
    *("landlock_create_ruleset", "io_setup", "setsockopt", "sendmsg", "sendmmsg"),  # larger buffers; files in flight
)
"""System calls that no program of a suite needs, and that had kernel vulnerabilities."""
LOCKS: Final = (6, 7, 37, 38)
"""fcntl(2)'s F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW: each range is a record in the kernel, unbounded."""
LOW_HALF: Final = 0xFFFFFFFF
"""The bits of an int argument that the kernel reads; the register may hold anything above."""
UNIX: Final = 1
"""AF_UNIX: the only allowed family of socketpair(2); its buffers are small and its module is always loaded."""
PENDING_SIGNALS: Final = 64
"""Limit of queued signals and timers: the kernel allocates a record for each."""
WATCH_S: Final = 0.02
"""Seconds between two measurements of a program's memory."""


class SetupFailed(Exception):
    """A step of the sandbox's setup failed: no program is run."""


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
    """Call a libc function that returns 0 on success. Raises SetupFailed with its errno's text."""
    if getattr(LIBC, name)(*arguments) != 0:
        listed = ", ".join(repr(argument)[:80] for argument in arguments)
        raise SetupFailed(f"{name}({listed}): {os.strerror(ctypes.get_errno())}")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2). Raises SetupFailed."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


def main() -> int:
    """The first process: starts the second in its own namespaces and maps their users."""
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
            _report_status(status, {"setup": f"cannot map the users of a namespace: {error}"})
            os.kill(child, signal.SIGKILL)
        else:
            os.write(go_write, b"1")
    os.waitpid(child, 0)
    return 0


def _map_users(pid: int, user: int, group: int) -> None:
    """Map the program to uid and gid `nobody`. For a caller that is root, root stays mapped during setup."""
    if user == 0:
        users = groups = f"0 0 1\n{NOBODY} {NOBODY} 1\n"
    else:
        users, groups = f"{NOBODY} {user} 1\n", f"{NOBODY} {group} 1\n"
        _write(f"/proc/{pid}/setgroups", "deny")
    _write(f"/proc/{pid}/uid_map", users)
    _write(f"/proc/{pid}/gid_map", groups)


def _supervise(plan: dict[str, Any], status: int, lifeline: int, pipes: tuple[int, int], *, root: bool) -> int:
    """The second process: watches the third and enforces the limits. Nothing in the sandbox can reach it."""
    ready, go = pipes
    try:
        call("unshare", sum(NAMESPACES))
    except SetupFailed as error:
        _report_status(status, {"setup": f"this machine does not allow user namespaces ({error})"})
        return 1
    os.write(ready, b"1")
    if os.read(go, 1) != b"1":
        return 1
    errors_read, errors_write = os.pipe2(os.O_CLOEXEC)
    processes = os.open(
        "/proc", os.O_PATH | os.O_CLOEXEC
    )  # pivot_root in the third process also replaces the root of this one
    program = os.fork()
    if program == 0:
        _become_program(plan, errors_write, root=root)
    os.close(errors_write)
    for number in (0, 1):
        os.close(number)  # so that readers of the program's output see end of file
    failed = _read_exactly(errors_read, 4096, short=True).decode("utf-8", "replace")
    ended = None
    if not failed:
        try:
            _read_text(f"{os.getpid()}/task/{os.getpid()}/children", processes)  # a kernel may be built without these
            ended = _watch(program, lifeline, plan["wall_s"], lambda: _resident(processes, program), plan["limits"])
        except OSError as error:
            failed = f"cannot measure the program's memory: {error}"
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
    """Wait for the program; kill it if it exceeds a limit.

    Returns:
        "time" if it exceeded its time or the caller is gone; "memory" if it and its descendants together held more
        resident memory than the limit; None if it ended by itself.
    """
    handle = os.pidfd_open(program)
    waiting = select.poll()
    waiting.register(handle, select.POLLIN)
    waiting.register(lifeline, select.POLLIN | select.POLLHUP)
    deadline, ended = time.monotonic() + wall_s, None
    while ended is None:
        wait_s = max(0.0, min(WATCH_S, deadline - time.monotonic()))
        ready = {number for number, _ in waiting.poll(wait_s * 1000)}
        if handle in ready:
            break
        if ready or time.monotonic() >= deadline:
            ended = "time"
        elif resident() > limits["memory_bytes"]:
            ended = "memory"
    os.close(handle)
    if ended is not None:
        os.kill(program, signal.SIGKILL)  # it is init of its PID namespace: its descendants are killed with it
    return ended


def _resident(processes: int, program: int) -> int:
    """Resident bytes of a process and all its descendants; shared pages count for each.

    Args:
        processes: A descriptor of /proc.
        program: The process id.

    Raises:
        OSError: /proc cannot be read; processes that ended meanwhile are skipped.
    """
    total, pending = 0, [str(program)]
    while pending:
        process = pending.pop()
        try:
            total += int(_read_text(f"{process}/statm", processes).split()[1]) * resource.getpagesize()
            threads = os.open(f"{process}/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=processes)
            try:
                for thread in os.listdir(threads):
                    pending += _read_text(f"{thread}/children", threads).split()
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
    """The third process: set up the sandbox and become the program. Never returns."""
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
    """Forbid nested user namespaces, which would restore privileges; if /proc is read-only, the filter does."""
    try:
        _write("/proc/sys/user/max_user_namespaces", "0")
    except OSError:
        return


def _build_root(plan: dict[str, Any]) -> None:
    """Build a root on a tmpfs: the plan's files bound read-only, and one small writable directory."""
    os.umask(0o022)  # the trainer's umask hides files from others, and the program is one of the others
    mount(None, "/", None, RECURSIVE | PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", NO_SUID | NO_DEV, "size=1m,mode=755")  # noqa: S108 (a mount point, ours alone)
    os.mkdir("/tmp/old")  # noqa: S108
    os.chdir("/tmp")  # noqa: S108
    number = PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise SetupFailed(f"unsupported machine {platform.machine()}: the number of pivot_root is unknown")
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
    # flags of the original mount are locked in the namespace and must be repeated
    locked = os.statvfs(target).f_flag
    flags = locked & (NO_EXEC | NO_ATIME | NO_DIR_ATIME) | (REL_ATIME if locked & STAT_REL_ATIME else 0)
    flags |= locked & NO_DEV if device else NO_DEV
    mount(None, target, None, BIND | REMOUNT | READ_ONLY | NO_SUID | flags)


def _give_up_rights(*, root: bool) -> None:
    call("prctl", SECURE_BITS, ROOT_IS_NOBODY, 0, 0, 0)
    capability = 0
    while LIBC.prctl(BOUNDING_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    if capability == 0:
        raise SetupFailed("could not drop any capability")
    if root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    call("capset", header, bytes(24))
    call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)  # the change of user has reset it


def _limit(limits: dict[str, int], *, root: bool) -> None:
    # Linux counts processes by user and user namespace; the second process is of the same user where that is not root
    processes = limits["processes"] + (0 if root else 1)
    for kind, maximum in (
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
        resource.setrlimit(kind, (maximum, maximum))


def _filter(library: ctypes.CDLL) -> None:
    """Install a filter that refuses system calls which no program of a suite needs. Raises Failed."""
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ALLOW)))
    if not context:
        raise SetupFailed("libseccomp could not create a filter")

    def refuse(name: str, *rules: SeccompComparison, action: int = DENY) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # no such system call on this machine
        array = (SeccompComparison * max(1, len(rules)))(*rules)
        if library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(rules), array) != 0:
            raise SetupFailed(f"libseccomp could not add a rule for {name}")

    for name in DENIED:
        refuse(name)
    refuse("clone3", action=NOT_THERE)  # its flags are in memory, which a filter cannot read; libc falls back to clone
    for flag in NAMESPACES:
        refuse("clone", SeccompComparison(0, MASKED_EQUAL, flag, flag))
    for command in LOCKS:
        refuse("fcntl", SeccompComparison(1, MASKED_EQUAL, LOW_HALF, command))
    refuse("socketpair", SeccompComparison(0, NOT_EQUAL, UNIX, 0))
    if library.seccomp_load(context) != 0:
        raise SetupFailed("the kernel rejected the seccomp filter")


def _read_exactly(descriptor: int, count: int, *, short: bool = False) -> bytes:
    content = b""
    while len(content) < count:
        chunk = os.read(descriptor, count - len(content))
        if not chunk:
            if short:
                break
            raise SetupFailed("the plan is truncated")
        content += chunk
    return content


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _report_status(status: int, content: dict[str, Any]) -> None:
    os.write(status, json.dumps(content).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
