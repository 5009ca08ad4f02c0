"""The process that compiles specifications on trial; only its own modules may import xgrammar."""
