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
