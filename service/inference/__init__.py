"""The data path: from an OpenAI request to the engine's answer."""
