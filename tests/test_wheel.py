import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_works_from_any_folder(tmp_path: Path) -> None:
    """Callbacks, experiments, the embedded images and their judge come along: a configuration resolves, data opens."""
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*words: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        command = [sys.executable, "-P", *words]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("-c", "import snapgen_pl, callbacks; print(snapgen_pl.__file__, callbacks.__file__)")
    assert where.count(str(tmp_path / "site")) == 2
    assert "372.38" in run("-m", "snapgen_pl", "table", "ablation")
    opened = run("-c", "from snapgen_pl.data.emoji import Emoji; print(len(Emoji().open().train))")
    assert opened.strip() == "5644"
    judge = run("-c", "from snapgen_pl.metrics.emoji_judge import EmojiJudge; print(EmojiJudge().network)")
    assert judge.strip() == "emoji_judge"
    resolved = run("-m", "snapgen_pl", "fit", "--config", "experiments/quickstart.yaml", "--print_config")
    assert "callbacks.sample_grid.SampleGrid" in resolved
