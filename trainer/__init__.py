"""The trainer: prepares a base model, turns example files into LoRA adapters, and proves what it made.

torch, transformers and peft are imported inside functions where a command may end before it needs them.
"""
