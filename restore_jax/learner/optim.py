"""Learning-rate schedules and optimizers, made from `config.optimizer`."""

from typing import Any

import optax

from restore_jax.errors import UsageError

_SCHEDULES = ("constant", "cosine", "warm_restarts")


def check_schedule(config: Any) -> None:
    """Checks what can be told of a schedule before the number of steps is known.

    Args:
        config: as for `make_schedule`.

    Raises:
        UsageError: for an unknown schedule or a value out of range.
    """
    rate = config.learning_rate
    if rate <= 0:
        raise UsageError(f"config.optimizer.learning_rate: {rate} must be above 0")
    if not 0 <= config.final_fraction <= 1:
        raise UsageError(
            f"config.optimizer.final_fraction: {config.final_fraction} must lie in [0, 1]"
        )
    if config.warmup_epochs < 0:
        raise UsageError(
            f"config.optimizer.warmup_epochs: {config.warmup_epochs} must not be negative"
        )
    if config.schedule not in _SCHEDULES:
        raise UsageError(
            f"config.optimizer.schedule: {config.schedule!r} is not one of "
            f"{', '.join(_SCHEDULES)}"
        )
    restarts = config.schedule == "warm_restarts"
    if restarts and (config.restart_epochs <= 0 or config.restart_factor < 1):
        raise UsageError(
            f"config.optimizer.restart_epochs: {config.restart_epochs} must be above 0, and "
            f"config.optimizer.restart_factor: {config.restart_factor} at least 1"
        )


def make_schedule(config: Any, steps_per_epoch: int, total_steps: int) -> optax.Schedule:
    """Makes the learning rate as a function of the step.

    Args:
        config: `config.optimizer`: `learning_rate`, `schedule`, `warmup_epochs`,
            `final_fraction`, `restart_epochs`, `restart_factor`.
        steps_per_epoch: steps in one epoch.
        total_steps: steps of the whole run, where a cosine ends.

    Returns:
        Step → learning rate. "warm_restarts" is SGDR (Loshchilov and Hutter, ICLR 2017):
        repeated cosines, each `restart_factor` times as long as the one before.

    Raises:
        UsageError: for an unknown schedule or a value out of range.
    """
    check_schedule(config)
    peak = config.learning_rate
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if warmup_steps >= total_steps:
        raise UsageError(
            f"config.optimizer.warmup_epochs: {config.warmup_epochs} epochs cover the whole "
            "run; take fewer"
        )
    remaining = total_steps - warmup_steps

    if config.schedule == "constant":
        schedule = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(peak, remaining, config.final_fraction)
    else:
        schedule = _warm_restarts(config, steps_per_epoch, remaining)
    if warmup_steps:
        rise = optax.linear_schedule(0.0, peak, warmup_steps)
        schedule = optax.join_schedules([rise, schedule], [warmup_steps])
    return schedule


def _warm_restarts(config: Any, steps_per_epoch: int, steps: int) -> optax.Schedule:
    length = config.restart_epochs * steps_per_epoch
    schedules, boundaries, end = [], [], 0
    while end < steps:
        cycle = max(1, round(length))
        schedules.append(
            optax.cosine_decay_schedule(config.learning_rate, cycle, config.final_fraction)
        )
        end += cycle
        boundaries.append(end)
        length *= config.restart_factor
    return optax.join_schedules(schedules, boundaries[:-1])


def make_optimizer(
    config: Any, schedule: optax.Schedule | None = None
) -> optax.GradientTransformation:
    """Makes the optimizer: gradient clipping by global norm, if any, then Adam or AdamW.

    Args:
        config: `config.optimizer`: `name`, `weight_decay`, `clip_norm`, `ema_decay`.
        schedule: the learning rate, from `make_schedule`; None for a constant one, which is
            enough to know the structure of the optimizer's state.

    Returns:
        An optax gradient transformation.

    Raises:
        UsageError: for an unknown optimizer or a value out of range.
    """
    for field in ("weight_decay", "clip_norm"):
        if config[field] < 0:
            raise UsageError(f"config.optimizer.{field}: {config[field]} must not be negative")
    if not 0 <= config.ema_decay < 1:
        raise UsageError(f"config.optimizer.ema_decay: {config.ema_decay} must lie in [0, 1)")
    if schedule is None:
        schedule = optax.constant_schedule(config.learning_rate)
    if config.name == "adam":
        if config.weight_decay:
            raise UsageError(
                "config.optimizer.weight_decay: not supported by adam; set "
                "config.optimizer.name=adamw"
            )
        optimizer = optax.adam(schedule)
    elif config.name == "adamw":
        optimizer = optax.adamw(schedule, weight_decay=config.weight_decay)
    else:
        raise UsageError(f"config.optimizer.name: {config.name!r} is not one of adam, adamw")
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer
