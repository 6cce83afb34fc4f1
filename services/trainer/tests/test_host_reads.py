"""Every way in which the host can wait for the device is counted, and nothing else."""

import pytest
import torch
from krabby_trainer.host_reads import HostReads

VALUES = torch.tensor([3.0, -1.0, 2.0])
MASK = VALUES > 0
ORDER = torch.tensor([2, 0, 1])


class OnDevice(torch.Tensor):
    """Values that claim to be on a GPU; copied to the processor when they are read."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(
            cls, values.shape, dtype=values.dtype, device="cuda:0"
        )

    def __init__(self, values):
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert func._schema.name == "aten::_to_copy"
        return args[0].values.clone()


def put_number_at_indices():
    target = torch.zeros(3)
    target[ORDER] = 1.0


def read_shape_of_mask():
    target = torch.zeros(3)
    target[MASK] = VALUES[:2]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("_local_scalar_dense", lambda: VALUES.sum().item()),
        ("_local_scalar_dense", lambda: float(VALUES[0])),
        ("_local_scalar_dense", lambda: 1 if MASK.any() else 0),
        ("nonzero", lambda: MASK.nonzero()),
        ("nonzero", lambda: torch.where(MASK)),
        ("masked_select", lambda: VALUES.masked_select(MASK)),
        ("index", lambda: VALUES[MASK]),
        ("index_put_", read_shape_of_mask),
        ("index_put_", put_number_at_indices),
        ("equal", lambda: torch.equal(VALUES, VALUES)),
        ("cpu", lambda: VALUES.cpu()),
        ("tolist", lambda: VALUES.tolist()),
        ("numpy", lambda: VALUES.numpy()),
        ("tensor", lambda: torch.tensor([1.0, 2.0])),
        ("as_tensor", lambda: torch.as_tensor(0.5)),
        ("normal", lambda: torch.normal(VALUES, VALUES.abs())),
        ("_to_copy", lambda: VALUES.to("meta")),
        ("_to_copy", lambda: OnDevice(VALUES).cpu()),
    ],
)
def test_a_host_read_is_counted_once_with_its_place(name, read):
    with HostReads() as reads:
        read()
    assert reads.total == 1, reads.places
    (place,) = reads.places
    assert place.startswith(f"{name} at test_host_reads.py:")


def test_work_on_the_device_counts_nothing():
    weight = torch.nn.Parameter(torch.ones(3))
    target = torch.zeros(3)
    with HostReads() as reads:
        loss = torch.where(MASK, VALUES * weight, 0.0).square().sum()
        loss.backward()
        target[MASK] = 0.5
        target.masked_fill_(~MASK, 1.0)
        target.copy_(VALUES[ORDER])
        target.index_put_((ORDER,), VALUES)
        target.index_fill_(0, ORDER, 0.5)
        torch.randperm(5)
        torch.randn_like(VALUES).normal_(0.0, 2.0)
        torch.as_tensor(VALUES)
        torch.zeros(4).fill_(2.0)
    assert not reads.places


def test_a_read_within_the_backward_pass_is_counted():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):  # type: ignore[override]
            return grad * grad.sum().item()

    weight = torch.nn.Parameter(torch.ones(3))
    with HostReads() as reads:
        Reads.apply(weight).sum().backward()
    assert reads.total == 1
