"""The Serve application of one base: `import_path: service.cluster.application:agents` in a Serve config.

Imported by Ray alone; the extra `cluster` has it.
"""

from __future__ import annotations

from typing import Any, Final

import ray.util
from ray import serve
from ray.serve import Application

from service.cluster.replica import END_S, AgentReplica, Arguments

SPARE_S: Final = 15.0
"""How much longer Serve waits for a replica than the replica for its agent, s."""


class Agent:
    """A replica is an agent; Serve asks it for nothing but its state."""

    async def __init__(self, arguments: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._agent = AgentReplica(Arguments(**arguments), ray.util.get_node_ip_address())
        await self._agent.start()

    async def __call__(self) -> dict[str, Any]:
        """How the agent is."""
        return self._agent.status()

    async def check_health(self) -> None:
        """Serve replaces the replica when this has failed a few times."""
        await self._agent.check_health()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For `service.cluster.replica:engines_for`."""
        return await self._agent.load()

    async def __del__(self) -> None:
        """Serve is done with the replica."""
        await self._agent.stop()


deployment = serve.deployment(
    name="agent",
    ray_actor_options={"num_cpus": 1},
    health_check_period_s=1,
    health_check_timeout_s=10,
    graceful_shutdown_wait_loop_s=0.5,
)(Agent)


def agents(arguments: dict[str, Any]) -> Application:
    """The application; ``arguments`` are the config's `args` (``service.cluster.replica.Arguments``)."""
    own = Arguments(**arguments)  # what is wrong with them is said when they are deployed
    timeout_s = own.drain_s + END_S + SPARE_S
    return deployment.options(graceful_shutdown_timeout_s=timeout_s).bind(arguments)
