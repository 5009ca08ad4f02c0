"""The engine: vLLM in a process of its own, watched, restarted, and spoken to over a Unix socket."""
