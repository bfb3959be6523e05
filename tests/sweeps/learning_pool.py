"""A sweep file with methods that learn, over the tiny pool; a random ResNet to read features of."""

from pathlib import Path
from typing import Any

DAWE = {"rate": "per_norm", "learning_rate": 0.01, "steps": 12, "batch_size": 8, "save_every": 3}

ADAMERGING = {"learning_rate": 0.01, "steps": 9, "batch_size": 8, "save_every": 3}


def make_extractor(folder: Path, width: int = 8) -> Path:
    """A ResNet of random weights, as the hub lays it out; for images of 32 pixels."""
    import json

    import torch
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, width], depths=[1, 1], layer_type="basic"
    )
    torch.manual_seed(width)
    ResNetModel(config).save_pretrained(folder)
    about = {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_pct": 1.0,
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


def gated_spec(pool: Any, extractor: str, **methods: Any) -> dict[str, Any]:
    """`adamerging` and `dawe`, or what is given for them."""
    chosen = {"adamerging": dict(ADAMERGING), "dawe": dict(DAWE)} | methods
    chosen["dawe"] = {"extractor": extractor, **chosen["dawe"]}
    return pool.spec(name="learning", methods=chosen)
