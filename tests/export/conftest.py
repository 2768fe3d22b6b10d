from pathlib import Path

import pytest

from tests.export import exported_run
from tests.export.exported_run import Exported


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_run.photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def exported_classes(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("classes")
    return exported_run.export(exported_run.class_run(folder, photos), folder / "exported")


@pytest.fixture(scope="session")
def decoder_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_run.decoder_run(tmp_path_factory.mktemp("decoder"), photos)


@pytest.fixture(scope="session")
def exported_with_decoder(
    exported_classes: Exported, decoder_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    return exported_run.export(exported_classes.run, tmp_path_factory.mktemp("decoded") / "exported", decoder_run)


@pytest.fixture(scope="session")
def exported_texts(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("texts")
    return exported_run.export(exported_run.text_run(folder, photos), folder / "exported")
