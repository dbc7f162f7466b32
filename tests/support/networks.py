"""Draws variables of networks without compiling, and compiles each program once.

Without `jax.jit`, a model compiles each of its operations separately, which used to take most
of the time of the suite.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def shapes_of(model, *inputs):
    inputs = inputs or (jnp.zeros((1, 32, 32, 3)),)
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)


def variables_of(model, *inputs, seed=0):
    """Returns random variables drawn with NumPy, without compiling; none is zero or one."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)
        low, high = (0.5, 1.5) if name in ("scale", "var") else (-0.3, 0.3)
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(model, *inputs))


@functools.cache
def _init(model):
    return jax.jit(model.init)


@functools.cache
def _apply(model):
    return jax.jit(model.apply)


def init(model, *inputs, seed=0):
    """Returns the initial variables of a model."""
    return _init(model)(jax.random.key(seed), *inputs)


def apply(model, variables, *inputs, **named_inputs):
    """Applies a model or a layer to arrays with a jitted program, cached per model."""
    return _apply(model)(variables, *inputs, **named_inputs)
