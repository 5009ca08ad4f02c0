"""Adapters: names, PEFT-config rules, safetensors inspection, proof, and the content-addressed store.

A pure library: no web framework, no torch, no engine. Import from the modules (`from adapters.store import Store`).
"""
