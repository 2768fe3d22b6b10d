from pathlib import Path

import pytest

from tests.conditioning.tiny_clip import save_pipeline


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    save_pipeline(tmp_path / "pipeline")
    return tmp_path / "pipeline"
