"""Fronts and agents as processes, over engines that are stubs: what they add, what they see how late, what kills cost.

    .venv/bin/python -m loadtests.fronts [--only affinity visible latency limits kills] [--postgresql] [--s3]

A gateway, two agents and two fronts run on this machine, and for `latency` a gateway beside them that has an engine of
its own, as a single process. With `--postgresql` the gateway's metadata are on a server that is started for it, with
`--s3` adapters in a bucket. Ends with 1 if a kill lost what was acknowledged.
"""
