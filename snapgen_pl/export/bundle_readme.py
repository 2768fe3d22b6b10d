"""The page that goes along with a bundle."""

from collections.abc import Mapping, Sequence
from typing import Any

from snapgen_pl.markdown import table
from snapgen_pl.pipeline.ingredients import Ingredient
from snapgen_pl.pipeline.licences import STABILITY
from snapgen_pl.pipeline.terms import known, terms

_MEGA = 1e6


def bundle_readme(content: Mapping[str, Any], made_from: Sequence[Ingredient]) -> str:
    """The page, as Markdown.

    Args:
        content: of bundle.json.
        made_from: what the run is made from.
    """
    sections = [
        f"# {content['run']}, step {content['step']}, for Core ML",
        *(["**Powered by Stability AI**"] if STABILITY in known(made_from) else []),
        f"iOS {content['minimum_ios']} or macOS {content['minimum_macos']} at least. The packages were checked by "
        "evaluating them on another machine. Nothing here was run on a Mac or a phone by who wrote it: neither latency "
        "nor residency is known.",
        _COMMANDS,
        "## Models",
        table(("model", "of the graph", "MB", "compressed", "takes", "gives"), map(_row, content["models"].items())),
        "## Drawing",
        _drawing(content),
        "## Beside Apple's ml-stable-diffusion",
        _DIFFERENCES,
        "## Licences",
        terms(made_from),
    ]
    return "\n\n".join(sections) + "\n"


def _row(named: tuple[str, Mapping[str, Any]]) -> tuple[str, ...]:
    graph, model = named
    takes, gives = (", ".join(f"{name} {tuple(shape)}" for name, shape in model[key].items())
                    for key in ("inputs", "outputs"))  # fmt: skip
    size = f"{model['bytes'] / _MEGA:.1f}"
    return " then ".join(model["files"]), graph, size, model["compressed"] or "-", takes, gives


def _drawing(content: Mapping[str, Any]) -> str:
    guidance, latents = content["guidance"], content["latents"]
    times = ", ".join(f"{t:.4f}" for t in content["timesteps"])
    guided = (
        "Nothing is guided: one call of the denoiser a step."
        if guidance["scale"] == 1
        else f"Guided by {guidance['scale']:g} at times in {tuple(guidance['interval'])}: two calls a step there, one "
        "under the context of the prompt and one under that of no prompt (`kept` and all states 0)."
    )
    scaled = "" if latents["scale"] is None else f" (scale {latents['scale']:g}, shift {latents['shift']:g})"
    return (
        f"{content['sampler']} at the times {times}; 1 is noise, and the velocity is noise - data. {guided} Latents "
        f"{tuple(latents['shape'])} go to the decoder as they are: it undoes their scale and shift itself{scaled}. "
        f"Images come in about {content['image']['range']}: pixels are 127.5 x + 128, cut off at 0 and 255. "
        "`draw_on_mac.py` shows every step, and `bundle.json` has every number."
    )


_COMMANDS = """```sh
./compile_on_mac.sh                                  # with Xcode; makes a .mlmodelc of each package
pip install coremltools numpy pillow tokenizers
python draw_on_mac.py "a red apple" --out apple.png  # tells where operations run, draws, and times it
```"""

_DIFFERENCES = """Files are called as its Swift package looks for them, but that package does not run them as they are:

- **Times have fractions.** `timestep` is one float in [0, 1]; there it is an integer, twice.
- **Batch 1.** Guidance is a second call, and there is none in few steps; there `sample` holds both halves.
- **The denoiser gives `velocity`**, noise - data, for a flow-matching sampler; there it is `noise_pred`.
- **`Context`** stands between text encoders and denoiser, and makes of their states what the denoiser takes: `context`
  of (1, tokens, width), and `mask`; there it is `encoder_hidden_states` of (2, width, 1, tokens), made by the runner,
  beside `time_ids` and `text_embeds`, which are not here.
- **Text encoders** take `input_ids` as int32, and give `tokens` and `pooled`; there they are floats, and
  `hidden_embeds` and `pooled_outputs`.
- **`VAEDecoder`** takes `latent`, whose scale and shift it undoes itself; there it is `z`, and the runner scales it.

`vocab.json` and `merges.txt`, where they are here, are CLIP's own, as it reads them; the second encoder pads with 0."""
