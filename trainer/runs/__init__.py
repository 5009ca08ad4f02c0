"""One runner for every kind of run: one table, one queue, one supervisor, whatever a kind's worker does.

A kind (`trainer.runs.kind.Kind`) adds its schema, its stages and its result. `trainer.app` passes the kinds to the
runner; nothing in this package knows a particular kind. So this package sits below the packages of the kinds, which
implement its interfaces, and above data and training, which know nothing about runs.
"""
