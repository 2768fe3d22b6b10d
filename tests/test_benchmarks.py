import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import decoder, emoji_rope, growth, latents, sampling, texts
from benchmarks.dreamlite import DreamLite
from benchmarks.kernels import kind_of, summed
from benchmarks.networks import SUBJECTS, Subject, feed, forward_backward, materialise
from benchmarks.throughput import SIZES, Pipeline, largest, measure
from benchmarks.throughput import main as measure_throughput
from benchmarks.timing import Sample, Timing, environment, interleave, summarise
from benchmarks.unet import cpu_table, main, ratios, run_cpu
from snapgen_pl.flow.samplers import Euler
from snapgen_pl.models.decoder import Decoder
from snapgen_pl.models.decoder import Stage as DecoderStage
from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.models.peers.dit import DiT
from snapgen_pl.models.unet import Block, Stage, UNet
from snapgen_pl.tables.records import recipe

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


def tiny_unet(size: int = 8) -> UNet:
    stages = [Stage(64, [Block()], [Block()] * 2), Stage(64, [Block(layers=1)], [Block(layers=1)] * 2)]
    return UNet(stages, middle_layers=1, context_dim=16)


def tiny_dit(size: int = 8) -> DiT:
    return DiT(hidden=32, depth=1, heads=2, context_dim=32)


def test_rounds_are_interleaved_after_the_warm_ups() -> None:
    calls: list[str] = []
    subjects = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = interleave(subjects, rounds=2, warmups=1)
    assert "".join(calls) == "abc" * 3
    assert {name: timing.rounds for name, timing in timings.items()} == {"a": 2, "b": 2, "c": 2}


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        interleave({"a": lambda: None}, rounds=0)


def test_statistics_are_minima_and_medians_of_each_clock() -> None:
    samples = [Sample(3.0, 5.0), Sample(1.0, 9.0), Sample(2.0, 4.0)]
    assert summarise(samples) == Timing(3, cpu_min_s=1.0, cpu_median_s=2.0, wall_min_s=4.0, wall_median_s=5.0)


def test_a_ratio_above_one_means_that_ours_is_faster() -> None:
    ours = Timing(1, cpu_min_s=1.0, cpu_median_s=9.0, wall_min_s=2.0, wall_median_s=9.0)
    peer = Timing(1, cpu_min_s=3.0, cpu_median_s=9.0, wall_min_s=1.0, wall_median_s=9.0)
    assert ratios("forward", {"snapgen": ours, "peer": peer}) == {
        "forward_ratio_to_peer": 3.0,
        "forward_wall_ratio_to_peer": 0.5,
    }


def test_the_compared_networks_have_the_published_sizes() -> None:
    costs = {name: subject.cost(32) for name, subject in SUBJECTS.items()}
    assert {name: (round(cost.params_m), round(cost.gmacs)) for name, cost in costs.items()} == {
        "snapgen": (372, 38),
        "dit_xl_2": (674, 119),  # without the label table of 1.15 M and the variance's output
        "uvit_h": (500, 133),
        "thin_sdxl": (634, 69),
        "dreamlite": (377, 39),  # at SnapGen's widths and depths
    }


@pytest.mark.parametrize("build", [tiny_unet, tiny_dit])
def test_a_network_built_fast_runs_on_ordinary_numbers(build: type[UNet] | type[DiT]) -> None:
    network: Denoiser = materialise(build, CPU)
    for name, parameter in network.named_parameters():
        assert 0 < parameter.abs().mean() < 0.02, name
    fed = feed(network, batch=2, size=8, tokens=3, device=CPU)
    forward_backward(network, fed)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_a_network_with_buffers_is_not_built_fast() -> None:
    class Buffered(DiT):
        def __init__(self) -> None:
            super().__init__(hidden=32, depth=1, heads=2, context_dim=32)
            self.register_buffer("table", torch.ones(3))

    with pytest.raises(ValueError, match="table"):
        materialise(Buffered, CPU)


def test_the_record_holds_ratios_costs_protocol_and_machine() -> None:
    subjects = {"snapgen": Subject(tiny_unet, tokens=3), "dit_xl_2": Subject(tiny_dit, tokens=1)}
    report = run_cpu(subjects, batch=1, size=8, rounds=2, training_rounds=1)
    record = json.loads(json.dumps(report.record()))
    peer, ours = record["forward"]["dit_xl_2"], record["forward"]["snapgen"]
    assert record["forward_ratio_to_dit_xl_2"] == peer["cpu_min_s"] / ours["cpu_min_s"]
    assert record["training_wall_ratio_to_dit_xl_2"] > 0
    assert record["costs"]["snapgen"] == subjects["snapgen"].cost(8)._asdict()
    assert record["environment"]["threads"] == torch.get_num_threads()
    assert record["environment"]["torch"] == torch.__version__

    console = Console(width=120, record=True)
    console.print(cpu_table(report))
    assert "dit_xl_2" in console.export_text()


def test_without_training_rounds_the_record_has_predictions_alone() -> None:
    subjects = {"snapgen": Subject(tiny_unet, tokens=3), "dit_xl_2": Subject(tiny_dit, tokens=1)}
    report = run_cpu(subjects, batch=1, size=8, rounds=1, training_rounds=0)
    assert report.training == {}
    assert set(report.ratios) == {"forward_ratio_to_dit_xl_2", "forward_wall_ratio_to_dit_xl_2"}


def test_the_environment_names_the_command_without_the_machines_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/unet.py", "--json", "a b.json"])
    assert environment("benchmarks.unet").command == "python -m benchmarks.unet --json 'a b.json'"


def test_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    with pytest.raises(ValueError, match="batches is \\(4,\\), for which there is no use on cpu; leave it out"):
        main(json=record, batches=(4,))
    with pytest.raises(ValueError, match="threads is 2, for which there is no use on cuda; leave it out"):
        main(json=record, device="cuda", threads=2)
    for empty in ({"batches": (0,)}, {"batches": ()}, {"modes": ()}, {"training_rounds": 0}):
        with pytest.raises(ValueError, match="give at least one batch and one mode, and numbers from 1 on"):
            main(json=record, device="cuda", **empty)
    assert not list(tmp_path.iterdir())


def test_samples_are_timed_by_size_and_steps() -> None:
    subjects = {"snapgen": Subject(tiny_unet, tokens=3), "dit_xl_2": Subject(tiny_dit, tokens=1)}
    report = sampling.run(subjects, [8, 16], [2, 1], batch=1, rounds=1, device=CPU, compiled=False)
    assert list(report.sizes) == [8, 16]
    for found in report.sizes.values():
        assert list(found.timings) == [2, 1]
        for steps, timings in found.timings.items():
            peer, ours = timings["dit_xl_2"].cpu_min_s, timings["snapgen"].cpu_min_s
            assert found.ratios[steps]["forward_ratio_to_dit_xl_2"] == peer / ours
    with pytest.raises(ValueError, match="add snapgen"):
        sampling.main(networks=["dit_xl_2"])
    with pytest.raises(ValueError, match="no networks"):
        sampling.main(networks=["snapgen", "nobody"])


def test_growth_is_a_power_of_what_grew() -> None:
    assert growth.exponent([32, 64, 128], [1.0, 4.0, 32.0]) == pytest.approx(3.0)
    subjects = {"snapgen": Subject(tiny_unet, tokens=3)}
    report = growth.run(subjects, sizes=[8, 16], batches=[1, 3], rounds=1)
    assert report.by_batch["snapgen"].exponents["gmacs"] == pytest.approx(1.0)
    # Attention to 3 tokens and the time's own work make the difference.
    assert 1.5 < report.by_size["snapgen"].exponents["gmacs"] < 2.1
    for sizes in ([8], [16, 8], [0, 8]):
        with pytest.raises(ValueError, match="sizes are"):
            growth.main(sizes=tuple(sizes))


def test_dreamlite_takes_what_a_denoiser_takes() -> None:
    network = materialise(DreamLite, CPU)
    fed = feed(network, batch=1, size=8, tokens=3, device=CPU)
    said = network(fed.x_BCHW, fed.t_B, fed.conditioning).velocity_BCHW
    assert said.shape == fed.x_BCHW.shape
    longer = fed.conditioning._replace(mask_BS=torch.tensor([[True, True, False]]))
    shorter = fed.conditioning._replace(tokens_BSD=fed.conditioning.tokens_BSD[:, :2])
    masked, cut = (network(fed.x_BCHW, fed.t_B, each).velocity_BCHW for each in (longer, shorter))
    torch.testing.assert_close(masked, cut)
    assert not torch.allclose(masked, said)
    assert len(list(network.regions())) > 20


def test_kernels_are_told_apart_by_their_names() -> None:
    named = {
        "nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_bias_TNT": "matrix products",
        "conv2d_c1_k1_nhwc_specialized": "depthwise convolutions",
        "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize256x128x64": "convolutions",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64": "attention",
        "void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<float>(long, float)": "norms",
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>": "optimizer",
        "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>": "copies",
        "void at::native::elementwise_kernel<128, 4, at::native::GeluCUDAKernelImpl>": "pointwise",
        "triton_red_fused__to_copy_clone_native_group_norm_0": "fused norms and reductions",
        "triton_poi_fused_gelu_mul_split_view_10": "fused pointwise",
        "somebodys_kernel": "other",
    }
    assert {name: kind_of(name) for name in named} == named


def test_a_steps_kernels_add_up() -> None:
    found = summed([("triton_poi_a", 1.0), ("nvjet", 4.0), ("triton_poi_a", 3.0), ("nvjet", 2.0)], steps=2)
    assert found.milliseconds == {"matrix products": 3.0, "fused pointwise": 2.0}
    assert [(each.name, each.calls, each.milliseconds) for each in found.longest] == [
        ("nvjet", 1.0, 3.0),
        ("triton_poi_a", 1.0, 2.0),
    ]


def test_latents_are_loaded_and_trained_on() -> None:
    report = latents.run(samples=300, batch=16, batches=3, steps=2)
    assert [row.workers for row in report.loading] == [0, 2]
    for row in report.loading:
        assert row.ratio == pytest.approx(row.samples_per_s / latents.CONSUMED_PER_S)
    assert report.gigabytes == pytest.approx(556 * 2 * 2 * 4096 * 2 / 1e9, rel=0.02)
    assert report.training.steps == 2
    assert 0 < report.training.wait_s < report.training.step_s


def test_the_forms_of_positions_were_recorded_by_the_files_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recorded = json.loads(emoji_rope.RESULT.read_text())["forms"]
    assert {form: curve["recipe"] for form, curve in recorded.items()} == {
        form: recipe(files) for form, files in emoji_rope.FORMS.items()
    }
    shown = (ROOT / "docs/text_to_image.md").read_text()
    for curve in recorded.values():
        assert " | ".join(f"{loss:.4f}" for loss in curve["losses"].values()) in shown


PEAKS = """
import torch
from benchmarks.memory import peak_bytes

def hold(mib):
    for _ in range(2):
        torch.ones(mib * 2**18)

print(*[peak_bytes(lambda: hold(mib)) for mib in (64, 128, 64)])
"""


def test_peak_memory_is_what_a_call_held_at_once() -> None:
    """Two buffers of 64 MiB one after the other are one; of the second call nothing is left from the first.

    In a process of its own: whether an allocator gives a buffer's place to the next depends on all that it did before.
    """
    ran = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True, cwd=ROOT)
    peaks = ran.stdout.split()
    if "None" in peaks:
        pytest.skip("this system does not say")
    assert [int(peak) / 2**20 for peak in peaks] == pytest.approx([64, 128, 64], abs=8)


def test_the_compared_decoders_have_the_published_sizes() -> None:
    with torch.device("meta"):
        compared = decoder.subjects()
    raw_BCHW = torch.empty(1, decoder.CHANNELS, 128, 128)
    costs = {
        name: decoder.count_module(subject.network, raw_BCHW, convention="decoder")
        for name, subject in compared.items()
    }
    assert {name: (round(cost.params_m, 3), round(cost.gmacs, 1)) for name, cost in costs.items()} == {
        "snapgen": (1.383, 225.0),
        "snapgen_whole": (1.383, 225.0),
        "taesd": (1.229, 282.9),  # AutoencoderTiny as it is, of 4 channels: 1.223, 282.7
        "sd3": (49.545, 4970.8),
    }


def test_decoders_are_compared_at_each_size() -> None:
    ours, peer = Decoder([DecoderStage(32, 1)] * 4), Decoder([DecoderStage(32, 2)] * 4)
    compared = {name: decoder.Subject(net, net) for name, net in (("snapgen", ours), ("peer", peer))}
    report = decoder.run(compared, (16, 32, 48), rounds=2, largest={"peer": 32})
    assert list(report.sizes) == [16, 32, 48]
    assert list(report.sizes[48].timings) == ["snapgen"]
    found = report.sizes[32]
    timings = found.timings
    assert found.ratios["forward_ratio_to_peer"] == timings["peer"].cpu_min_s / timings["snapgen"].cpu_min_s
    raw_BCHW = torch.empty(1, decoder.CHANNELS, 4, 4)
    for name, subject in compared.items():
        assert found.costs[name] == decoder.count_module(subject.network, raw_BCHW, convention="decoder")._asdict()
    console = Console(width=120, record=True)
    console.print(decoder.table(report))
    assert "peer" in console.export_text()
    with pytest.raises(ValueError, match=r"sizes \[20\]: need multiples of 8 from 16 on"):
        decoder.run(compared, (16, 20), rounds=1, largest={})
    with pytest.raises(ValueError, match="largest names snapgen, stranger; the peers are peer"):
        decoder.run(compared, (16,), rounds=1, largest={"snapgen": 16, "stranger": 16, "peer": 16})


def test_the_largest_batch_is_found_in_few_tries() -> None:
    for limit in range(1, 70):
        tried: list[int] = []

        def fits(batch: int, limit: int = limit, tried: list[int] = tried) -> bool:
            tried.append(batch)
            return batch <= limit

        assert largest(fits) == limit
        assert len(tried) <= 2 * limit.bit_length() + 1
    with pytest.raises(ValueError, match="not even one image fits"):
        largest(lambda batch: False)


def test_texts_become_images_in_three_parts_that_are_timed() -> None:
    pipeline = Pipeline(SIZES["small"], CPU, guidance=2.0)
    conditioning = pipeline.text(2)
    assert conditioning.tokens_BSD.shape == (2, 1 + 77 + 128, pipeline.denoiser.context_dim)
    # CLIP's two lie beside each other, before Gemma's, which is narrower.
    assert conditioning.tokens_BSD[:, 1:78].ne(0).any(dim=0).any(dim=0).all()
    assert not conditioning.tokens_BSD[:, 78:, 64:].any()
    image_BCHW = pipeline.all(2, Euler(2))
    assert (image_BCHW.dtype, image_BCHW.shape) == (torch.uint8, (2, 3, 64, 64))
    seconds, peak = measure(pipeline, 2, Euler(2), rounds=1)
    assert list(seconds) == ["all", "text", "denoiser", "decoder"]
    assert all(each > 0 for each in seconds.values())
    assert peak is None


def test_the_text_encoders_have_the_published_sizes() -> None:
    from transformers import CLIPTextModel, Gemma2Model

    with torch.device("meta"):
        networks = [*map(CLIPTextModel, SIZES["full"].clips()), Gemma2Model(SIZES["full"].gemma())]
    assert [sum(weight.numel() for weight in network.parameters()) for network in networks] == [
        123_060_480,
        693_021_440,  # OpenCLIP's bigG/14 with its projection, of 1,638,400: 694,659,840
        2_614_341_888,
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to search the batch of")
def test_the_largest_batch_is_not_looked_for_in_the_hosts_memory() -> None:
    with pytest.raises(ValueError, match="give --batch"):
        measure_throughput(size="small")


def test_text_states_are_loaded(tmp_path: Path) -> None:
    texts.main(tmp_path / "record.json", captions=12, batch=4, workers=(0, 1))
    record = json.loads((tmp_path / "record.json").read_text())
    assert [row["workers"] for row in record["loading"]] == [0, 1]
    assert all(row["samples_per_s"] > 0 for row in record["loading"])
    with pytest.raises(ValueError, match="give more than 2 batches"):
        texts.main(captions=8, batch=4, workers=(2,))
