"""Each graph as an ONNX file: what is in it, and that it is torch's."""

import re
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from snapgen_pl.autoencoders.patch_pca import PatchPCA
from snapgen_pl.conditioning.class_texts import ClassTexts
from snapgen_pl.conditioning.clip_text import CLIPText
from snapgen_pl.conditioning.condition import Texts
from snapgen_pl.conditioning.joined_texts import JoinedTexts
from snapgen_pl.conditioning.t5_text import T5Text
from snapgen_pl.data.requests import Request
from snapgen_pl.drawing import built_module
from snapgen_pl.export.example import example_of
from snapgen_pl.export.folder import open_exported
from snapgen_pl.export.graphs import DecoderGraph, Graph, _context_graph, _text_graph
from snapgen_pl.export.onnx import MAX_ERROR, OnnxRecord, checked_error, checked_opset, export_onnx
from snapgen_pl.export.programs import OnnxProgram, run_rows
from snapgen_pl.export.stand_ins import ProgramLabels, ProgramTexts
from snapgen_pl.trained_run import open_run
from tests.conditioning import tiny_clip, tiny_gemma, tiny_sd3, tiny_t5
from tests.export.exported_run import Exported


def decoder() -> Graph:
    autoencoder = PatchPCA(patch=4, channels=4)
    generator = torch.Generator().manual_seed(0)
    autoencoder.fit([torch.randint(256, (8, 3, 16, 16), generator=generator).to(torch.uint8)])
    latent = torch.randn(1, 4, 3, 2, generator=generator)
    return Graph("decoder", DecoderGraph(autoencoder), {"latent": latent}, ("image",))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> OnnxRecord:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("snapgen_pl.export.onnx.INLINE_BYTES", 64)
        return export_onnx(decoder(), tmp_path_factory.mktemp("onnx") / "decoder.onnx", {"run": "a"})


def test_every_graph_of_a_run_is_torchs(exported_classes: Exported, exported_texts: Exported) -> None:
    assert set(exported_classes.records) == {"denoiser", "decoder", "context"}
    for record in [each.onnx for run in (exported_classes, exported_texts) for each in run.records.values()]:
        assert record.max_abs_error < (1e-2 if record.graph == "text_clip_l" else MAX_ERROR)  # it says hundreds
        assert record.opset == 23
        assert record.bytes == sum(file.stat().st_size for file in record.path.parent.glob(f"{record.path.name}*"))


def test_attention_and_norms_stay_single_nodes(exported_classes: Exported, exported_texts: Exported) -> None:
    ops = exported_classes.records["denoiser"].onnx.ops
    assert (ops["Attention"], ops["LayerNormalization"], ops["RMSNormalization"]) == (2, 3, 4)
    assert ops["GroupNormalization"] == 2 * 8 + 1 + 1
    assert exported_texts.records["decoder"].onnx.ops["GroupNormalization"] > 5
    assert exported_texts.records["text_minilm"].onnx.ops["Attention"] == 6


def test_nothing_is_computed_that_is_known_beforehand(exported_classes: Exported, exported_texts: Exported) -> None:
    noise = {"Expand", "Shape", "Identity", "ConstantOfShape", "Range", "Constant", "Cast", "CastLike", "Where"}
    for name in ("denoiser", "decoder"):
        assert not noise & exported_classes.records[name].onnx.ops.keys()
        assert noise & exported_texts.records[name].onnx.ops.keys() <= {"Expand"}
    assert exported_texts.records["denoiser"].onnx.ops["Expand"] == 1  # of the mask; not of keys that heads share
    assert exported_classes.records["context"].onnx.ops == {"Cast": 1, "Gather": 1, "Reshape": 1}


def test_inputs_of_a_text_run(exported_texts: Exported) -> None:
    specs = {name: OnnxProgram(str(record.onnx.path)) for name, record in exported_texts.records.items()}
    assert list(specs["denoiser"].inputs) == ["sample", "timestep", "context", "mask", "pooled"]
    context = ["kept", "clip_l_tokens", "clip_l_pooled", "minilm_tokens", "minilm_mask", "minilm_pooled"]
    assert list(specs["context"].inputs) == context
    assert list(specs["context"].outputs) == ["context", "mask", "pooled"]
    assert specs["text_clip_l"].inputs["input_ids"] == ((1, tiny_clip.POSITIONS), torch.int32)
    assert list(specs["text_minilm"].inputs) == ["input_ids", "attention_mask"]
    assert list(specs["text_minilm"].outputs) == ["tokens", "pooled"]
    shape = specs["denoiser"].inputs["context"].shape
    assert shape == specs["context"].outputs["context"].shape == (1, 1 + tiny_clip.POSITIONS + 8, 384)


def test_a_file_says_what_it_is_and_not_where_it_was_made(written: OnnxRecord, exported_classes: Exported) -> None:
    model = onnx.load(written.path)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["run"] == "a"
    assert said["snapgen_pl.graph"] == "decoder"
    assert said["snapgen_pl.convention"] == "t = 1 is noise; velocity = noise - data"
    denoiser = exported_classes.records["denoiser"].onnx.path
    said = {entry.key: entry.value for entry in onnx.load(denoiser).metadata_props}
    assert (said["snapgen_pl.run"], said["snapgen_pl.step"], said["snapgen_pl.module"]) == ("classes", "2", "Pretrain")
    assert b"site-packages" not in denoiser.read_bytes()
    assert str(Path.cwd()).encode() not in denoiser.read_bytes()


def test_large_tables_and_matrices_are_folded(tmp_path: Path) -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(600, 600)

        def forward(self, x: Tensor) -> Tensor:
            table = (torch.arange(600 * 20).view(20, 600) * 1e-3).cos()
            out: Tensor = self.linear(x + table)
            return out

    record = export_onnx(Graph("large", Large(), {"x": torch.ones(1, 20, 600)}, ("y",)), tmp_path / "large.onnx", {})
    assert record.ops == {"Add": 2, "MatMul": 1}


def test_a_split_into_many_parts_is_read(tmp_path: Path) -> None:
    class Many(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(part.sum(dim=1) for part in x.split([1, 2] * 30, dim=1))  # sizes of 480 bytes

    names = tuple(f"y{i}" for i in range(60))
    record = export_onnx(Graph("many", Many(), {"x": torch.ones(1, 90)}, names), tmp_path / "many.onnx", {})
    assert record.ops == {"ReduceSum": 60, "Split": 1}


def test_parts_are_in_their_own_mode_again_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    module[0].eval()
    export_onnx(Graph("some", module, {"x": torch.ones(1, 2)}, ("y",)), tmp_path / "some.onnx", {})
    assert (module.training, module[0].training, module[1].training) == (True, False, True)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_what_differs_from_torch_is_refused(written: OnnxRecord) -> None:
    graph = decoder()
    program = OnnxProgram(str(written.path))
    assert checked_error(graph.name, example_of(graph), program) < MAX_ERROR
    graph.module.autoencoder.mean.add_(5e-4)
    with pytest.raises(
        ValueError, match=r"decoder differs from torch by 5\.0e-04 in ONNX Runtime, in image of up to 1; 1e-04 is"
    ):
        checked_error(graph.name, example_of(graph), program)
    graph.module.autoencoder.mean[0] = torch.nan
    with pytest.raises(ValueError, match="decoder differs from torch by nan"):
        checked_error(graph.name, example_of(graph), program)


def test_another_opset_is_refused() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([], "none", [value], [value])
    for imports in ([("", 18)], [("", 23), ("pkg.other", 1)]):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*each) for each in imports])
        with pytest.raises(ValueError, match=r"denoiser came out as opset \d+ with \d domains, not 23"):
            checked_opset(model, "denoiser")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ValueError, match=re.escape(f"{package} is not installed; run `pip install 'snapgen-pl[export]'`")
    ):
        export_onnx(decoder(), tmp_path / "decoder.onnx", {})
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(written: OnnxRecord, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"a\.onnx is no ONNX file, or a damaged one"):
        OnnxProgram(str(tmp_path / "a.onnx"))
    (tmp_path / "decoder.onnx").write_bytes(written.path.read_bytes())
    with pytest.raises(ValueError, match=r"ONNX Runtime cannot read .*decoder\.onnx"):
        OnnxProgram(str(tmp_path / "decoder.onnx"))(decoder().inputs)


def test_rows_are_run_one_by_one_and_shapes_are_checked(written: OnnxRecord) -> None:
    graph, program = decoder(), OnnxProgram(str(written.path))
    latent = torch.randn(3, 4, 3, 2)
    assert torch.allclose(run_rows(program, {"latent": latent})["image"], graph.module(latent), atol=1e-5)
    with pytest.raises(ValueError, match=r"latent is \(4, 2, 2\) a sample; the program was exported for \(4, 3, 2\)"):
        run_rows(program, {"latent": latent[:, :, :2]})
    with pytest.raises(ValueError, match="the program takes latent; given were sample"):
        run_rows(program, {"sample": latent})


def test_a_module_of_classes_is_built_of_programs_alone(exported_classes: Exported) -> None:
    module = built_module(open_exported(str(exported_classes.folder), "onnx").config)
    assert isinstance(module.conditioner, ProgramLabels)
    assert module.conditioner.null_label == 3
    assert not list(module.parameters())


def test_a_module_of_texts_draws_through_programs_what_it_drew(exported_texts: Exported) -> None:
    source = open_run(str(exported_texts.run))
    own, programs = (built_module(each.config) for each in (source, open_exported(str(exported_texts.folder), "onnx")))
    own.ready(source.folder, (), ())
    source.load(own)
    assert isinstance(programs.conditioner, ProgramTexts)
    request = Request(Texts(("a photo of cat", ""), {}), torch.tensor([0, 7]))
    assert (programs.sample(request).int() - own.sample(request).int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["class_texts", "joined", "gemma", "t5"])
def test_other_parts(tmp_path: Path, name: str) -> None:
    if name == "class_texts":
        tiny_clip.save_pipeline(tmp_path)
        conditioner = ClassTexts(tiny_clip.clip_text(tmp_path), num_classes=3)
        conditioner.ready(tmp_path / "run", ("cat", "dog"))
        graph = _context_graph(conditioner)
    elif name == "joined":
        tiny_sd3.save_sd3(tmp_path)
        clip = CLIPText(str(tmp_path), "text_encoder_2", "tokenizer_2", pooled=True)  # which nobody takes
        graph = _context_graph(JoinedTexts({"clip_g": clip}, [["clip_g"]], context_dim=40))
        assert list(graph.inputs) == ["kept", "clip_g_tokens"]
    elif name == "gemma":
        tiny_gemma.save_gemma(tmp_path)
        graph = _text_graph("gemma", tiny_gemma.gemma_text(tmp_path), pooled=False)
    else:
        tiny_t5.save_t5(tmp_path / "text_encoder_3", tmp_path / "tokenizer_3")
        graph = _text_graph("t5", T5Text(str(tmp_path), tokens=9), pooled=False)
    assert export_onnx(graph, tmp_path / f"{name}.onnx", {}).max_abs_error < MAX_ERROR
