"""Stands for the package `wandb` in a process's path: it writes what it is told into a file, and fails on demand."""

MODULE = """
import json, os, time

class Settings:
    def __init__(self, **values):
        self.values = values

class Summary:
    def __init__(self, write):
        self._write = write
    def update(self, values):
        self._write({"summary": values})

class Run:
    def __init__(self, values):
        self._path = os.path.join(os.environ["WANDB_DIR"], "told.jsonl")
        print("wandb: what the package prints must not reach the pipe")
        self.summary = Summary(self._write)
        self._write({"init": values, "key": os.environ.get("WANDB_API_KEY"), "mode": os.environ.get("WANDB_MODE"),
                     "names": sorted(name for name in os.environ if "HATRACK" in name)})
    def _write(self, told):
        with open(self._path, "a") as file:
            file.write(json.dumps(told) + "\\n")
    def log(self, values, step):
        self._write({"step": step, "values": values})
        if os.environ.get("FAKE_HANGS"):
            time.sleep(600)
    def finish(self, exit_code=0, quiet=None):
        self._write({"finish": exit_code, "quiet": quiet})

def init(settings=None, **values):
    if os.environ.get("FAKE_REFUSES"):
        raise RuntimeError("the API key is not valid")
    return Run(values)
"""
