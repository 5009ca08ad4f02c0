"""S-LoRA's experiment on the real engine: one adapter to a thousand, beside plain vLLM and PEFT."""
