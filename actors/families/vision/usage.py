"""Code that scores images with an exported classifier."""

from __future__ import annotations

from actors.families.usage import Usage

VISION_USAGE = Usage(
    "image-classification",
    ("from transformers import AutoImageProcessor, AutoModelForImageClassification",),
    (
        'model = AutoModelForImageClassification.from_pretrained(".", dtype=dtype).eval()',
        'processor = AutoImageProcessor.from_pretrained(".", backend="pil")',
    ),
    (
        'pixels = processor(batch[task["columns"][0]], return_tensors="pt").pixel_values',
        "scores = model(pixels.to(dtype)).logits.float()",
    ),
    reading=('rows = rows.cast_column(task["columns"][0], Image())',),
    reading_imports=("from datasets import Image",),
    column="image",
    opening=(
        'files = [Image.open(io.BytesIO(file)) for file in batch["image"]]',
        'batch = {task["columns"][0]: files}',
    ),
    opening_imports=("import io", "from PIL import Image"),
)
