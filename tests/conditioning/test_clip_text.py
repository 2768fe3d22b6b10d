from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer

from snapgen_pl.conditioning.clip_text import CLIPText
from tests.conditioning.tiny_clip import POSITIONS, WIDTH, clip_text, save_whole_clip
from tests.conditioning.tiny_sd3 import PROJECTIONS, WIDTH_G, save_sd3

TEXTS = ["", "a photo of cat", "a cat!"]
LONG = "dog " * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd3")
    save_sd3(path)
    return path


def clip_g(folder: Path, **more: object) -> CLIPText:
    return CLIPText(str(folder), "text_encoder_2", "tokenizer_2", **more)  # type: ignore[arg-type]


def token_ids(tokenizer: Path, texts: list[str]) -> Tensor:
    encoded = CLIPTokenizer.from_pretrained(tokenizer)(texts, padding="max_length", max_length=POSITIONS)
    return torch.tensor(encoded["input_ids"])


@torch.no_grad()
def test_the_penultimate_layer_is_what_the_last_one_reads(folder: Path) -> None:
    encoder = clip_g(folder, layer="penultimate")
    assert (encoder.tokens, encoder.context_dim, encoder.pooled_dim) == (POSITIONS, WIDTH_G, None)
    states = encoder.encode(TEXTS)
    network = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2").eval().text_model
    ids = token_ids(folder / "tokenizer_2", TEXTS)
    seen: list[Tensor] = []
    network.encoder.layers[-1].register_forward_pre_hook(lambda layer, arguments: seen.append(arguments[0]))
    last = network(input_ids=ids).last_hidden_state
    assert torch.equal(states.tokens_BSD, seen[0])
    assert states.pooled_BP is None
    assert torch.equal(clip_g(folder).encode(TEXTS).tokens_BSD, last)


@torch.no_grad()
@pytest.mark.parametrize("layer", ["last", "penultimate"])
def test_the_pooled_vector_is_the_projected_last_layer_whatever_the_tokens_are(layer: str, folder: Path) -> None:
    encoder = clip_g(folder, layer=layer, pooled=True)
    states = encoder.encode(TEXTS)
    assert encoder.pooled_dim == PROJECTIONS[1]
    network = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2").eval()
    expected = network(input_ids=token_ids(folder / "tokenizer_2", TEXTS)).text_embeds
    assert states.pooled_BP is not None
    assert torch.equal(states.pooled_BP, expected)
    assert torch.equal(states.tokens_BSD, clip_g(folder, layer=layer).encode(TEXTS).tokens_BSD)


def test_clip_g_pads_with_exclamation_marks(folder: Path) -> None:
    ids = token_ids(folder / "tokenizer_2", TEXTS)
    assert ids[0, 2:].eq(0).all()
    others = token_ids(folder / "tokenizer", TEXTS)
    assert others[0, 2:].eq(others[0, 1]).all()
    # The end mark is found before the padding, be that a mark of its own or the same.
    network = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2").eval()
    with torch.no_grad():
        alone = network(input_ids=ids[:1, :2]).text_embeds
    pooled = clip_g(folder, pooled=True).encode([""]).pooled_BP
    torch.testing.assert_close(pooled, alone)


@torch.no_grad()
def test_a_whole_clip_projects_to_its_own_width(tmp_path: Path) -> None:
    save_whole_clip(tmp_path)  # its inner configuration says 512, as that of OpenCLIP's ViT-bigG/14 does
    encoder = CLIPText(str(tmp_path), pooled=True)
    assert encoder.pooled_dim == 8
    states = encoder.encode(TEXTS)
    whole = CLIPModel.from_pretrained(tmp_path).eval()
    ids = token_ids(tmp_path, TEXTS)
    assert states.pooled_BP is not None
    torch.testing.assert_close(states.pooled_BP, whole.text_projection(whole.text_model(input_ids=ids).pooler_output))


def test_weights_without_a_projection_give_no_pooled_vector(pipeline: Path) -> None:
    encoder = CLIPText(str(pipeline), "text_encoder", "tokenizer", pooled=True)
    with pytest.raises(ValueError, match=r"text_encoder has weights without a projection; unset pooled"):
        encoder.encode(TEXTS)
    config = pipeline / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace("projection_dim", "projected"))
    with pytest.raises(ValueError, match=r"does not say its projection_dim; pooled needs"):
        CLIPText(str(pipeline), "text_encoder", "tokenizer", pooled=True)


def test_names_of_weights_that_repositories_have_are_understood(pipeline: Path) -> None:
    """Older files name the text model before each weight, and keep its positions."""
    expected = clip_text(pipeline).encode(TEXTS).tokens_BSD
    file = pipeline / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(file).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    save_file(tensors, file, {"format": "pt"})
    assert torch.equal(clip_text(pipeline).encode(TEXTS).tokens_BSD, expected)


def test_a_long_caption_is_cut_and_keeps_its_end_mark(folder: Path) -> None:
    for suffix in ("", "_2"):
        encoder = CLIPText(str(folder), f"text_encoder{suffix}", f"tokenizer{suffix}", truncate=True, pooled=True)
        cut, kept = encoder.encode([LONG]), encoder.encode(["dog " * (POSITIONS - 2)])
        assert torch.equal(cut.tokens_BSD, kept.tokens_BSD)
        assert torch.equal(cut.pooled_BP, kept.pooled_BP)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"takes 22 tokens; there is room for 12, and for 12 at most: shorten it, or"):
        clip_g(folder).encode([LONG])


def test_identity_tells_states_apart_and_nothing_else(folder: Path) -> None:
    plain = clip_g(folder)
    same = [clip_g(folder, pooled=True), clip_g(folder, dtype="bfloat16")]
    other = [clip_g(folder, layer="penultimate"), clip_g(folder, truncate=True)]
    assert {encoder.identity for encoder in same} == {plain.identity}
    assert len({encoder.identity for encoder in [plain, *other]}) == 3
    assert clip_g(folder, layer="penultimate").context_dim != WIDTH
