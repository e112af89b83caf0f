"""The README.md of an exported model: what it is, how it is opened, its metrics, its recipe and its data."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cornerstone.inference.opened_model import OpenedModel

COPIED = "cornerstone"
_IMAGES = """images = AutoImageProcessor.from_pretrained(folder)
pixels = images(Image.open("bus.jpg"), return_tensors="pt").pixel_values"""
_LOADED = """import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

folder = "."
model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
"""
OPENED_BY = {
    "dual-encoder": f"""Opens with `transformers` and `timm`, without Cornerstone. A sentence ends with the tokenizer's [SEP]:

```python
{_LOADED}
def sentences(text: str) -> str:
    return "[SEP]".join(part.strip() for part in text.split(". ") if part.strip())

texts = [sentences(text) for text in ["a red bus. the street is narrow."]]
ids = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
{_IMAGES}
with torch.no_grad():
    text = torch.nn.functional.normalize(model.get_text_features(**ids).pooler_output, dim=-1)
    image = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
```

Learnable tokens that the text does not attend to (corner tokens) are left out: they serve training alone. The positions of
the text are shifted by their number, as in training. A text that is cut just behind a sentence gets a second [SEP] by this
code, and none in Cornerstone.""",
    "transformers": f"""Opens with `transformers`, without Cornerstone, by the architecture that config.json names. Clean and
pad texts as the family does (`cornerstone.load` does it):

```python
{_LOADED}
{_IMAGES}
```""",
    "timm": """**The whole model opens with Cornerstone only**: {why}.

```python
import cornerstone

model = cornerstone.load(".")
```

Its image tower alone, in the folder `image_tower`, opens with timm:

```python
import timm

tower = timm.create_model("local-dir:image_tower", pretrained=True)
```""",
    COPIED: """**The model opens with Cornerstone only**: {why}.

```python
import cornerstone

model = cornerstone.load(".")
```""",
}
"""What opens an exported model, and how."""


def card(model: OpenedModel, opened: str, metrics: Mapping[str, float] | None = None, why: str = "") -> str:
    """The text of the card."""
    parts = [f"# {model.recipe.get('name') or model.name}", f"Method: {model.name}.", "## Opening it"]
    parts.append(OPENED_BY[opened].replace("{why}", why))
    parts += ["## Metrics", _metrics(metrics or {}), "## Data", _data(model.content), "## Recipe"]
    parts.append(f"```json\n{json.dumps(dict(model.recipe), indent=1)}\n```")
    return "\n\n".join(parts) + "\n"


def _metrics(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return "None are recorded beside the model."
    rows = [f"| {name} | {value:.2f} |" for name, value in sorted(metrics.items())]
    return "\n".join(["| metric | value |", "|---|---|", *rows])


def _data(hashes: Mapping[str, str]) -> str:
    if not hashes:
        return "No hash of the training data was saved with the model."
    return "\n".join(f"- {name}: `{value}`" for name, value in sorted(hashes.items()))
