"""One optimiser step of a fine-tuning: its learning rates by step and by layer, its loss, and its penalty."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from equipoise.core.config import Finetune
from equipoise.scenario.finetuning.network import head_layer
from equipoise.scenario.heads.loss import tensor_row_losses
from equipoise.strategies.base import Objective


def learning_rate_at(step: int, options: Finetune) -> float:
    r"""Warm-up, then cosine: the rate of the topmost layer that is unfrozen.

    $\eta\,t/w$ up to step $w$, after it $\eta\,(1+\cos(\pi (t-w-1)/(T-w)))/2$.

    Args:
        step: $t$, 1 to $T$ = `steps`; $w$ is `warmup_fraction` of them.
        options: The `finetune` section.
    """
    warm_steps = round(options.warmup_fraction * options.steps)
    if step <= warm_steps:
        return options.learning_rate * step / warm_steps
    falling_steps = options.steps - warm_steps
    progress = (step - warm_steps - 1) / falling_steps
    cosine = math.cos(math.pi * progress)
    return options.learning_rate * (1 + cosine) / 2


def relative_rates(network: Any, options: Finetune) -> list[float]:
    r"""The rate of every variable that is trained, as a multiple of `learning_rate_at`.

    $d^k$ in the k-th layer with weights from the top, $d$ = `layer_decay` (Howard and Ruder 2018,
    arXiv 1801.06146); the head has a rate of its own.

    Args:
        network: keras.Model with a head.
        options: The `finetune` section.

    Returns:
        One multiple for each of the trainable variables, in Keras' order.
    """
    head = head_layer(network)
    of_head = options.head_learning_rate / options.learning_rate
    rate_of = {variable.path: of_head for variable in head.trainable_variables}
    multiple = 1.0
    for layer in reversed(network.layers):
        if layer is head or not layer.trainable_variables:
            continue
        for variable in layer.trainable_variables:
            rate_of[variable.path] = multiple
        multiple *= options.layer_decay
    return [rate_of[variable.path] for variable in network.trainable_variables]


def adam(multiples: list[float], average_decay: float) -> Any:
    """Keras' Adam with a rate of its own for each variable, a multiple of its `learning_rate`.

    It averages the variables over its steps, see `averaged`.

    Args:
        multiples: One for each variable that it is built with, in the same order.
        average_decay: Share of the average that is kept from one step to the next, 0 for none.
    """
    import keras

    class LayerwiseAdam(keras.optimizers.Adam):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            multiple = multiples[self._get_variable_index(variable)]
            super().update_step(gradient, variable, learning_rate * multiple)

    return LayerwiseAdam(1.0, use_ema=True, ema_momentum=average_decay)


@contextmanager
def averaged(network: Any, optimizer: Any) -> Iterator[None]:
    """Give a network, for a while, the averages of its weights over the last steps of an optimiser.

    The last step leaves weights beside the middle of where steps go to and fro: their average has the
    lower loss on new images (Izmailov et al. 2018, arXiv 1803.05407).

    Args:
        network: keras.Model that is trained.
        optimizer: Of `training_step`; before its first step it has no average, and nothing changes.
    """
    if not optimizer.iterations.numpy():
        yield
        return
    variables = network.trainable_variables
    now = [variable.numpy() for variable in variables]
    try:
        optimizer.finalize_variable_values(variables)
        yield
    finally:
        for variable, value in zip(variables, now):
            variable.assign(value)


def training_step(
    network: Any,
    trained: Any,
    opened: Any,
    options: Finetune,
    objective: Objective,
    l2: float,
) -> tuple[Any, Any]:
    """The optimiser, and one compiled step.

    Args:
        network: keras.Model, the whole network with its head.
        trained: keras.Model, the part of it that is computed in a step.
        opened: Makes of the inputs of a batch what `trained` reads.
        options: The `finetune` section.
        objective: Focusing and offsets are read.
        l2: Penalty of the head.

    Returns:
        The optimiser, and (inputs, labels, weights, learning rate) -> loss.
    """
    import keras
    import tensorflow as tf

    variables = network.trainable_variables
    dense = head_layer(network)
    inner = adam(relative_rates(network, options), options.average_decay)
    optimizer = inner
    if options.mixed_precision:
        # Gradients of float16 underflow without a scale; steps that overflow it are passed over.
        optimizer = keras.optimizers.LossScaleOptimizer(inner)
    optimizer.build(variables)

    @tf.function
    def step(inputs: Any, labels: Any, weights: Any, learning_rate: Any) -> Any:
        inner.learning_rate.assign(learning_rate)
        with tf.GradientTape() as tape:
            logits = trained(opened(*inputs), training=not options.freeze_batch_norm)
            losses = tensor_row_losses(logits, labels, objective)
            total = tf.reduce_sum(weights * losses)
            mean = total / tf.reduce_sum(weights)
            loss = mean + _penalty(dense.kernel, l2)
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, variables)
        optimizer.apply(gradients, variables)
        return loss

    return optimizer, step


def _penalty(coefficients: Any, l2: float) -> Any:
    r"""$l_2 \lVert W \rVert^2 / 2$ of a tensor (num_features, C).

    As in the solver, $W$ is one column for two classes: the second minus the first.
    """
    import tensorflow as tf

    if coefficients.shape[1] == 2:
        coefficients = coefficients - coefficients[:, :1]
    return 0.5 * l2 * tf.reduce_sum(coefficients**2)
