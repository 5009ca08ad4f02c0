"""Runs a program inside the sandbox: the text of this file is its `python -c`; it reads JSON on stdin.

A program that ran to its end is reported with a token that only the caller knows, so that an early exit is detected.
(Both share one process: a program that searches for the token can forge its own result, but reaches nothing else.)
"""

import json
import os
import sys

request = json.loads(sys.stdin.buffer.read())
token = request.pop("word")
result_fd = os.dup(1)
nothing = os.open("/dev/null", os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(nothing, number)
os.close(nothing)
space: dict[str, object] = {"__name__": "__main__", "ASKED": request.get("given")}
outcome: dict[str, object]
try:
    exec(compile(request["program"], "program.py", "exec"), space)  # noqa: S102 (the purpose of the sandbox)
except MemoryError:
    outcome = {"error": "MemoryError"}
except BaseException as error:
    outcome = {"error": type(error).__name__}
else:
    outcome = {"word": token, "result": space.get("RESULT")}
os.write(result_fd, json.dumps(outcome).encode())
os._exit(0)
