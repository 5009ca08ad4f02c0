"""How an answer is scored against the reference: one metric a class, from 0 to 1 where it may decide."""
