"""Whatever happens to a file, its reader refuses it with a ValueError or gives what was written.

``pytest tests/test_fuzz.py --hypothesis-profile thorough`` tries 1,000 damages of each kind of file, ``python -m
tests.fuzz`` as many as one likes. What they found is tried each time.
"""

import json
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from snapgen_pl.__main__ import main
from snapgen_pl.diffusers_weights import read_tensors
from snapgen_pl.export import folder as exported
from tests import tiny_cli
from tests.damage import BROKEN, JSON, damaged_file, damaged_json
from tests.fuzz import exports, runs
from tests.fuzz.target import Damaged, cases
from tests.fuzz.targets import TARGETS

FOUND = [pytest.param(name, case, id=f"{name}-{case.stem}") for name in TARGETS for case in cases(name)]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Damaged]:
    """Targets in folders of their own, each written once."""
    return cache(lambda name: Damaged(TARGETS[name], tmp_path_factory.mktemp(name)))


@pytest.mark.filterwarnings("ignore")  # of what torch and Pillow make of damage before they refuse it
@pytest.mark.parametrize("name", TARGETS)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_file_that_was_damaged_is_refused_or_what_was_written(
    damaged: Callable[[str], Damaged], name: str, data: st.DataObject
) -> None:
    target = damaged(name)
    target.check(data.draw(damaged_file(target.target.file, target.whole)))


@pytest.mark.parametrize(("name", "case"), FOUND)
def test_what_was_found_stays_refused(damaged: Callable[[str], Damaged], name: str, case: Path) -> None:
    damaged(name).check(case.read_bytes())


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.file.endswith(".json")])
def test_json_that_no_reader_takes_is_refused(damaged: Callable[[str], Damaged], name: str) -> None:
    for content in BROKEN:
        damaged(name).check(content)


@given(content=damaged_json({key: value for key, value in runs.CHECKPOINT.items() if key != "state_dict"}) | JSON)
def test_a_checkpoint_of_other_content_is_refused_or_has_counts_and_weights(
    damaged: Callable[[str], Damaged], content: Any
) -> None:
    damaged("checkpoint_pickle").check(runs.pickled(content))


def test_an_export_that_leads_out_is_refused(damaged: Callable[[str], Damaged]) -> None:
    export = damaged("export_manifest")
    for name in ("../secret", "/etc/passwd", "onnx/../../secret", ""):
        graphs = {"denoiser": {"files": {name: 3}}}
        export.path.write_text(json.dumps({**exports.EXPORT, "graphs": graphs}))
        with pytest.raises(ValueError, match="does not say what was exported"):
            exported.open_exported(str(export.folder), "onnx")


def test_headers_about_headers_without_end_are_refused(damaged: Callable[[str], Damaged]) -> None:
    header = tarfile.TarInfo("a")
    header.type = tarfile.GNUTYPE_LONGNAME
    damaged("tar_headers").check(header.tobuf() * 1000)


def test_an_index_that_leads_out_is_refused(damaged: Callable[[str], Damaged], tmp_path: Path) -> None:
    index = damaged("weights_index")
    save_file({"a": torch.ones(2)}, tmp_path / "outside.safetensors")
    for name in (str(tmp_path / "outside.safetensors"), "../outside.safetensors", "sub/a.safetensors", "a.bin", 3):
        index.path.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ValueError, match=r"is no index of weights .*; download it again"):
            read_tensors(index.folder)


@pytest.fixture(scope="module")
def printing(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], int]:
    """Has a command read a config, and gives its status."""
    path = tmp_path_factory.mktemp("changed") / "changed.yaml"

    def status(content: Any) -> int:
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        try:
            return main(["fit", "--config", str(path), "--print_config"])
        except SystemExit as exit_:
            return int(exit_.code or 0)

    return status


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_command_accepts_a_changed_config_or_says_what_is_wrong(
    printing: Callable[[Any], int], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = yaml.safe_load(Path(tiny_cli.config(tmp_path_factory.getbasetemp())).read_text())
    assert printing(data.draw(damaged_json(whole))) in (0, 1, 2)
