from pathlib import Path

import pytest
import torch
from transformers import Gemma2Model

from snapgen_pl.conditioning.gemma_text import GemmaText
from tests.conditioning.tiny_gemma import TOKENS, WIDTH, gemma_text, save_gemma

TEXTS = ["", "a cat", "a photo"]
LONG = "a dog " * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma")
    save_gemma(path)
    return path


@torch.no_grad()
def test_each_token_is_its_last_state_at_a_scale_of_one(folder: Path) -> None:
    encoder = gemma_text(folder)
    assert (encoder.tokens, encoder.context_dim, encoder.pooled_dim) == (TOKENS, WIDTH, None)
    states = encoder.encode(TEXTS)
    begin, space, a, cat = 2, 261, 262, 289
    texts = [[begin], [begin, a, space, cat]]
    assert states.mask_BS is not None
    assert states.mask_BS.sum(1).tolist() == [1, 4, 6]
    assert states.mask_BS[:, 0].all()  # on the right, where Gemma's own tokenizer pads on the left
    network = Gemma2Model.from_pretrained(folder).eval()
    for tokens, mask, ids in zip(states.tokens_BSD, states.mask_BS, texts, strict=False):
        alone = network(input_ids=torch.tensor([ids])).last_hidden_state[0]
        expected = alone / alone.square().mean(-1, keepdim=True).sqrt()
        torch.testing.assert_close(tokens[mask], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states.tokens_BSD.square().mean(-1), torch.ones(3, TOKENS))


def test_a_long_caption_is_cut_at_its_end(folder: Path) -> None:
    encoder = gemma_text(folder, truncate=True)
    cut = encoder.encode([LONG, LONG[:-6]])
    assert cut.mask_BS is not None
    assert cut.mask_BS.all()
    assert torch.equal(cut.tokens_BSD[0], cut.tokens_BSD[1])
    with pytest.raises(ValueError, match=rf"tokens; there is room for {TOKENS}, and for 64 at most: shorten it"):
        gemma_text(folder).encode([LONG])


def test_half_precision_gives_states_in_fp32(folder: Path) -> None:
    states = GemmaText(str(folder), tokens=TOKENS, dtype="bfloat16").encode(TEXTS)
    assert states.tokens_BSD.dtype == torch.float32
    expected = gemma_text(folder).encode(TEXTS)
    assert not torch.equal(states.tokens_BSD, expected.tokens_BSD)
    torch.testing.assert_close(states.tokens_BSD, expected.tokens_BSD, atol=0.2, rtol=0)


def test_there_must_be_positions_and_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokens is 65; .* has positions for 1 to 64"):
        GemmaText(str(folder), tokens=65)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"it needs tokenizer\.json; download them there"):
        gemma_text(tmp_path)
