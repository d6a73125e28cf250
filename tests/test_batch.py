import pytest
import torch
import torch.distributed as dist
from distributed import run_two_ranks

from ssl_nb.batch import check_embeddings, full_precision, gather_batch, gram, unit_rows


def _gather(rank, world):
    z = torch.arange(6.0).reshape(3, 2) + 10 * rank
    z.requires_grad_()
    labels = torch.tensor([rank, 7])
    joined, joined_labels = gather_batch(z, labels)
    weights = torch.arange(12.0).reshape(6, 2)
    (weights * joined).sum().backward()
    try:
        gather_batch(torch.zeros(3 + rank, 2))
        message = ""
    except ValueError as e:
        message = str(e)
    # a gradient that autograd expands (stride 0) must not be reduced in place
    y = torch.ones(2, 2, requires_grad=True)
    gather_batch(y).sum().backward()
    assert dist.is_initialized()
    return {"joined": joined.detach(), "labels": joined_labels, "grad": z.grad, "expanded": y.grad,
            "message_length": len(message)}


def test_gather_joins_in_rank_order_and_sums_gradients():
    for rank, got in enumerate(run_two_ranks(_gather)):
        rows = torch.arange(6.0).reshape(3, 2)
        assert torch.equal(got["joined"], torch.cat([rows, rows + 10]))
        assert got["labels"].tolist() == [0, 7, 1, 7]
        # both ranks say `weights` about these rows, and the gather adds them up
        assert torch.equal(got["grad"], 2 * torch.arange(12.0).reshape(6, 2)[3 * rank : 3 * rank + 3])
        assert torch.equal(got["expanded"], torch.full((2, 2), 2.0))
        assert got["message_length"] > 0, "unequal batches must be refused"


def test_gather_without_processes_is_the_identity():
    a, b = torch.zeros(2, 3), torch.ones(2)
    assert gather_batch(a) is a
    assert all(x is y for x, y in zip(gather_batch(a, b), (a, b), strict=True))


@pytest.mark.parametrize("dtype,expected", [(torch.float16, torch.float32), (torch.bfloat16, torch.float32),
                                            (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_full_precision_casts_and_leaves_autocast(dtype, expected):
    seen = []

    @full_precision
    def objective(z, more, *, other, temperature, index):
        product = z @ z.T
        seen.append((z.dtype, more[0].dtype, other.dtype, product.dtype, index.dtype, temperature))
        return product.sum()

    z = torch.randn(3, 3).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(z, [z, z], other=z, temperature=0.1, index=torch.arange(3))
        assert torch.is_autocast_enabled("cpu")
    assert seen == [(expected,) * 4 + (torch.int64, 0.1)]
    loss.backward()
    assert z.grad.dtype == dtype
    assert objective.__name__ == "objective"


def test_full_precision_on_a_module_without_tensor_arguments():
    class Constant(torch.nn.Module):
        @full_precision
        def forward(self):
            return 3

    assert Constant()() == 3


@pytest.mark.parametrize("z,words", [
    ((torch.zeros(1, 4), torch.zeros(1, 4)), "1 example"),
    ((torch.zeros(4, 4), torch.zeros(4, 3)), "(4, 3)"),
    ((torch.zeros(4, 4), torch.zeros(3, 4)), "(3, 4)"),
    ((torch.zeros(4),), "(4,)"),
    ((torch.zeros(4, 4, dtype=torch.int64),), "torch.int64"),
    ((torch.zeros(4, 4), torch.tensor([[float("nan")] * 4] + [[0.0] * 4] * 3)), "1 of 4 rows"),
    ((torch.full((4, 4), float("-inf")),), "4 of 4 rows"),
    ((torch.zeros(4, 0),), "width 0"),
])  # fmt: skip
def test_check_embeddings_says_what_and_how_to_mend(z, words):
    with pytest.raises(ValueError) as e:
        check_embeddings(*z)
    assert words in str(e.value) and ";" in str(e.value)


def test_check_embeddings_accepts():
    check_embeddings(torch.zeros(2, 3), torch.ones(2, 3))
    check_embeddings(torch.zeros(1, 3), min_rows=1)
    check_embeddings(torch.zeros(2, 1), min_width=1)
    with pytest.raises(ValueError, match="width 1"):
        check_embeddings(torch.zeros(2, 1), min_width=2)
    check_embeddings(torch.full((8, 8), 3e38))  # its sum overflows, its entries are finite
    check_embeddings(torch.full((2, 2), float("nan"), device="meta"))  # no look inside on other devices


def test_gram_gradients():
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(gram(z), z @ z.T)
    assert torch.autograd.gradcheck(gram, z) and torch.autograd.gradgradcheck(gram, z)


def test_unit_rows_is_normalize_with_a_calm_zero():
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(unit_rows(z), torch.nn.functional.normalize(z), rtol=1e-14)
    assert torch.autograd.gradcheck(unit_rows, z)
    dead = torch.zeros(2, 3, requires_grad=True)
    unit_rows(dead).sum().backward()
    assert torch.equal(dead.grad, torch.zeros(2, 3))


@pytest.mark.parametrize("length", [1e-17, 1e-6, 1.0, 1e6, 1e17])
def test_unit_rows_of_any_length(length):
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    x = (length * z).requires_grad_()
    unit_rows(x)[:, 0].sum().backward()
    exact = z.double().requires_grad_()
    unit_rows(exact)[:, 0].sum().backward()
    assert torch.allclose(unit_rows(x), unit_rows(exact).float(), atol=1e-6)
    assert torch.allclose(length * x.grad, exact.grad.float(), atol=1e-6)
