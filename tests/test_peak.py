import pytest
import torch

from snapgen_pl.peak import dense_bf16_peak


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 NVL", 835.5),
    ],
)
def test_peaks_are_dense_ones(name: str, tflops: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert dense_bf16_peak(torch.device("cuda")) == pytest.approx(tflops * 1e12)


def test_a_cpu_has_none() -> None:
    assert dense_bf16_peak(torch.device("cpu")) is None
