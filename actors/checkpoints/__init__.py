"""Checkpoints on disk: model folders, safetensors headers, LoRA adapters, hub snapshots."""
