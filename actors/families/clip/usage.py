"""Code that scores images with an exported CLIP and a task's head."""

from __future__ import annotations

from actors.families.usage import Usage

CLIP_USAGE = Usage(
    "zero-shot-image-classification",
    ("from transformers import AutoImageProcessor, CLIPModel",),
    (
        'model = CLIPModel.from_pretrained(".", dtype=dtype).eval()',
        'processor = AutoImageProcessor.from_pretrained(".", backend="pil")',
    ),
    (
        'pixels = processor(batch[task["columns"][0]], return_tensors="pt").pixel_values',
        "z = model.get_image_features(pixels.to(dtype)).pooler_output.float()",
        'scores = torch.nn.functional.normalize(z) @ head["head"].T',
    ),
    reading=('rows = rows.cast_column(task["columns"][0], Image())',),
    reading_imports=("from datasets import Image",),
    column="image",
    opening=(
        'files = [Image.open(io.BytesIO(file)) for file in batch["image"]]',
        'batch = {task["columns"][0]: files}',
    ),
    opening_imports=("import io", "from PIL import Image"),
    heads=True,
)
