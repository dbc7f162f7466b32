"""How the suite's programs are compiled: steps once, and some as users have them."""

import contextlib

import jax

from restore_jax.report import plots
from restore_jax.train import steps

_STEPS = {}


@contextlib.contextmanager
def optimised():
    """Compiles what is compiled meanwhile as users have it, which conftest.py leaves out."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@contextlib.contextmanager
def compiled_once():
    """Keeps the training step of each configuration for the next run, and draws no curves."""
    compile_step = steps.compile_step

    def compiled(settings, learner, loss_fn, mesh):
        settings = settings.copy_and_resolve_references()
        # A step depends on the length of a run by its learning rate alone, and not where that
        # is constant.
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
