from pathlib import Path

import pytest
import torch
from transformers import T5EncoderModel, T5Tokenizer

from snapgen_pl.conditioning.t5_text import T5Text
from tests.conditioning.tiny_t5 import WIDTH, save_t5

TEXTS = ["", "a cat", "a photo of a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("t5")
    save_t5(path / "text_encoder_3", path / "tokenizer_3")
    return path


@torch.no_grad()
def test_padding_is_attended_to_in_the_network_and_after_it(folder: Path) -> None:
    encoder = T5Text(str(folder), tokens=9)
    assert (encoder.tokens, encoder.context_dim, encoder.pooled_dim) == (9, WIDTH, None)
    states = encoder.encode(TEXTS)
    assert states.mask_BS is None
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer_3")
    ids = torch.tensor(tokenizer(TEXTS, padding="max_length", max_length=9)["input_ids"])
    assert ids[1].tolist()[2:] == [1, *[0] * 6]
    network = T5EncoderModel.from_pretrained(folder / "text_encoder_3").eval()
    assert torch.equal(states.tokens_BSD, network(input_ids=ids).last_hidden_state)
    masked = network(input_ids=ids, attention_mask=ids.ne(0)).last_hidden_state
    assert not torch.allclose(states.tokens_BSD[0, 0], masked[0, 0], atol=1e-3)


def test_any_number_of_tokens_will_do_and_longer_captions_are_cut(folder: Path) -> None:
    encoder = T5Text(str(folder), tokens=5, truncate=True)
    cut, kept = encoder.encode(["a " * 30]).tokens_BSD, encoder.encode(["a " * 4]).tokens_BSD
    assert torch.equal(cut, kept)  # four words and the end mark
    assert T5Text(str(folder)).encode(["a"]).tokens_BSD.shape == (1, 256, WIDTH)
    with pytest.raises(ValueError, match=r"takes 31 tokens; there is room for 5: shorten it"):
        T5Text(str(folder), tokens=5).encode(["a " * 30])
    with pytest.raises(ValueError, match="tokens is 0; it must be >= 1"):
        T5Text(str(folder), tokens=0)
    assert T5Text(str(folder), tokens=5).identity != T5Text(str(folder), tokens=6).identity
