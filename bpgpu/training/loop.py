"""The training loop: epochs, shuffling, validation, callbacks, and how training ends. It knows no device."""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from bpgpu import checks
from bpgpu.backends.data import Data
from bpgpu.backends.plan import Plan
from bpgpu.errors import NonFiniteError, short_repr
from bpgpu.model.optimizers import Optimizer, get_optimizer
from bpgpu.network import Network
from bpgpu.training.callbacks import Callback, ProgressBar, checked
from bpgpu.training.history import History, Training


def fit(
    net: Network,
    data: Data,
    *,
    optimizer: str | Optimizer,
    epochs: int,
    batch_size: int,
    validation: Data | None,
    shuffle: bool,
    callbacks: Sequence[Callback],
    progress: bool,
) -> History:
    """Train `net` on checked data; see `MLP.fit`."""
    optimizer = get_optimizer(optimizer)
    epochs = checks.integer("epochs", epochs, 1)
    done = checks.integer("epoch", net.epoch, 0, checks.MAX_COUNT)
    if epochs > checks.MAX_COUNT - done:
        raise ValueError(
            f"epochs must be at most {checks.MAX_COUNT - done}, got {short_repr(epochs)}: the network has trained for "
            f"{done}, and cannot count beyond {checks.MAX_COUNT}"
        )
    batch_size = min(checks.integer("batch_size", batch_size, 1), len(data))
    history = History()
    training = Training(net, optimizer, history, epochs, len(data))
    shuffle = checks.flag("shuffle", shuffle)
    listeners = [*checked(callbacks), *([ProgressBar()] if checks.flag("progress", progress) else [])]
    for listener in listeners:
        listener.check(training, has_validation=validation is not None)
    if isinstance(net.parameters, np.ndarray) and not net.parameters.flags.writeable:
        net.parameters = np.array(net.parameters)  # joblib maps large arrays into its workers read-only
    if isinstance(net.parameters, np.ndarray):  # those on a device were checked when they were copied there
        checks.finite("net.parameters", net.parameters, net.architecture.dtype)
    plan = Plan(net.architecture, batch_size, net.backend, optimizer, net.masks, data.nonzeros).allocate()
    data = net.backend.place(data, plan)
    net.backend.prepare(plan, data, net.parameters)
    validating = None
    if validation is not None:
        forward = net.inference_plan(validation)
        validating = net.backend.place(validation, forward), forward
    with ExitStack() as ends:
        for listener in listeners:
            ends.callback(listener.on_train_end, training)
            listener.on_train_begin(training)
        try:
            while training.epoch < epochs and not history.stop_reason:
                for listener in listeners:
                    listener.on_epoch_begin(training)
                net.backend.assign(plan.last_finite, net.parameters)
                _train_epoch(training, plan, data, validating, shuffle)
                for listener in listeners:
                    listener.on_epoch_end(training)
            history.stop_reason = history.stop_reason or f"finished {epochs} epochs"
        except KeyboardInterrupt:
            history.stop_reason = "interrupted"
        except NonFiniteError:
            net.backend.assign(net.parameters, plan.last_finite)
            raise
    return history


def _train_epoch(
    training: Training, plan: Plan, data: Data, validation: tuple[Data, Plan] | None, shuffle: bool
) -> None:
    """Train one epoch and add it to the history."""
    net = training.net
    checks.integer("epoch", net.epoch, 0, checks.MAX_COUNT - 1)  # a callback may have set it
    n, steps = len(data), -(-len(data) // plan.batch_size)
    if training.learning_rate is None:
        learning_rates = training.optimizer.rates(plan.steps, steps)
    else:
        learning_rates = [checks.positive("learning_rate", training.learning_rate)] * steps
    order = None
    if shuffle:
        order = np.random.default_rng([net.architecture.seed, 1, net.epoch]).permutation(n).astype(np.int32)
    start = time.perf_counter()
    loss = net.backend.run_epoch(
        plan, data, order, parameters=net.parameters, learning_rates=learning_rates, epoch=net.epoch
    )
    if not math.isfinite(loss):  # each cost was finite, but their sum is not
        raise NonFiniteError(net.epoch + 1, steps, len(net.architecture.activations), "cost")
    seconds, validation_loss, finite = time.perf_counter() - start, math.nan, True
    try:
        if validation is not None:
            validation_loss = net.mean_cost(*validation, penalty=False)
            finite = math.isfinite(validation_loss)
    finally:  # the epoch has changed the weights, even if its validation is interrupted
        if finite:
            training._epoch_ends(loss, learning_rates[0], seconds, None if validation is None else validation_loss)
    if not finite:
        raise NonFiniteError(net.epoch + 1, steps, len(net.architecture.activations), "validation cost")
