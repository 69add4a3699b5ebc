"""Values and first and second gradients of an operator, and how far two sets of them are apart."""

import torch

from equipot.ops.operators import plain_operators


def in_plain_torch(function):
    """The same, of the operators' definitions instead of the kernels."""

    def call(*arguments):
        with plain_operators():
            return function(*arguments)

    return call


def value_and_gradients(function, inputs):
    """function(*inputs), its gradients, and the gradients of their projection on fixed cotangents."""
    out = function(*inputs)
    gradient = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view_as(out).requires_grad_()
    first = torch.autograd.grad(out, inputs, gradient, create_graph=True)
    cotangents = [torch.cos(torch.arange(item.numel(), dtype=item.dtype)).view_as(item) for item in first]
    second = torch.autograd.grad(first, [*inputs, gradient], cotangents)
    return [item.detach() for item in (out, *first, *second)]


def relative_errors(found, expected):
    return [
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) if b.numel() else 0.0
        for a, b in zip(found, expected, strict=True)
    ]
