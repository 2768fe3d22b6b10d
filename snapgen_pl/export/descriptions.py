"""What graphs are, and what goes in and comes out of them: the words that Xcode shows of a package."""

from collections.abc import Mapping

from snapgen_pl.export.graphs import CONTEXT, DECODER, DENOISER

IMAGE_RANGE = (-1, 1)  # of what decoders give, about
HANDED_OVER = "What the first half of the graph hands over to the second."
_TOLD = {
    "context": "What is asked for: one vector a token.",
    "mask": "1 for each token of the context that may be attended to, 0 for each that may not.",
    "pooled": "What is asked for as a whole: one vector.",
}
_STATES = {
    "tokens": "States of the text: one vector a token.",
    "mask": "1 for each token of the text, 0 for padding.",
    "pooled": "The text as a whole: one vector.",
}
_TEXT = "A text encoder: what a text says, from its tokens."
_GRAPHS = {
    DENOISER: "The denoiser of a rectified flow: the velocity of a latent at a time.",
    DECODER: "The decoder: an image from a latent.",
    CONTEXT: "The conditioner: what the denoiser is told of a class, or of a text's states.",
}
_VALUES: Mapping[str, Mapping[str, str]] = {
    DENOISER: {
        "sample": "The latent at that time; at 1 it is standard normal noise.",
        "timestep": "The time, from 0 to 1 with fractions: 1 is noise, 0 is data.",
        "velocity": "Noise - data, by which the latent changes over a time of 1.",
        **_TOLD,
    },
    DECODER: {
        "latent": "The denoiser's latent at time 0, as it is: its scale and shift are undone in here.",
        "image": f"Red, green and blue, about {list(IMAGE_RANGE)}: -1 is none of a colour, 1 all of it.",
    },
    CONTEXT: {
        "label": "The number of the class; the count of classes stands for none.",
        "kept": "1 for each text encoder that is asked, in order, 0 for each that is not; all 0 is no text.",
        **_TOLD,
    },
}
_TEXT_VALUES = {
    "input_ids": "Numbers of the text's tokens, padded.",
    "attention_mask": _STATES["mask"],
    **_STATES,
}


def describe_graph(graph: str) -> str:
    """What a graph does, in a sentence.

    Args:
        graph: its name; any but the denoiser's, the decoder's and the context's is a text encoder's.
    """
    return _GRAPHS.get(graph, _TEXT)


def describe_value(graph: str, name: str) -> str | None:
    """What an input or an output of a graph is, in a sentence; None for what it does not have by itself.

    Args:
        graph: as in :func:`describe_graph`.
        name: of the input or output.
    """
    told = _VALUES.get(graph, _TEXT_VALUES).get(name)
    encoder, _, part = name.rpartition("_")
    if told is None and graph == CONTEXT and encoder and part in _STATES:
        return f"Of the text encoder {encoder}. {_STATES[part]}"
    return told
