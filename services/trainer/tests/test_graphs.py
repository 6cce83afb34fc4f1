"""Recorded kernels do what plain calls do."""

import pytest
import torch
from krabby_trainer.graphs import Replayed

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Counter:
    """Adds up what it reads, in place; counts how often Python ran."""

    def __init__(self, device):
        self.step = torch.ones(4, device=device)
        self.total = torch.zeros(4, device=device)
        self.noise = torch.zeros(4, device=device)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        self.total.mul_(0.5).add_(self.step.square())
        self.noise.copy_(torch.rand_like(self.noise))


def test_off_the_device_the_function_is_called_each_time():
    counter = Counter("cpu")
    replayed = Replayed(counter, "cpu")
    for _ in range(6):
        replayed()
    assert counter.calls == 6
    # 1 + 1/2 + ... + 1/32.
    torch.testing.assert_close(counter.total, torch.full((4,), 63 / 32))


@pytest.mark.parametrize("enabled", [True, pytest.param(False, id="switched_off")])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_replayed_is_the_same_as_plain(device, enabled):
    plain, recorded = Counter(device), Counter(device)
    replayed = Replayed(recorded, device, enabled=enabled)
    for step in range(10):
        for counter in (plain, recorded):
            counter.step.fill_(0.1 * step)
        plain()
        replayed()
        assert torch.equal(plain.total, recorded.total)
    is_recorded = device == "cuda" and enabled
    # Three plain calls and the recording.
    assert recorded.calls == (4 if is_recorded else 10)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_random_numbers_are_new_in_every_replay(device):
    counter = Counter(device)
    replayed = Replayed(counter, device)
    seen = set()
    for _ in range(10):
        replayed()
        seen.add(float(counter.noise[0]))
    assert len(seen) == 10


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
def test_what_cannot_be_recorded_is_called_plainly(device, caplog):
    counter = Counter(device)

    def waits():
        counter()
        assert counter.total[0].item() > 0.0  # asks the device

    replayed = Replayed(waits, device)
    for _ in range(10):
        replayed()
    # (2 - 2^-9): every call counted once, the failed recording not at all.
    torch.testing.assert_close(counter.total, torch.full((4,), 2 - 2**-9, device=device))
    assert "cannot record" in caplog.text
