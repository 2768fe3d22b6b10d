import copy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from snapgen_pl.conditioning.clip_text import CLIPText
from snapgen_pl.conditioning.condition import Texts, TextStates
from snapgen_pl.conditioning.sd3_texts import SD3Texts
from snapgen_pl.conditioning.text_encoder import TextEncoder
from tests.conditioning import tiny_clip, tiny_t5
from tests.conditioning.tiny_gemma import save_gemma
from tests.conditioning.tiny_sd3 import PROJECTIONS, T5_TOKENS, WIDTH_G, save_sd3, sd3_texts

LONG = "a photo of a cat and a dog " * 3
CAPTIONS = ("a photo of cat", "dog!", LONG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd3")
    save_sd3(path)
    return path


def encode_prompt(folder: Path, prompts: Sequence[str], t5: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    clips = [CLIPTextModelWithProjection.from_pretrained(folder / f"text_encoder{i}").eval() for i in ("", "_2")]
    transformer = SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=tiny_t5.WIDTH, caption_projection_dim=16, pooled_projection_dim=sum(PROJECTIONS),
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=None,
        vae=None,
        text_encoder=clips[0],
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder_2=clips[1],
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        text_encoder_3=T5EncoderModel.from_pretrained(folder / "text_encoder_3").eval() if t5 else None,
        tokenizer_3=T5TokenizerFast.from_pretrained(folder / "tokenizer_3"),
    )
    with torch.no_grad():
        prompt, negative, pooled, negative_pooled = pipeline.encode_prompt(
            list(prompts), None, None, device=torch.device("cpu"), max_sequence_length=T5_TOKENS
        )
    return prompt, negative, pooled, negative_pooled


@pytest.mark.parametrize("t5", [True, False])
def test_it_tells_what_diffusers_pipeline_tells(t5: bool, folder: Path) -> None:
    conditioner = sd3_texts(folder, t5)
    condition = Texts(CAPTIONS, {})
    prompt, negative, pooled, negative_pooled = encode_prompt(folder, CAPTIONS, t5)
    told, untold = conditioner(condition), conditioner.unconditional(condition)
    assert (conditioner.tokens, conditioner.context_dim) == tuple(told.tokens_BSD.shape[1:])
    assert told.mask_BS is None
    for found, expected in (
        (told.tokens_BSD, prompt),
        (told.pooled_BP, pooled),
        (untold.tokens_BSD, negative),
        (untold.pooled_BP, negative_pooled),
    ):
        assert found.dtype == torch.float32  # type: ignore[union-attr]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    clips = told.tokens_BSD[:, : tiny_clip.POSITIONS]
    assert clips[..., : tiny_clip.WIDTH + WIDTH_G].std() > 0.1
    assert not clips[..., tiny_clip.WIDTH + WIDTH_G :].any()
    assert bool(told.tokens_BSD[:, tiny_clip.POSITIONS :].any()) == t5


CONSTRUCT = """
import sys
from snapgen_pl.conditioning.gemma_text import GemmaText
from snapgen_pl.conditioning.joined_texts import JoinedTexts
from snapgen_pl.conditioning.sd3_texts import SD3Texts

sd3, gemma = sys.argv[1:]
SD3Texts(sd3, context_dim=40)
JoinedTexts({"gemma": GemmaText(gemma, tokens=8)}, [["gemma"]], 24)
print({"transformers", "diffusers"} & set(sys.modules))
"""


def test_constructing_reads_no_weights_and_does_not_wait_for_transformers(folder: Path, tmp_path: Path) -> None:
    save_gemma(tmp_path / "gemma")
    shutil.copytree(folder, tmp_path / "sd3")
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    command = [sys.executable, "-c", CONSTRUCT, str(tmp_path / "sd3"), str(tmp_path / "gemma")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stderr


def test_nothing_is_the_empty_text_and_nothing_is_dropped(folder: Path) -> None:
    conditioner = sd3_texts(folder)
    condition = Texts(("a cat", ""), {})
    assert conditioner.drop(condition, 0, torch.arange(2)) is condition
    assert conditioner.asks_nothing(condition).tolist() == [False, True]
    nothing = conditioner.nothing(condition)
    assert nothing.captions == ("", "")
    assert conditioner.asks_nothing(nothing).all()
    told, untold = conditioner(condition), conditioner(nothing)
    torch.testing.assert_close(untold.tokens_BSD[0], told.tokens_BSD[1])
    assert not torch.allclose(untold.tokens_BSD[0], told.tokens_BSD[0])


def test_the_empty_text_is_encoded_once_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, later = sd3_texts(folder), sd3_texts(folder)
    condition = Texts(("a cat", "a dog"), {})
    with torch.inference_mode():
        expected = first.unconditional(condition)
    assert not any(part.is_inference() for states in first.empty.values() for part in states if part is not None)
    later.empty = first.empty

    def encode(self: TextEncoder, texts: Sequence[str]) -> TextStates:
        raise AssertionError

    monkeypatch.setattr(TextEncoder, "encode", encode)
    for conditioner in (first, later):
        assert torch.equal(conditioner.unconditional(condition).tokens_BSD, expected.tokens_BSD)


def test_where_states_are_stored_no_encoder_stays_in_memory(folder: Path) -> None:
    conditioner = sd3_texts(folder)
    encoders = conditioner._encoders.values()
    stored = {name: encoder.encode(CAPTIONS) for name, encoder in sd3_texts(folder)._encoders.items()}
    condition = Texts(CAPTIONS, stored)
    conditioner.unconditional(condition)
    conditioner(condition)
    assert not any(encoder._loaded for encoder in encoders)
    # One that captions are encoded with is kept, for the next batch.
    conditioner.empty = {}
    conditioner(Texts(CAPTIONS, {}))
    conditioner.unconditional(condition)
    assert all(encoder._loaded for encoder in encoders)


def test_states_stored_for_a_student_serve(folder: Path) -> None:
    conditioner = sd3_texts(folder)
    students = {
        f"clip_{name}": CLIPText(str(folder), f"text_encoder{i}", f"tokenizer{i}", "penultimate", True, pooled=True)
        for name, i in (("l", ""), ("g", "_2"))
    }
    identities = conditioner.encoders()
    assert list(identities) == ["clip_l", "clip_g", "t5"]
    assert {name: encoder.identity for name, encoder in students.items()} == {
        name: identities[name] for name in students
    }
    condition = Texts(CAPTIONS, {name: encoder.encode(CAPTIONS) for name, encoder in students.items()})
    expected = conditioner(Texts(CAPTIONS, {}))
    assert torch.equal(conditioner(condition).tokens_BSD, expected.tokens_BSD)
    half = {
        name: TextStates(*(None if part is None else part.half() for part in encoder.encode(CAPTIONS)))  # type: ignore[arg-type]
        for name, encoder in conditioner._encoders.items()
    }
    for found, exact in zip(conditioner(Texts(CAPTIONS, half)), expected, strict=True):
        assert (found is None) == (exact is None)
        if found is not None:
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, exact, atol=1e-2, rtol=1e-3)


def test_it_learns_nothing_keeps_nothing_and_moves_along(folder: Path) -> None:
    conditioner = sd3_texts(folder)
    conditioner(Texts(("a cat",), {}))
    assert not conditioner.state_dict()
    assert not list(conditioner.parameters())
    assert [name for name, _ in conditioner.named_modules()] == [""]
    assert copy.deepcopy(conditioner)._encoders["t5"] is conditioner._encoders["t5"]
    assert conditioner.to("meta").asks_nothing(Texts(("",), {})).device.type == "meta"


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"T5 is 40 wide, context_dim is 4096; set it to T5's"):
        SD3Texts(str(folder))
    with pytest.raises(ValueError, match=r"clip_l and clip_g are 36 wide, context_dim is 32; set it"):
        SD3Texts(str(folder), t5=False, context_dim=32)
    condition = Texts(("a cat",), {}, torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"from before another conditioner's drop"):
        sd3_texts(folder)(condition)
    unpooled = CLIPText(str(folder), "text_encoder", "tokenizer", "penultimate").encode(["a cat"])
    with pytest.raises(ValueError, match="states of clip_l come without a pooled vector; store them again"):
        sd3_texts(folder)(Texts(("a cat",), {"clip_l": unpooled}))
