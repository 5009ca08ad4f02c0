"""The process that speaks with Weights & Biases for one job: `python -m trainer.tracking.wandb_process`.

It reads messages from stdin, one JSON object a line, and answers each on stdout, `{}` or `{"error": …}`:

    {"start": {"id", "project", "entity", "name", "tags", "config", "dir"}}     first, and once
    {"points": [{"step", "values"}]}
    {"finish": {"results", "exit_code"}}                                         last

At the end of stdin it leaves the run as it is, for another process to go on with. Key, address and mode are in the
package's own environment variables. Nothing but this module imports the package.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> int:
    """Serve one job; returns the exit code."""
    # what the package prints must not reach the pipe
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    run: Any = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if "start" in message:
                run = _start(message["start"])
            elif "points" in message:
                for point in message["points"]:
                    run.log(point["values"], step=point["step"])
            else:
                run.summary.update(message["finish"]["results"])
                run.finish(exit_code=message["finish"]["exit_code"])
                run = None
            answer = {}
        except Exception as error:  # whatever the package raises: the trainer tells it and tries again
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    if run is not None:
        run.finish(quiet=True)
    return 0


def _start(start: dict[str, Any]) -> Any:
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        init_timeout=60,
        # of the machine, its packages and its load nothing is sent (TRACKING.md says what is)
        host="hatrack",
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    return wandb.init(
        id=start["id"],
        resume="allow",
        project=start["project"],
        entity=start["entity"],
        name=start["name"],
        tags=start["tags"],
        config=start["config"],
        dir=start["dir"],
        job_type="fine-tuning",
        settings=settings,
    )


if __name__ == "__main__":
    sys.exit(main())
