import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from snapgen_pl.conditioning.clip_text import CLIPText
from snapgen_pl.conditioning.condition import Texts, TextStates
from snapgen_pl.conditioning.joined_texts import JoinedTexts
from snapgen_pl.conditioning.minilm import MiniLM
from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.fsdp import shard
from snapgen_pl.models.denoiser import Conditioning
from tests.conditioning import tiny_clip, tiny_gemma, tiny_sd3
from tests.models.test_unet import small_unet

WIDTH = 40
L, G, GEMMA = tiny_clip.WIDTH, tiny_sd3.WIDTH_G, tiny_gemma.WIDTH
CLIP_TOKENS, GEMMA_TOKENS = tiny_clip.POSITIONS, tiny_gemma.TOKENS
CAPTIONS = ("photo of cat", "a dog", "")
ALL = ["clip_l", "clip_g", "gemma"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts")
    tiny_sd3.save_sd3(path / "sd3")
    tiny_gemma.save_gemma(path / "gemma")
    return path


def encoders(folder: Path, pooled: bool = False) -> dict[str, TextEncoder]:
    sd3 = str(folder / "sd3")
    return {
        "clip_l": CLIPText(sd3, "text_encoder", "tokenizer", "penultimate", pooled=pooled),
        "clip_g": CLIPText(sd3, "text_encoder_2", "tokenizer_2", "penultimate", pooled=pooled),
        "gemma": tiny_gemma.gemma_text(folder / "gemma"),
    }


def joined_texts(folder: Path, blocks: Sequence[Sequence[str]] = (ALL[:2], ALL[2:]), **more: float) -> JoinedTexts:
    named = {name: encoder for name, encoder in encoders(folder).items() if any(name in block for block in blocks)}
    torch.manual_seed(0)
    return JoinedTexts(named, [list(block) for block in blocks], WIDTH, **more)  # type: ignore[arg-type]


def velocity(conditioning: Conditioning) -> Tensor:
    net = small_unet(context_dim=WIDTH)
    torch.manual_seed(1)
    count = len(conditioning.tokens_BSD)
    with torch.no_grad():
        output: Tensor = net(torch.randn(count, 4, 8, 8), torch.rand(count), conditioning).velocity_BCHW
    return output


def test_clips_stand_side_by_side_and_gemma_after_them(folder: Path) -> None:
    conditioner = joined_texts(folder)
    assert conditioner.tokens == 1 + CLIP_TOKENS + GEMMA_TOKENS
    told = conditioner(Texts(CAPTIONS, {}))
    states = {name: encoder.encode(CAPTIONS) for name, encoder in encoders(folder).items()}
    null, clips, gemma = told.tokens_BSD.split((1, CLIP_TOKENS, GEMMA_TOKENS), dim=1)
    assert torch.equal(null, conditioner.null.expand(3, 1, -1))
    assert torch.equal(clips[..., :L], states["clip_l"].tokens_BSD)
    assert torch.equal(clips[..., L : L + G], states["clip_g"].tokens_BSD)
    assert not clips[..., L + G :].any()
    mask = states["gemma"].mask_BS
    assert mask is not None
    assert torch.equal(gemma[..., :GEMMA][mask], states["gemma"].tokens_BSD[mask])
    assert not gemma[..., GEMMA:].any()
    assert told.mask_BS is not None
    assert told.mask_BS[:, : 1 + CLIP_TOKENS].all()  # CLIP's padding included
    assert torch.equal(told.mask_BS[:, 1 + CLIP_TOKENS :], mask)
    assert told.pooled_BP is None
    assert told.tokens_BSD.dtype == torch.float32


@pytest.mark.parametrize(
    ("names", "blocks"),
    [
        (ALL, (ALL[:2], ALL[2:])),
        (["clip_l", "clip_g"], (ALL[:2],)),
        (["gemma"], (ALL[2:],)),
        ([], None),
    ],
)
def test_leaving_blocks_out_equals_not_having_them(
    names: list[str], blocks: Sequence[Sequence[str]] | None, folder: Path
) -> None:
    conditioner, condition = joined_texts(folder), Texts(CAPTIONS, {})
    if blocks is None:
        expected = Conditioning(conditioner.null.detach().expand(3, 1, -1))
    else:
        alone = joined_texts(folder, blocks)
        alone.null.data.copy_(conditioner.null)
        expected = alone(condition)
    whole = velocity(conditioner(condition))
    found = velocity(conditioner(conditioner.keep(condition, names)))
    torch.testing.assert_close(found, velocity(expected), atol=1e-5, rtol=1e-5)
    assert torch.allclose(found, whole, atol=1e-3) == (names == ALL)


def test_each_sample_is_told_what_it_would_be_told_alone(folder: Path) -> None:
    conditioner = joined_texts(folder)
    subsets = [[name for bit, name in enumerate(ALL) if number >> bit & 1] for number in range(8)]
    captions = ("photo of cat",) * 8
    kept = torch.tensor([[name in names for name in ALL] for names in subsets])
    found = velocity(conditioner(Texts(captions, {}, kept)))
    for row, names in enumerate(subsets):
        alone = velocity(conditioner(conditioner.keep(Texts(captions, {}), names)))
        torch.testing.assert_close(found[row], alone[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("names", "zeros"), [(["clip_g"], slice(0, L)), (["clip_l"], slice(L, L + G))])
def test_one_clip_left_out_zeroes_its_part_alone(names: list[str], zeros: slice, folder: Path) -> None:
    conditioner, condition = joined_texts(folder), Texts(CAPTIONS, {})
    whole, part = conditioner(condition), conditioner(conditioner.keep(condition, [*names, "gemma"]))
    clips = slice(1, 1 + CLIP_TOKENS)
    assert whole.tokens_BSD[:, clips, zeros].any()
    expected = whole.tokens_BSD.clone()
    expected[:, clips, zeros] = 0
    assert torch.equal(part.tokens_BSD, expected)
    assert torch.equal(part.mask_BS, whole.mask_BS)


def test_encoders_are_dropped_independently_at_the_rate_asked_for(folder: Path) -> None:
    count, rate = 20_000, 0.464
    conditioner = joined_texts(folder)
    condition = Texts(("",) * count, {})
    assert not conditioner.asks_nothing(condition).any()
    dropped = conditioner.drop(condition, 3, torch.arange(count))
    assert dropped.kept_BE is not None
    lost_BE = ~dropped.kept_BE

    def bound(p: float) -> float:
        return 4 * (p * (1 - p) / count) ** 0.5

    assert lost_BE.float().mean(0).tolist() == pytest.approx([rate] * 3, abs=bound(rate))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        both = (lost_BE[:, first] & lost_BE[:, second]).float().mean().item()
        assert both == pytest.approx(rate**2, abs=bound(rate**2))
    nothing = conditioner.asks_nothing(dropped)
    assert torch.equal(nothing, lost_BE.all(1))
    assert nothing.float().mean().item() == pytest.approx(rate**3, abs=bound(rate**3))
    split = [conditioner.drop(condition._replace(captions=("",)), 3, torch.tensor([at])).kept_BE for at in (7, 19_999)]
    assert torch.equal(torch.cat(split), dropped.kept_BE[[7, 19_999]])  # type: ignore[arg-type]


def test_what_was_left_out_stays_so(folder: Path) -> None:
    conditioner = joined_texts(folder, dropout=0.0)
    condition = conditioner.keep(Texts(CAPTIONS, {}), ["gemma", "clip_l"])
    dropped = conditioner.drop(condition, 0, torch.arange(3))
    assert torch.equal(dropped.kept_BE, condition.kept_BE)  # type: ignore[arg-type]
    assert conditioner.keep(dropped, ["clip_g"]).kept_BE.any() == False  # type: ignore[union-attr]  # noqa: E712


def test_stored_states_serve_as_well_in_half_the_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conditioner = joined_texts(folder)
    stored = {name: encoder.encode(CAPTIONS) for name, encoder in encoders(folder).items()}
    half = {name: states._replace(tokens_BSD=states.tokens_BSD.half()) for name, states in stored.items()}
    expected = conditioner(Texts(CAPTIONS, {}))

    def encode(self: TextEncoder, texts: Sequence[str]) -> TextStates:
        raise AssertionError

    monkeypatch.setattr(TextEncoder, "encode", encode)
    told = conditioner(Texts(CAPTIONS, {**stored, "another's": stored["gemma"]}))
    assert torch.equal(told.tokens_BSD, expected.tokens_BSD)
    assert torch.equal(told.mask_BS, expected.mask_BS)
    rounded = conditioner(Texts(CAPTIONS, half)).tokens_BSD
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, expected.tokens_BSD, atol=1e-2, rtol=1e-3)
    with pytest.raises(AssertionError):
        conditioner(Texts(CAPTIONS, {}))
    # Who is not kept need not be at hand.
    conditioner.unconditional(Texts(CAPTIONS, {}))
    conditioner(conditioner.keep(Texts(CAPTIONS, {"gemma": stored["gemma"]}), ["gemma"]))


def test_nothing_is_the_learned_token(folder: Path) -> None:
    conditioner, condition = joined_texts(folder), Texts(CAPTIONS, {})
    nothing = conditioner.nothing(condition)
    assert conditioner.asks_nothing(nothing).tolist() == [True] * 3
    assert nothing.captions == ("", "", "")
    told = conditioner.unconditional(condition)
    assert told.mask_BS is not None
    assert told.mask_BS.sum(1).tolist() == [1] * 3
    assert not told.tokens_BSD[:, 1:].any()


def test_there_is_no_mask_where_nothing_can_be_masked(folder: Path) -> None:
    conditioner, condition = joined_texts(folder, (ALL[:2],)), Texts(CAPTIONS, {})
    assert conditioner(condition).mask_BS is None
    dropped = conditioner(conditioner.drop(condition, 0, torch.arange(3)))
    assert dropped.mask_BS is not None


def test_only_the_learned_token_is_trained_and_kept(folder: Path) -> None:
    conditioner = joined_texts(folder)
    told = conditioner(conditioner.drop(Texts(CAPTIONS, {}), 0, torch.arange(3)))
    told.tokens_BSD.square().sum().backward()
    assert conditioner.null.grad is not None
    torch.testing.assert_close(conditioner.null.grad, 6 * conditioner.null.detach())
    assert list(conditioner.state_dict()) == ["null"]
    assert [name for name, _ in conditioner.named_parameters()] == ["null"]
    assert [name for name, _ in conditioner.named_modules()] == [""]
    twin = copy.deepcopy(conditioner)
    assert twin.null is not conditioner.null
    assert all(twin._encoders[name] is conditioner._encoders[name] for name in ALL)
    assert conditioner.null.std().item() == pytest.approx(1, abs=0.4)


def test_pooled_vectors_stand_side_by_side_with_zeros_for_what_is_left_out(folder: Path) -> None:
    named = {name: encoder for name, encoder in encoders(folder, pooled=True).items() if name != "gemma"}
    conditioner, condition = JoinedTexts(named, [ALL[:2]], WIDTH, pooled=True), Texts(CAPTIONS, {})
    first, second = tiny_sd3.PROJECTIONS
    whole = conditioner(condition).pooled_BP
    pooled = [encoder.encode(CAPTIONS).pooled_BP for encoder in named.values()]
    assert torch.equal(whole, torch.cat(pooled, dim=-1))
    without = Texts(CAPTIONS, {}, torch.tensor([[False, True]]).expand(3, -1))
    for asked in (conditioner.keep(condition, ["clip_g"]), without):
        part = conditioner(asked).pooled_BP
        assert torch.equal(part[:, first:], whole[:, first:])
        assert not part[:, :first].any()
    assert conditioner.unconditional(condition).pooled_BP.shape == (3, first + second)  # type: ignore[union-attr]
    assert not conditioner.unconditional(condition).pooled_BP.any()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="pooled is set, but not for gemma; set it for all"):
        JoinedTexts(encoders(folder, pooled=True), [ALL[:2], ALL[2:]], WIDTH, pooled=True)


def test_beside_a_block_that_goes_on_padding_is_zero(folder: Path) -> None:
    named = {"clip_l": encoders(folder)["clip_l"], "minilm": MiniLM(tokens=CLIP_TOKENS)}
    conditioner, condition = JoinedTexts(named, [["clip_l", "minilm"]], 400), Texts(CAPTIONS, {})
    mask = named["minilm"].encode(CAPTIONS).mask_BS
    told = conditioner(condition)
    assert told.mask_BS is None
    beside = told.tokens_BSD[:, 1:, L:]
    assert torch.equal(beside.any(-1), mask)
    alone = conditioner(conditioner.keep(condition, ["minilm"]))
    assert torch.equal(alone.mask_BS[:, 1:], mask)
    assert torch.equal(alone.tokens_BSD[:, 1:, L:], beside)


def test_one_encoder_alone_will_do(tmp_path: Path) -> None:
    conditioner = JoinedTexts({"minilm": MiniLM()}, [["minilm"]], 384, dropout=0.1)
    assert conditioner.ready(tmp_path, ()) == "texts: a learned token, minilm (20): 21 tokens, 384 wide"
    assert conditioner.encoders() == {"minilm": MiniLM().identity}
    told = conditioner(Texts(("a fire truck", ""), {}))
    assert told.mask_BS.sum(1).tolist() == [1 + 5, 1 + 2]
    kept = conditioner.drop(Texts(("",) * 10_000, {}), 0, torch.arange(10_000)).kept_BE
    assert kept is not None
    assert kept.float().mean().item() == pytest.approx(0.9, abs=4 * (0.09 / 10_000) ** 0.5)


def test_it_is_sharded_as_other_conditioners_are(folder: Path) -> None:
    conditioner, condition = joined_texts(folder), Texts(CAPTIONS, {})
    dropped = conditioner.drop(condition, 0, torch.arange(3))
    expected, unconditional = conditioner(dropped), conditioner.unconditional(condition)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        shard(conditioner, init_device_mesh("cpu", (1,)))
        assert isinstance(conditioner.null, DTensor)
        told = conditioner(dropped)
        assert torch.equal(told.tokens_BSD, expected.tokens_BSD)
        assert torch.equal(conditioner.unconditional(condition).tokens_BSD, unconditional.tokens_BSD)
        told.tokens_BSD.sum().backward()
        assert torch.equal(conditioner.null.grad.full_tensor(), torch.full((WIDTH,), 3.0))  # type: ignore[union-attr]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("blocks", "width", "message"),
    [
        ([["clip_l", "gemma"], ["clip_g"]], 40, r"different numbers of tokens \(clip_l 12, gemma 10\); give each its"),
        ([["clip_l", "clip_g"], ["gemma"]], 35, "clip_l and clip_g are 36 wide, context_dim is 35; set it"),
        ([["clip_l", "clip_g"], ["gema"]], 40, r"name \['clip_l', 'clip_g', 'gema'\], the encoders are"),
        ([["clip_l"], ["clip_g"]], 40, "name each in one block, once"),
        ([["clip_l", "clip_g"], ["gemma"], ["gemma"]], 40, "name each in one block, once"),
        ([["clip_l", "clip_g"], ["gemma"], []], 40, "an encoder at least, and one in every block"),
    ],
)
def test_blocks_that_cannot_be_joined_are_refused(
    blocks: list[list[str]], width: int, message: str, folder: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        JoinedTexts(encoders(folder), blocks, width)


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="dropout is 1"):
        joined_texts(folder, dropout=1.0)
    with pytest.raises(ValueError, match="an encoder at least"):
        JoinedTexts({}, [])
    conditioner, condition = joined_texts(folder), Texts(("a cat",), {})
    with pytest.raises(ValueError, match=r"no encoders \['clip'\]; there are \['clip_l', 'clip_g', 'gemma'\]"):
        conditioner.keep(condition, ["clip", "gemma"])
    with pytest.raises(ValueError, match="captions are needed here"):
        conditioner(torch.tensor([0]))
    with pytest.raises(ValueError, match=r"kept_BE is \(1, 2\); \(1, 3\) are needed, a column each of \['clip_l'"):
        conditioner(condition._replace(kept_BE=torch.ones(1, 2, dtype=torch.bool)))
    states = {name: encoder.encode(("a cat",)) for name, encoder in encoders(folder).items()}
    for wrong, message in (
        ({"clip_l": states["clip_g"]}, r"states of clip_l are \(1, 12, 20\), its encoder's \(1, 12, 16\); store"),
        ({"gemma": states["gemma"]._replace(mask_BS=None)}, "states of gemma come without the mask that its encoder"),
        (
            {"clip_l": states["clip_l"]._replace(mask_BS=torch.ones(1, 12, dtype=torch.bool))},
            "states of clip_l come with a mask, unlike those that its encoder gives",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            conditioner(condition._replace(states=wrong))
