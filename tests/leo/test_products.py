"""Matrix products and their derivatives, in the precision that takes the fast library and in the one that does not."""

import pytest
import torch

from leo.products import linear, product


@pytest.mark.parametrize("layout", ["rows", "columns", "part of a larger matrix"])
@pytest.mark.parametrize(("i", "j", "k"), [(60, 1280, 64), (7, 3, 5), (1, 1, 1)])
def test_a_product_in_float32_is_that_of_float64(i, j, k, layout):
    torch.manual_seed(0)
    a, b = torch.randn(i, k), torch.randn(j, k)
    if layout == "columns":
        a, b = a.T.contiguous().T, b.T.contiguous().T
    if layout == "part of a larger matrix":
        a, b = torch.randn(i, 2 * k)[:, :k], torch.randn(j, 3 * k)[:, k : 2 * k]
    exact = a.double() @ b.double().T
    torch.testing.assert_close(product(a, b).double(), exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(product(a.double(), b.double()), exact, rtol=0, atol=0)


def test_derivatives_are_those_of_finite_differences():
    torch.manual_seed(0)
    x, weight = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 4), (5, 4)))
    assert torch.autograd.gradcheck(linear, (x, weight))


def test_derivatives_in_float32():
    torch.manual_seed(0)
    x, weight, v = torch.randn(30, 16), torch.randn(8, 16), torch.randn(30, 8)
    x.requires_grad_()
    weight.requires_grad_()
    actual = torch.autograd.grad(linear(x, weight), (x, weight), v)
    expected = torch.autograd.grad(x.double() @ weight.double().T, (x, weight), v.double())
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert all(gradient.is_contiguous() for gradient in actual)  # or clipping and Adam take their slow paths
