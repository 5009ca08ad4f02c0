"""Damage to an adapter that the store already has, without the gateway noticing."""

from __future__ import annotations

from safetensors.numpy import load_file, save_file

from tests.support.gateway import Gateway


def scale_stored_adapter(gateway: Gateway, digest: str, factor: float) -> None:
    """Multiply every lora_B of a stored adapter; the file keeps its size, and the engine reads it at its next load."""
    path = gateway.home / "adapters" / digest / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, value in tensors.items():
        if "lora_B" in name:
            tensors[name] = (value.astype("float32") * factor).astype(value.dtype)
    path.chmod(0o600)
    path.parent.chmod(0o700)
    size = path.stat().st_size
    save_file(tensors, path, metadata={"format": "pt"})
    assert path.stat().st_size == size, "the damage must not show in the size"
