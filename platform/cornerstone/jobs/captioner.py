"""A Hugging Face image-text-to-text model that writes captions: InstructBLIP, LLaVA, ShareGPT4V and similar models.

Sampling uses the Gumbel-max trick: noise from (seed, row) is added to the log-probabilities and the argmax is taken, which is
an exact sample. So samples depend neither on the other images of a batch nor on where a run was interrupted. The remaining
difference is numerical: a kernel may round differently for another batch size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cornerstone.models  # noqa: F401 - repairs torchvision before transformers is imported

# isort: split
import torch
from PIL.Image import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.generation import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.utils import cached_file

from cornerstone.data import draws
from cornerstone.errors import CornerstoneError, first_line
from cornerstone.runtime.device import actor_device
from cornerstone.runtime.hub import hub_answers

PROMPT = "Describe the image in detail."
Precision = Literal["auto", "float32", "bfloat16", "float16"]
_ENDS = 1 << 20  # bytes at the beginning and end of a large file that are hashed into its fingerprint


@dataclass(frozen=True)
class CaptionerConfig:
    """Everything that determines a caption, given an image and its row.

    `temperature` 0 is greedy decoding; `top_p` and `seed` then have no effect. `precision` auto is bfloat16 on a GPU and
    float32 on a CPU.
    """

    name: str
    prompt: str = PROMPT
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if not self.name:
            raise CornerstoneError("No captioner is named: set --captioner to a Hugging Face name or a model folder.")
        if self.max_new_tokens < 1:
            raise CornerstoneError(f"--max-new-tokens {self.max_new_tokens}: expected 1 or more.")
        if not 0 <= self.temperature < float("inf"):
            raise CornerstoneError(f"--temperature {self.temperature}: expected 0 (greedy decoding) or more.")
        if not 0 < self.top_p <= 1:
            raise CornerstoneError(f"--top-p {self.top_p}: expected a probability above 0 and at most 1.")

    @property
    def base_name(self) -> str:
        """The last part of the name or path: the default name of the source of the captions."""
        return self.name.rstrip("/").rpartition("/")[2]

    def described(self) -> dict[str, Any]:
        """Everything that determines the captions, with a fingerprint of the weights. Raises as `fingerprint` does."""
        decides = asdict(self)
        if self.temperature == 0:
            del decides["top_p"], decides["seed"]
        return {**decides, "weights": fingerprint(self.name)}


def fingerprint(name: str) -> str:
    """The commit of a model on the hub, or a digest of a folder's files (of large files: size, beginning and end).

    Loads no weights. Raises CornerstoneError if the model cannot be loaded or is not an image-text-to-text model.
    """
    config = _load(AutoConfig, name)
    # Private interface of transformers: the mapping from configs to models shows without loading weights whether `name` is
    # an image-text-to-text model. `from_pretrained` fails only after the weights were downloaded.
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise CornerstoneError(
            f"The captioner {name!r} is a {config.model_type!r}, which transformers does not know as an image-text-to-text "
            f"model. Name such a model in the layout of transformers, for example InstructBLIP or LLaVA."
        )
    _load(AutoProcessor, name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return Path(str(cached_file(name, "config.json", local_files_only=True))).parent.name  # snapshots/<commit>
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_ENDS))
            file.seek(max(size - _ENDS, 0))
            digest.update(file.read(_ENDS))
    return digest.hexdigest()[:16]


def _load(kind: Any, name: str) -> Any:
    """`from_pretrained`, local files only if the hub does not answer: transformers would retry for about a minute."""
    folder = Path(name).expanduser()
    reachable = hub_answers()
    try:
        return kind.from_pretrained(str(folder) if folder.is_dir() else name, local_files_only=not reachable)
    except Exception as error:  # anything from a missing file to a damaged one
        raise CornerstoneError(
            f"Cannot load the captioner {name!r}: {first_line(error)}. "
            "Expected the Hugging Face name of an image-text-to-text model or a "
            f"folder of one (config.json, model.safetensors, files of the processor). "
            + ("" if reachable else "The hub does not answer from this machine: name a folder.")
        ) from error


class Captioner:
    """The loaded model on one device."""

    def __init__(self, config: CaptionerConfig) -> None:
        self.config = config
        self.device = actor_device()
        usual = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.dtype = usual if config.precision == "auto" else getattr(torch, config.precision)
        self.processor = _load(AutoProcessor, config.name)
        self.model = _load(AutoModelForImageTextToText, config.name).to(self.device, self.dtype).eval()
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"  # generation continues after the last token of the prompt
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.prompt = _prompt(self.processor, config.prompt)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image], rows: Sequence[int]) -> list[str]:
        """A caption for each RGB image. `rows` are their positions in the data set, which seed the sampling."""
        inputs = self.processor(
            images=list(images), text=[self.prompt] * len(images), padding=True, return_tensors="pt"
        ).to(self.device, self.dtype)
        processors = LogitsProcessorList()
        if self.config.temperature > 0:
            processors.append(_Drawn(self.config, rows))
        ids = self.model.generate(
            **inputs,
            max_new_tokens=self.config.max_new_tokens,
            do_sample=False,
            num_beams=1,
            logits_processor=processors,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )
        texts = self.processor.tokenizer.batch_decode(_new(ids, inputs["input_ids"]), skip_special_tokens=True)
        return [text.strip() for text in texts]


class _Drawn(LogitsProcessor):
    """Makes greedy decoding sample: adds Gumbel noise to the scores, from a separate generator for each row."""

    def __init__(self, config: CaptionerConfig, rows: Sequence[int]) -> None:
        self.temperature = TemperatureLogitsWarper(config.temperature)
        self.top_p = TopPLogitsWarper(config.top_p)
        seeds = draws.hashed(config.seed, "caption", list(rows)) >> 1  # torch takes 63 bits on every device
        # generators on the CPU, so that the numbers are the same for every device
        self.noise = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, vocabulary) plus Gumbel noise, which is -log of an exponential draw."""
        warped = self.top_p(input_ids, self.temperature(input_ids, scores.float()))
        width = warped.shape[1]
        drawn = torch.stack([torch.empty(width).exponential_(generator=one) for one in self.noise])
        return warped - drawn.log().to(warped.device)


def _prompt(processor: Any, prompt: str) -> str:
    """The prompt in the model's format: by its chat template if it has one, else with the image token if it is needed."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        return str(
            processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        )
    token = str(getattr(processor, "image_token", None) or "")
    adds_itself = hasattr(processor, "num_query_tokens")  # BLIP-2 and InstructBLIP
    return prompt if adds_itself or not token or token in prompt else f"{token}\n{prompt}"


def _new(ids: Tensor, prompt: Tensor) -> Tensor:
    """The generated ids. Decoder-only models return the prompt too, which is cut off; encoder-decoders do not."""
    length = prompt.shape[1]
    repeats = ids.shape[1] >= length and torch.equal(ids[:, :length], prompt)
    return ids[:, length:] if repeats else ids
