"""Class names as texts, encoded once."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file

from snapgen_pl.conditioning.class_states import ClassStates
from snapgen_pl.conditioning.condition import TextStates
from snapgen_pl.conditioning.imagenet_names import readable_name
from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.whole_files import whole_file

FILE = "class_texts.safetensors"
NAME = "{name}"
BATCH = 32


class ClassTexts(ClassStates):
    """A frozen text encoder's states for a sentence a class, such as "a photo of tench".

    "No class" is the empty text. All are encoded once and kept with the run; the encoder is needed no more then. There
    is nothing to learn, and nothing in checkpoints.

    Args:
        encoder: encodes the sentences.
        template: the sentence; "{name}" in it stands for the class's name. Names of ImageNet's synsets
            (n01440764) are read as words, and underscores and hyphens as spaces.
        num_classes: room for labels 0 to num_classes - 1; the data may have fewer.
        dropout: probability that a training sample loses its label, in [0, 1).

    Raises:
        ValueError: for a template without "{name}", num_classes below 1, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        encoder: TextEncoder,
        template: str = "a photo of {name}",
        num_classes: int = 1000,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(num_classes, encoder.tokens, encoder.context_dim, dropout=dropout, persistent=False)
        if NAME not in template:
            raise ValueError(f"template is {template!r}; it must say where the class's name goes: {NAME}")
        self.encoder, self.template = encoder, template

    def ready(self, folder: Path, classes: tuple[str, ...]) -> str:
        """Loads the states that the run already has, or encodes the texts and keeps the states there.

        Raises:
            ValueError: if the run's states are of other classes, another template or another encoder, if two classes
                read the same, or if the encoder refuses a text.
        """
        super().ready(folder, classes)
        texts = self._texts(classes)
        file = folder / FILE
        if file.exists():
            self.hold(self._read(file, texts))
            return f"class texts: {file}"
        states = self._encode(texts)
        metadata = {
            "texts": json.dumps(texts),
            "encoder": self.encoder.identity,
            "fingerprint": self.encoder.fingerprint(),
        }
        tensors = {name: tensor for name, tensor in states._asdict().items() if tensor is not None}
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as part:
            save_file(tensors, part, metadata)
        self.hold(states)
        encoder = type(self.encoder).__name__
        return f"class texts: {len(classes)} such as {texts[-1]!r} encoded by {encoder}, kept in {file}"

    def _texts(self, classes: Sequence[str]) -> list[str]:
        texts = ["", *(self.template.replace(NAME, readable_name(name)) for name in classes)]
        if len(set(texts)) < len(texts):
            twice = next(text for text in texts if texts.count(text) > 1)
            same = [name for name, text in zip(classes, texts[1:], strict=True) if text == twice]
            raise ValueError(f"the classes {' and '.join(same)} both read {twice!r}; rename one of them")
        return texts

    def _encode(self, texts: Sequence[str]) -> TextStates:
        batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        encoded = [self.encoder.encode(batch) for batch in track(batches, "encoding the classes", transient=True)]
        self.encoder.release()
        states_NSD = torch.cat([states.tokens_BSD for states in encoded]).half()
        if not states_NSD.isfinite().all():
            raise ValueError("the text encoder gives states that fp16 cannot hold; check its weights")
        masks = [states.mask_BS for states in encoded if states.mask_BS is not None]
        return TextStates(states_NSD, torch.cat(masks) if masks else None)

    def _read(self, file: Path, texts: Sequence[str]) -> TextStates:
        remedy = "use the run's own configuration and data, or another --name"
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        kept = json.loads(metadata["texts"])
        if len(kept) != len(texts):
            raise ValueError(f"{file} holds {len(kept) - 1} classes, the data has {len(texts) - 1}; {remedy}")
        for label, (old, new) in enumerate(zip(kept, texts, strict=True), start=-1):
            if old != new:
                raise ValueError(f"{file} holds {old!r} for class {label}, not {new!r}; {remedy}")
        if metadata["encoder"] != self.encoder.identity:
            raise ValueError(f"{file} was made by another text encoder; {remedy}")
        return TextStates(tensors["tokens_BSD"], tensors.get("mask_BS"))
