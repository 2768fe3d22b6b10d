"""The names that CompVis' latent-diffusion code gives to the weights of diffusers' UNet and VQ autoencoder."""

import re

_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VQ = (
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up\.(\d+)\.resnets\.(\d+)", r"up.\1.block.\2"),
    (r"up\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def unet_name(name: str, layers: int) -> str:
    """CompVis' name of a weight of diffusers' UNet, for one whose finest resolution alone lacks attention.

    Args:
        name: diffusers' name.
        layers: residual blocks of a resolution on the way down.
    """
    place, end = name.rsplit(".", 1)
    if place in _UNET_ENDS:
        return f"{_UNET_ENDS[place]}.{end}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        kind, index, rest = match[1], int(match[2]), match[3]
        return f"middle_block.{2 * index if kind == 'resnets' else 1}.{_in_block(rest)}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    assert match is not None, name
    way, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    first = block * (layers + 1)
    if kind == "downsamplers":  # a block of its own behind the resolution's others
        return f"input_blocks.{first + 1 + layers}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":  # the last part of the resolution's last block
        return f"output_blocks.{first + layers}.2.{rest}"
    at = f"input_blocks.{first + 1 + index}" if way == "down" else f"output_blocks.{first + index}"
    return f"{at}.{0 if kind == 'resnets' else 1}.{_in_block(rest)}"


def vq_name(name: str, resolutions: int) -> str:
    """CompVis' name of a weight of diffusers' ``VQModel``.

    Args:
        name: diffusers' name.
        resolutions: of the autoencoder; CompVis counts those of the decoder from the finest.
    """
    name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{resolutions - 1 - int(match[1])}", name)
    for pattern, replacement in _VQ:
        name = re.sub(pattern, replacement, name)
    return name


def _in_block(rest: str) -> str:
    part, end = rest.split(".", 1)
    return f"{_RESIDUAL.get(part, part)}.{end}"
