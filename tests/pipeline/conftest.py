"""Runs at their smallest, of classes and of texts, and pipelines made of them."""

from pathlib import Path

import pytest

from snapgen_pl.__main__ import main
from tests.export import exported_run


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_run.photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def class_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_run.class_run(tmp_path_factory.mktemp("classes"), photos)


@pytest.fixture(scope="session")
def text_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_run.text_run(tmp_path_factory.mktemp("texts"), photos)


@pytest.fixture(scope="session")
def decoder_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_run.decoder_run(tmp_path_factory.mktemp("decoder"), photos)


def export(run: Path, out: Path, *words: str) -> Path:
    assert main(["export", "diffusers", "--run", str(run), "--out", str(out), *words]) == 0
    return out


@pytest.fixture(scope="session")
def class_pipeline(class_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(class_run, tmp_path_factory.mktemp("class_pipeline") / "classes")


@pytest.fixture(scope="session")
def text_pipeline(text_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(text_run, tmp_path_factory.mktemp("text_pipeline") / "texts")
