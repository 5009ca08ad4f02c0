"""One runner for every kind of run: one table, one queue, one supervisor, whatever a kind's worker does.

A kind (`trainer.runs.kind.Kind`) adds its schema, its stages and its result, and is handed to the runner where the
trainer is put together (`trainer.app`); nothing here knows one of them. So this room lies below those of the kinds,
which fill what it asks for, and above data and training, which know nothing of runs.
"""
