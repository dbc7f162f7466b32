"""The cost of a model: parameters, multiply-accumulates of a forward pass, time per image.

Multiply-accumulates are counted on the traced program (its jaxpr), without running it. Every
convolution and matrix product counts whose two factors both depend on the image or the
parameters, which matches the figures in the reports (SCA U-Net 3.390 GMAC per 256×256 image,
including its non-local products; RCAN 49.55). A product with a constant matrix, such as
bilinear resizing, is not counted, nor is element-wise arithmetic.
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

# The first call compiles, the second allocates the memory that later ones reuse.
WARM_UPS = 2


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a model.

    Attributes:
        parameters: number of trainable parameters.
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
    """Returns the number of trainable parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def measure(
    models: Mapping[str, tuple[nn.Module, Mapping[str, Any]]],
    images: jax.Array,
    rounds: int = 10,
) -> dict[str, Cost]:
    """Measures the cost of several models, on the device that holds their variables.

    Args:
        models: by a unique name, the architecture and its variables.
        images: degraded images [B, H, W, 3] in [0, 1]; one call restores the whole batch.
        rounds: how often each model is timed.

    Returns:
        The costs, by the same names.
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
    """Times several calls in turn, so that other load on the machine affects all of them.

    Every round makes each call once, starting with a different one than the round before. Each
    call is made twice beforehand, to compile and warm up.

    Args:
        calls: the functions by name; their results are waited for.
        rounds: how often each is timed, 1 or more.

    Returns:
        Seconds by name, one per round.

    Raises:
        ValueError: if `rounds` is less than 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more, got {rounds}")
    for _ in range(WARM_UPS):
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
        variables: the variables of the model; shapes and types (`jax.eval_shape`) suffice.
        height: height of the image in px. If the model pads it, the padding counts too.
        width: width of the image in px, likewise.
    """
    image = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
    return count_macs(model.apply, variables, image)


def count_macs(function: Callable[..., Any], *arguments: Any) -> int:
    """Counts the multiply-accumulates of a function's convolutions and matrix products.

    A product counts if both factors depend on `arguments`; arrays that the function closes over
    are constants. A convolution counts as its kernel size times the number of output pixels,
    including taps on zero padding. A transposed convolution counts as its kernel size times the
    number of *input* pixels, since the zeros inserted between them cost nothing. PyTorch's
    counters do the same.

    Args:
        function: traced with JAX, never run.
        *arguments: its arguments, arrays or `jax.ShapeDtypeStruct`, in any pytree.

    Raises:
        ValueError: for a product in a loop of unknown length, or in a kernel whose number of
            executions is not known.
    """
    traced = jax.make_jaxpr(function)(*arguments).jaxpr
    return _walk(traced, [True] * len(traced.invars))[0]


def _walk(program: core.Jaxpr, depends: Sequence[bool]) -> tuple[int, list[bool]]:
    """Counts the multiply-accumulates of a jaxpr, and propagates dependence through it.

    Args:
        program: the jaxpr.
        depends: for each of its inputs, whether it depends on the arguments of `count_macs`.

    Returns:
        The count, and the same for each output.
    """
    known = dict(zip(program.invars, depends, strict=True))

    def is_dependent(atom: Any) -> bool:
        return not isinstance(atom, core.Literal) and known.get(atom, False)

    total = 0
    for equation in program.eqns:
        count, results = _count(equation, [is_dependent(atom) for atom in equation.invars])
        total += count
        known.update(zip(equation.outvars, results, strict=True))
    return total, [is_dependent(atom) for atom in program.outvars]


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
            # Count the default implementation: the cost must not depend on the platform.
            branches = [branches[platforms.index(None)]]
        branches = [_walk(_jaxpr_of(one), depends[1:]) for one in branches]
        # The branch taken is not known when tracing: count the most expensive one.
        return max(count for count, _ in branches), every_result
    inner = [
        _jaxpr_of(one)
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
    body, carried = _jaxpr_of(equation.params["jaxpr"]), equation.params["num_carry"]
    start = equation.params["num_consts"]
    while True:
        count, results = _walk(body, depends)
        carry = depends[start : start + carried]
        joined = [a or b for a, b in zip(carry, results[:carried], strict=True)]
        if joined == carry:
            return count * equation.params["length"], results
        # The next iteration starts from the carry of this one, and may add dependences to it.
        depends = depends[:start] + joined + depends[start + carried :]


def _jaxpr_of(program: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
    return program.jaxpr if isinstance(program, core.ClosedJaxpr) else program


def _matrix_product(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return math.prod(result) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: core.JaxprEqn) -> int:
    layout = equation.params["dimension_numbers"]
    image, kernel = (atom.aval.shape for atom in equation.invars[:2])
    result = equation.outvars[0].aval.shape
    # A dilated input is that of a transposed convolution.
    positions = [
        image[before] if dilation > 1 else result[after]
        for before, after, dilation in zip(
            layout.lhs_spec[2:],
            layout.out_spec[2:],
            equation.params["lhs_dilation"],
            strict=True,
        )
    ]
    # The kernel's shape has the input channels of one group and the output channels of all.
    return math.prod(kernel) * math.prod(positions) * result[layout.out_spec[0]]


_PRODUCTS = {"dot_general": _matrix_product, "conv_general_dilated": _convolution}
