"""What a model costs: parameters, multiply-accumulates of a forward pass, time per image.

Multiply-accumulates are counted on the traced program (its jaxpr), nothing is computed: every
convolution and every matrix product whose two factors both come from the image or from the
parameters, which is what the figures in the reports hold (SCA U-Net 3.390 GMAC per 256×256
image, its non-local products among them; RCAN 49.55). A product with a fixed matrix, such as a
bilinear resizing, is not counted, and nor is element-wise arithmetic.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.extend import core

# The first call compiles, the second finds the memory that later ones use again.
_WARM_UPS = 2


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        parameters: trainable values.
        gmac: 10⁹ multiply-accumulates for one image.
        ms_per_image: median over the rounds, in milliseconds.
        ms_low: lower quartile of the rounds.
        ms_high: upper quartile.
    """

    parameters: int
    gmac: float
    ms_per_image: float
    ms_low: float
    ms_high: float


def parameter_count(params: Any) -> int:
    """Returns the number of trainable values."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def measure(
    models: Mapping[str, tuple[nn.Module, Mapping[str, Any]]],
    images: jax.Array,
    rounds: int = 10,
) -> dict[str, Cost]:
    """Measures models side by side, on the device that holds their variables.

    Args:
        models: by a name of their own: the architecture, and what its `apply` takes.
        images: degraded images [B, H, W, 3] in [0, 1]; one call restores them all.
        rounds: how often each model is timed.
    """
    height, width = images.shape[1:3]
    times = interleaved_times(
        {
            name: _restoration(model, variables, images)
            for name, (model, variables) in models.items()
        },
        rounds,
    )
    costs = {}
    for name, (model, variables) in models.items():
        milliseconds = [1000.0 * seconds / images.shape[0] for seconds in times[name]]
        low, high = np.quantile(milliseconds, [0.25, 0.75])
        costs[name] = Cost(
            parameters=parameter_count(variables["params"]),
            gmac=model_macs(model, variables, height, width) / 1e9,
            ms_per_image=statistics.median(milliseconds),
            ms_low=float(low),
            ms_high=float(high),
        )
    return costs


def _restoration(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array
) -> Callable[[], jax.Array]:
    apply = jax.jit(model.apply)
    return lambda: apply(variables, images)


def interleaved_times(
    calls: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
    """Times several pieces of work in turn, so that a busy spell of the machine meets them all.

    Every round calls each once; the next round begins with the next one, so that none always
    follows the same neighbour. Two calls of each, which compile and warm up, come before.

    Args:
        calls: the work by name; what a call returns is waited for.
        rounds: how often each is timed, 1 or more.

    Returns:
        Seconds by name, one per round.

    Raises:
        ValueError: for no round.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more, got {rounds}")
    for _ in range(_WARM_UPS):
        for call in calls.values():
            jax.block_until_ready(call())
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            jax.block_until_ready(calls[name]())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def model_macs(model: nn.Module, variables: Mapping[str, Any], height: int, width: int) -> int:
    """Counts the multiply-accumulates of restoring one image.

    Args:
        model: the architecture.
        variables: what `model.apply` takes; shapes and types (`jax.eval_shape`) do.
        height: of the image; a model that pads it computes, and counts, the padding too.
        width: the same.
    """
    image = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
    return count_macs(model.apply, variables, image)


def count_macs(function: Callable[..., Any], *arguments: Any) -> int:
    """Counts the multiply-accumulates of a function's convolutions and matrix products.

    A product counts if both factors depend on `arguments`; arrays that the function closes over
    are constants. A convolution takes its kernel's size times its output's pixels, taps on
    the zeros of the border included; a transposed one its kernel's size times its *input's*
    pixels, as the zeros between them are no work. So PyTorch's counters do it.

    Args:
        function: traced with JAX, never run.
        *arguments: its arguments, arrays or `jax.ShapeDtypeStruct`, in any pytree.

    Raises:
        ValueError: for a product in a loop of unknown length, or in a kernel that has no count.
    """
    traced = jax.make_jaxpr(function)(*arguments).jaxpr
    return _walk(traced, [True] * len(traced.invars))[0]


def _walk(program: core.Jaxpr, depends: Sequence[bool]) -> tuple[int, list[bool]]:
    """Counts a program's products; tells which outputs depend on the inputs that do."""
    known = dict(zip(program.invars, depends, strict=True))

    def of(atom: Any) -> bool:
        return not isinstance(atom, core.Literal) and known.get(atom, False)

    total = 0
    for equation in program.eqns:
        factors = [of(atom) for atom in equation.invars]
        count, results = _count(equation, factors)
        total += count
        known.update(zip(equation.outvars, results, strict=True))
    return total, [of(atom) for atom in program.outvars]


def _count(equation: core.JaxprEqn, depends: list[bool]) -> tuple[int, list[bool]]:
    name = equation.primitive.name
    every_result = [any(depends)] * len(equation.outvars)
    if name in _PRODUCTS:
        return (_PRODUCTS[name](equation) if all(depends[:2]) else 0), every_result
    if name == "scan":
        return _count_scan(equation, depends)
    if name == "cond":
        branches = equation.params["branches"]
        platforms = equation.params.get("branches_platforms")
        if platforms is not None:
            # What one platform computes in a way of its own does not change the model's cost.
            branches = [branches[platforms.index(None)]]
        branches = [_walk(_open(one), depends[1:]) for one in branches]
        # Which one runs is not known here: the dearest counts.
        return max(count for count, _ in branches), every_result
    inner = [
        _open(one)
        for value in equation.params.values()
        for one in (value if isinstance(value, list | tuple) else [value])
        if isinstance(one, core.Jaxpr | core.ClosedJaxpr)
    ]
    if len(inner) == 1 and len(inner[0].invars) == len(depends) and name != "while":
        return _walk(inner[0], depends)  # a call: jit, remat, custom derivatives
    if any(_walk(one, [True] * len(one.invars))[0] for one in inner):
        raise ValueError(
            f"the products inside of {name} cannot be counted: how often they run is not known"
        )
    return 0, every_result


def _count_scan(equation: core.JaxprEqn, depends: list[bool]) -> tuple[int, list[bool]]:
    body, carried = _open(equation.params["jaxpr"]), equation.params["num_carry"]
    start = equation.params["num_consts"]
    while True:
        count, results = _walk(body, depends)
        carry = depends[start : start + carried]
        joined = [a or b for a, b in zip(carry, results[:carried], strict=True)]
        if joined == carry:
            return count * equation.params["length"], results
        # What one turn makes depend on the inputs, the next one starts with.
        depends = depends[:start] + joined + depends[start + carried :]


def _open(program: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
    return program.jaxpr if isinstance(program, core.ClosedJaxpr) else program


def _matrix_product(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return math.prod(result) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: core.JaxprEqn) -> int:
    layout = equation.params["dimension_numbers"]
    image, kernel = (atom.aval.shape for atom in equation.invars[:2])
    result = equation.outvars[0].aval.shape
    places = [
        image[before] if dilation > 1 else result[after]
        for before, after, dilation in zip(
            layout.lhs_spec[2:],
            layout.out_spec[2:],
            equation.params["lhs_dilation"],
            strict=True,
        )
    ]
    # The kernel's shape has the input channels of one group, and the outputs of all.
    return math.prod(kernel) * math.prod(places) * result[layout.out_spec[0]]


_PRODUCTS = {"dot_general": _matrix_product, "conv_general_dilated": _convolution}
