"""Any ``torch.nn.Module`` as the model whose parameters a learner generates (Section 2.3.5: "any model")."""

import logging
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from runner.errors import InputError

log = logging.getLogger(__name__)

NUM_DRAWS = 16  # fresh modules, whose parameters say how the module's own initialisation spreads them


class AnyModule(nn.Module):
    """An inference model (``leo.inference``) that is computed by a module of the user's own.

    All parameters of the module that require a gradient are generated, in the order of ``named_parameters()``, each
    flattened row by row; the checkpoint records that order. A task's vector counts from ``centre``: where it is zero,
    the module has the means of its own initialisation. ``scale`` are the standard deviations: of a tensor that is
    drawn at random, one for all its numbers; of a number that is the same in every fresh module (the weight of a layer
    norm, say), zero.

    The module sees one task at a time, x [n, X], and gives [n, Y]; what it needs of another shape it unflattens itself.
    All tasks are computed at once by ``vmap``. Where that cannot be (torch's own LSTM, GRU, RNN and their cells;
    control flow that depends on values), one after another, and a line of the log says so. The module stays in training
    mode, in which none of torch's layers takes a path without a second derivative, so it may hold neither dropout nor
    buffers that change.

    Args:
        make: makes a fresh module: a class, or a function without arguments; in YAML ``_partial_: true``.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, *, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        if isinstance(make, nn.Module) or not callable(make):
            raise InputError(
                f"make must be what makes a fresh module, as functools.partial(torch.nn.Linear, 3, 1), not a "
                f"{type(make).__name__}: its own initialisation is looked at; in YAML add _partial_: true"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = [make() for _ in range(NUM_DRAWS)]
        module = fresh[0].train()
        check_stateless(module)
        named = generated(module)
        self.names, self.shapes = list(named), [parameter.shape for parameter in named.values()]
        centre, scale = own_initialisation(fresh)
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)
        # What is not generated, and does not change; these lie where the learner lies.
        fixed = dict(module.named_buffers())
        fixed |= {name: p.detach() for name, p in module.named_parameters() if name not in named}
        self.fixed_names = list(fixed)
        for i, value in enumerate(fixed.values()):
            self.register_buffer(f"fixed_{i}", value.clone())
        self.hidden = (module,)  # in a tuple, so that its own parameters are no parameters of the learner
        self.one_by_one: bool | None = None  # not known before the first call

    @property
    def module(self) -> nn.Module:
        """What is computed; the values of its own parameters are never used."""
        return self.hidden[0]

    def named(self, parameters: Float[Tensor, " P"]) -> dict[str, Tensor]:
        """A task's parameters by their names in the module, and all that is fixed."""
        parts = (self.centre + parameters).split([shape.numel() for shape in self.shapes])
        values = {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}
        return values | {name: getattr(self, f"fixed_{i}") for i, name in enumerate(self.fixed_names)}

    def of_task(self, parameters: Float[Tensor, " P"], x: Float[Tensor, "n X"]) -> Tensor:
        """The predictions of one task's module, as it gives them."""
        predictions: Tensor = functional_call(self.module, self.named(parameters), (x,))
        return predictions

    def forward(self, parameters: Float[Tensor, "B P"], x: Float[Tensor, "B n X"]) -> Float[Tensor, "B n Y"]:
        """Predictions of each task's module."""
        if self.one_by_one is None:
            self.one_by_one = self.needs_one_by_one(x)
        with sdpa_kernel(SDPBackend.MATH):  # the other kinds of attention have no second derivative
            if self.one_by_one:
                return self.of_each(parameters, x)
            predictions: Tensor = vmap(self.of_task)(parameters, x)
            return predictions

    def needs_one_by_one(self, x: Float[Tensor, "B n X"]) -> bool:
        """Whether ``vmap`` cannot compute two tasks with inputs like ``x``, with first and second derivatives.

        Raises where the module cannot be computed on one task, is random, changes its buffers or gives another shape
        than [n, Y].
        """
        generator = torch.Generator().manual_seed(0)
        parameters = self.scale * torch.randn(2, len(self.scale), generator=generator).to(self.scale)
        inputs = x[:1].detach().expand(2, -1, -1)
        before = [buffer.clone() for buffer in self.buffers()]
        try:
            first, second = (self.twice(self.of_each, parameters, inputs) for _ in range(2))
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{self} cannot be computed with its second derivative on inputs [n, X] = {list(x.shape[1:])}: "
                f"{' '.join(str(error).split())}"
            ) from error
        if not torch.equal(first, second):
            raise InputError(f"{self} is random: two passes over the same inputs differ; take its dropout out")
        if any(not torch.equal(*pair) for pair in zip(before, self.buffers(), strict=True)):
            raise InputError(f"{self} changes its buffers when it is computed; every task would change them for all")
        try:
            with warnings.catch_warnings():
                # Of operations that vmap takes apart into tasks by itself, which is no faster.
                warnings.filterwarnings("error", message="There is a performance drop because")
                together = self.twice(vmap(self.of_task), parameters, inputs)
            reason = None if torch.allclose(together, first, rtol=1e-3, atol=1e-5) else "its predictions differ"
        except Exception as error:  # whatever vmap lacks
            reason = " ".join(str(error).split("Please file")[0].split())
        if reason is not None:
            log.warning(
                "%s cannot be computed for all tasks at once (%s); one task after another, which takes longer",
                self, reason,
            )  # fmt: skip
        return reason is not None

    def of_each(self, parameters: Float[Tensor, "B P"], x: Float[Tensor, "B n X"]) -> Tensor:
        """Predictions of each task's module, one task after another."""
        return torch.stack([self.of_task(*task) for task in zip(parameters, x, strict=True)])

    def twice(self, compute: Callable[[Tensor, Tensor], Tensor], parameters: Tensor, x: Tensor) -> Tensor:
        """The predictions of ``compute``, once they have been differentiated twice."""
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            start = parameters.clone().requires_grad_()
            predictions = compute(start, x)
            if predictions.ndim != 3 or predictions.shape[:2] != x.shape[:2]:
                raise InputError(
                    f"{self} gives {list(predictions.shape[1:])} for inputs {list(x.shape[1:])}; it must give [n, Y]"
                )
            (gradient,) = torch.autograd.grad(predictions.square().sum(), start, create_graph=True)
            torch.autograd.grad(gradient.square().sum(), start)
        return predictions.detach()

    def get_extra_state(self) -> dict[str, Any]:
        """The order of the parameters, for the checkpoint."""
        return {"names": self.names, "shapes": [list(shape) for shape in self.shapes]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Raise where a checkpoint has other parameters, or these in another order."""
        if state != self.get_extra_state():
            raise InputError(
                f"the checkpoint generates {described(state)}, {self} has {described(self.get_extra_state())}; "
                f"give the module that it was trained with"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.module).__name__})"


def described(state: dict[str, Any]) -> str:
    """Names and shapes of parameters in one line."""
    return ", ".join(f"{name} {shape}" for name, shape in zip(state["names"], state["shapes"], strict=True))


def generated(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are generated, by name; what is tied counts once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


class Spread(NamedTuple):
    """Of each parameter in fresh modules: its mean and its standard deviation."""

    centre: Float[Tensor, " P"]
    scale: Float[Tensor, " P"]


def own_initialisation(fresh: list[nn.Module]) -> Spread:
    """How their own initialisation spreads the parameters of ``fresh`` modules.

    Of the numbers of one tensor that differ between the modules: their mean, 0 where chance may have moved it there
    (five standard errors), and standard deviation, over the modules and over the tensor. Of each number that does not
    differ: itself, and 0.
    """
    centres, scales = [], []
    for parameters in zip(*(generated(module).values() for module in fresh), strict=True):
        values = torch.stack([parameter.detach().flatten() for parameter in parameters])
        is_drawn = (values != values[0]).any(0)
        drawn = values[:, is_drawn].double()
        mean, sd = (drawn.mean().item(), drawn.std().item()) if is_drawn.any() else (0.0, 0.0)
        if abs(mean) < 5 * sd / max(1, drawn.numel()) ** 0.5:
            mean = 0.0
        centres.append(values[0].masked_fill(is_drawn, mean))
        scales.append(torch.zeros_like(values[0]).masked_fill(is_drawn, sd))
    return Spread(torch.cat(centres), torch.cat(scales))


def check_stateless(module: nn.Module) -> None:
    """Raise where ``module`` has nothing to generate, or holds what cannot be a task's own."""
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise InputError(f"{type(module).__name__} holds a lazy layer, of unknown size; give it its sizes")
    if not generated(module):
        raise InputError(f"{type(module).__name__} has no parameter that could be generated")
    for name, part in module.named_modules():
        where = f"{type(part).__name__} ({name})" if name else type(part).__name__
        if isinstance(part, _NormBase) and part.running_mean is not None:
            raise InputError(
                f"{where} keeps running means of all that it sees, which would mix the tasks; take a norm without "
                f"them: GroupNorm, LayerNorm, or track_running_stats=False"
            )
        rate = part.p if isinstance(part, _DropoutNd) else getattr(part, "dropout", 0.0)
        if isinstance(rate, float | int) and rate > 0:
            raise InputError(
                f"{where} drops out at random, and inner steps would descend another loss each time; set its rate to 0"
            )
