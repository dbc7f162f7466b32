"""Controls compilation in tests: caches training steps, and optimises as for users."""

import contextlib

import jax

from restore_jax.report import plots
from restore_jax.train import steps

_STEPS = {}


@contextlib.contextmanager
def optimised():
    """Enables the optimisations of XLA that users have and conftest.py disables."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@contextlib.contextmanager
def compiled_once():
    """Caches the compiled training step of each configuration, and plots no curves."""
    compile_step = steps.compile_step

    def compiled(settings, learner, loss_fn, mesh):
        settings = settings.copy_and_resolve_references()
        # A step depends on the length of the run only through its learning rate, so not at all
        # if that is constant.
        if settings.optimizer.schedule != "constant" or settings.optimizer.warmup_epochs:
            return compile_step(settings, learner, loss_fn, mesh)
        for part, field in (
            ("checkpoint", "every_steps"),
            ("train", "epochs"),
            ("train", "early_stopping_patience"),
            ("eval", "every_epochs"),
        ):
            settings[part][field] = 0
        settings.init_from = ""
        optimisation = jax.config.read("jax_disable_most_optimizations")
        key = settings.to_json(), mesh, steps.train_step, optimisation
        if key not in _STEPS:
            _STEPS[key] = compile_step(settings, learner, loss_fn, mesh)
        return _STEPS[key]

    with contextlib.ExitStack() as stack:
        for place, name, value in (
            (steps, "compile_step", compiled),
            (plots, "draw_curves", lambda records, path: path.write_bytes(b"")),
        ):
            stack.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, value)
        yield
