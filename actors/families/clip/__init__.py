"""CLIP: its vision tower as segments, zero-shot heads, checks, and fine-tuning."""
