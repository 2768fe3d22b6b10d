"""What tests of the modules that train decoders share."""

from pathlib import Path

import pytest

from tests import decoder_run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder_run.draw_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder and weights of LPIPS; to be read only."""
    return decoder_run.frozen_parts(tmp_path_factory.mktemp("parts"))
