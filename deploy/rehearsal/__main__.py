"""Rehearses deploy/Dockerfile where there is no Docker: its instructions one by one, then its command and health check.

    .venv/bin/python -m deploy.rehearsal            # builds: some seconds
    .venv/bin/python -m deploy.rehearsal --start    # and starts it, until /healthz and /readyz answer, and stops it

The instructions are read from the file, and one that is not known here is an error. They run as root in namespaces of
their own (mounts, network, processes), on a copy-on-write view of this machine in memory: nothing of it is changed.

What differs from a build:

- The base image is this machine: its programs and its Python. What the slim image lacks is not noticed.
- Nothing is downloaded. pip runs as the file says, but finds the packages of the environment that runs this script
  already installed, and refuses where one of them is missing or is not the pinned version. ``apt-get`` only says which
  packages this machine lacks.
- The daemon's part is done here as the reference says: COPY with the ignore file, users, volumes, stop signal. There is
  no seccomp profile and no limit.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Final

from deploy.rehearsal.build import Rehearsal, RehearsalFailed, mount
from deploy.rehearsal.container import Container
from deploy.rehearsal.dockerfile import REPO

INSIDE: Final = "HATRACK_REHEARSAL_INSIDE"
"""Set in the process that has namespaces of its own."""


def _loopback_up() -> None:
    """A new network namespace has a loopback that is down."""
    up, name = 0x1, b"lo"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", name, up))  # SIOCSIFFLAGS


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", action="store_true", help="start the image, too, and stop it once it is ready")
    parser.add_argument(
        "--packages", type=Path, nargs="*", default=[], help="further folders with packages, as pip --target makes them"
    )
    return parser.parse_args()


def main() -> None:
    """Rehearse. Ends with 1 and a message where an instruction does not do what it says."""
    options = _arguments()
    if INSIDE not in os.environ:
        command = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
        command += [sys.executable, "-m", "deploy.rehearsal", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=os.environ | {INSIDE: "1"}, cwd=REPO, check=False).returncode)
    _loopback_up()
    own = [Path(path) for path in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))]
    args = {"PYTHON": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    args["KIND"] = "cpu" if version("torch").endswith("+cpu") else "gpu"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as memory, tempfile.TemporaryDirectory() as disk:
        mount("-t", "tmpfs", "tmpfs", memory)
        try:
            packages = [path.resolve() for path in (*own, *options.packages)]
            stage = Rehearsal(Path(memory), packages, args).build()
            if options.start:
                container = Container(stage, Path(disk))
                print(f"healthy after {container.wait_healthy():.0f} s", flush=True)
                print(f"ready after {container.wait_ready():.0f} s more", flush=True)
                container.check()
                print(f"stopped by {stage.stop_signal.name} after {container.stop():.0f} s")
        except RehearsalFailed as error:
            sys.exit(str(error))
        finally:
            subprocess.run(["umount", "-R", "-l", memory], check=False)


if __name__ == "__main__":
    main()
