"""Figures published by others, for the tables to stand beside ours. Nothing here was measured by this project."""

from typing import NamedTuple


class AblationStep(NamedTuple):
    """One row of SnapGen's ablation as reported (arXiv 2412.09619; figures through a third party's summary).

    Attributes:
        row: what the row changes.
        file: the row's YAML under experiments/imagenet256/ablation, without its ending.
        against: index of the row that the changes compare with; None for the first.
        params_change: change of parameters in percent; None where none is reported.
        macs_change: change of MACs at 128x128 latents in percent.
        fid: reported ImageNet-256 FID.
    """

    row: str
    file: str
    against: int | None
    params_change: float | None = None
    macs_change: float | None = None
    fid: float | None = None


ABLATION = (
    AblationStep("thin SDXL", "1_sdxl_thin", None, fid=3.76),
    AblationStep("no self-attention above the lowest stage", "2_no_self_attention", 0, None, -17, 3.12),
    AblationStep("separable convolutions", "3_separable", 1, -24, None, 3.38),
    AblationStep("separable convolutions, twice as wide inside", "4_separable_x2", 1, -15, -27),
    AblationStep("feed-forward expansion 4 to 3", "5_ffn_3", 3, -12, -12),
    AblationStep("multi-query attention", "6_multi_query", 4, -16, -6),
    AblationStep("cross-attention from the first stage", "7_cross_attention_first", 5),
    AblationStep("QK norm, RoPE: SnapGen", "8_reference", 6, fid=2.06),
)


class PublishedModel(NamedTuple):
    """A row of the ImageNet-256 table as SnapGen's authors print it.

    Attributes:
        model: its name.
        key: names its reports.
        file: what declares it, under experiments/imagenet256.
        channels: of the latent that its compute is counted at.
        latent_size: height and width of that latent.
        tokens: context tokens it is counted with.
        params_m: millions of parameters.
        gmacs: billions of multiply-accumulates.
        fid: with guidance.
    """

    model: str
    key: str
    file: str
    channels: int
    latent_size: int
    tokens: int
    params_m: float
    gmacs: float
    fid: float


IMAGENET256 = (
    PublishedModel("LDM-4", "ldm_4", "peers/ldm_4.yaml", 3, 64, 1, 400, 104, 3.60),
    PublishedModel("U-ViT-L", "uvit_l", "peers/uvit_l.yaml", 4, 32, 1, 287, 77, 3.40),
    PublishedModel("U-ViT-H", "uvit_h", "peers/uvit_h.yaml", 4, 32, 1, 501, 133, 2.29),
    PublishedModel("DiT-XL", "dit_xl", "peers/dit_xl.yaml", 4, 32, 1, 675, 119, 2.27),
    PublishedModel("SiT-XL", "sit_xl", "peers/dit_xl.yaml", 4, 32, 1, 675, 119, 2.06),
    PublishedModel("SnapGen", "8_reference", "ablation/8_reference.yaml", 4, 32, 77, 372, 38, 2.06),
)

NOT_REPRODUCED = "SnapGen's 2.06 is not reproduced here: see `table cost` for what it takes."


class PublishedDecoder(NamedTuple):
    """A rung of the ladder from SD3's decoder to SnapGen's; figures as SnapGen's authors print them (arXiv 2412.09619).

    Attributes:
        key: names its records.
        rung: what it changes.
        file: the rung's YAML under experiments/decoder/ladder, without its ending.
        channels: of the latent.
        params_m: millions of parameters; None where none are reported.
        gflops: of an image of 1024 px, in truth multiply-accumulates in billions.
        psnr: of reconstructions, in dB.
    """

    key: str
    rung: str
    file: str
    channels: int = 16
    params_m: float | None = None
    gflops: float | None = None
    psnr: float | None = None


DECODERS = (
    PublishedDecoder("sdxl", "SDXL", "1_sd3", 4, 49.49, 4970, 24.89),
    PublishedDecoder("sd3", "SD3", "1_sd3", 16, 49.55, 4970, 27.92),
    PublishedDecoder("no_attention", "no attention", "2_no_attention"),
    PublishedDecoder("minimal_norm", "norms in the middle and before the output alone", "3_minimal_norm"),
    PublishedDecoder("thinner", "thinner", "4_thinner"),
    PublishedDecoder("separable", "separable convolutions", "5_separable"),
    PublishedDecoder("fewer_blocks", "fewer blocks in the finest stages", "6_fewer_blocks"),
    PublishedDecoder("snapgen", "no convolution in shortcuts: SnapGen", "7_reference", 16, 1.38, 224, 27.85),
)


class PublishedLatency(NamedTuple):
    """What a part of SnapGen takes at 1024 px on an iPhone 16 Pro Max, an A18 Pro; as SnapGen's authors print it.

    Attributes:
        component: the part.
        params_m: millions of parameters.
        milliseconds: of one call.
    """

    component: str
    params_m: float
    milliseconds: float


LATENCIES = (
    PublishedLatency("denoiser, a step", 378, 274),
    PublishedLatency("tiny decoder", 1.38, 119),
    PublishedLatency("CLIP-L", 123, 4),
    PublishedLatency("CLIP-G", 302, 23),
)


class PublishedTextToImage(NamedTuple):
    """A row of the text-to-image table as SnapGen's authors print it (arXiv 2412.09619); None where nothing is at hand.

    Attributes:
        model: its name.
        key: names its reports.
        params_b: billions of parameters.
        images_per_s: at 1024 px.
        geneval: in [0, 1].
        dpg: DPG-Bench, in [0, 100].
        clip: a cosine.
        image_reward: in deviations from the mean of ImageReward's training images.
    """

    model: str
    key: str
    params_b: float | None
    images_per_s: float | None
    geneval: float
    dpg: float
    clip: float
    image_reward: float


TEXT_TO_IMAGE = (
    PublishedTextToImage("PixArt-alpha", "pixart_alpha", 0.6, 0.42, 0.48, 71.1, 0.316, 1.15),
    PublishedTextToImage("PixArt-Sigma", "pixart_sigma", 0.6, 0.46, 0.53, 80.5, 0.317, 1.13),
    PublishedTextToImage("SD-1.5", "sd_1_5", 0.9, None, 0.43, 63.2, 0.287, 0.19),
    PublishedTextToImage("SD-2.1", "sd_2_1", 0.9, None, 0.50, 64.2, 0.281, 0.29),
    PublishedTextToImage("Sana", "sana", 1.6, 1.00, 0.66, 84.8, 0.327, 1.25),
    PublishedTextToImage("Lumina-Next", "lumina_next", 2.0, 0.06, 0.46, 74.6, 0.309, 0.88),
    PublishedTextToImage("SDXL", "sdxl", 2.6, 0.18, 0.55, 74.7, 0.301, 0.99),
    PublishedTextToImage("Playground v2", "playground_v2", 2.6, 0.18, 0.59, 74.5, 0.317, 1.25),
    PublishedTextToImage("Playground v2.5", "playground_v2_5", None, None, 0.56, 75.5, 0.319, 1.34),
    PublishedTextToImage("IF-XL", "if_xl", 5.5, 0.06, 0.61, 75.6, 0.311, 0.65),
    PublishedTextToImage("SnapGen without distillation", "snapgen_no_kd", 0.38, 1.04, 0.61, 76.3, 0.321, 1.20),
    PublishedTextToImage("SnapGen", "snapgen", 0.38, 1.04, 0.66, 81.1, 0.332, 1.32),
)
