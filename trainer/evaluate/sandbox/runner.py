"""Runs a program inside the sandbox: the text of this file is its `python -c`; it reads JSON on stdin.

Whether the program came to its end is said with a word that only the caller knows: an early exit says nothing. (It is
one process: a program that goes looking can find the word and lie about itself; it still reaches nothing else.)
"""

import json
import os
import sys

asked = json.loads(sys.stdin.buffer.read())
word = asked.pop("word")
say = os.dup(1)
nothing = os.open("/dev/null", os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(nothing, number)
os.close(nothing)
space: dict[str, object] = {"__name__": "__main__", "ASKED": asked.get("given")}
found: dict[str, object]
try:
    exec(compile(asked["program"], "program.py", "exec"), space)  # noqa: S102 (what the sandbox is there for)
except MemoryError:
    found = {"error": "MemoryError"}
except BaseException as error:
    found = {"error": type(error).__name__}
else:
    found = {"word": word, "result": space.get("RESULT")}
os.write(say, json.dumps(found).encode())
os._exit(0)
