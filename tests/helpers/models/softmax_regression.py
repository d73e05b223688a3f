"""Softmax regression in NumPy, float64: whole trainings by SGD and by Adam, to compare those of the package with."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.recipes.training_section import TrainingSettings
from finetune.rows.loader import plan_epoch
from finetune.rows.splits import SplitData
from helpers.tables.feature_sets import rows_of_steps

Weights = list[NDArray[Any]]


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: NDArray[Any] = shifted / shifted.sum(axis=1, keepdims=True)
    return result


def gradients_of(weights: Weights, features: NDArray[Any], label_index: NDArray[Any]) -> Weights:
    """Of the mean cross-entropy of softmax regression."""
    kernel, bias = weights
    error = softmax(features @ kernel + bias) - np.eye(kernel.shape[1])[label_index]
    return [features.T @ error / len(features), error.mean(axis=0)]


def train_by_numpy(weights: Weights, data: SplitData, training: TrainingSettings) -> Weights:
    """The whole training in float64. Source: SGD with momentum as the documentation of keras.optimizers.SGD states it."""
    weights = [weight.astype(np.float64) for weight in weights]
    velocities = [np.zeros_like(weight) for weight in weights]
    step, steps = 0, training.epochs * math.ceil(data.rows / training.batch_size)
    for epoch in range(1, training.epochs + 1):
        plan = plan_epoch(data.rows, seed=training.seed, epoch=epoch, global_batch_size=training.batch_size)
        for rows in rows_of_steps(plan):
            gradients = gradients_of(weights, data.features[rows].astype(np.float64), data.label_index[rows])
            gradients[0] = gradients[0] + 2 * training.l2 * weights[0]
            rate = training.learning_rate
            if training.schedule == "cosine":  # Loshchilov and Hutter 2017, equation 5
                rate *= (1 + math.cos(math.pi * step / steps)) / 2
            step += 1
            for index, gradient in enumerate(gradients):
                velocity = training.momentum * velocities[index] - rate * gradient
                velocities[index] = velocity
                ahead = training.momentum * velocity - rate * gradient
                weights[index] = weights[index] + (ahead if training.nesterov else velocity)
    return weights


def train_by_numpy_adam(weights: Weights, data: SplitData, training: TrainingSettings) -> Weights:
    """Adam. Source: Kingma and Ba 2015, end of section 2, as Keras has it: epsilon 1e-7, outside of the correction."""
    weights = [weight.astype(np.float64) for weight in weights]
    means, squares = [np.zeros_like(weight) for weight in weights], [np.zeros_like(weight) for weight in weights]
    step = 0
    for epoch in range(1, training.epochs + 1):
        plan = plan_epoch(data.rows, seed=training.seed, epoch=epoch, global_batch_size=training.batch_size)
        for rows in rows_of_steps(plan):
            step += 1
            rate = training.learning_rate * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            gradients = gradients_of(weights, data.features[rows].astype(np.float64), data.label_index[rows])
            for index, gradient in enumerate(gradients):
                means[index] = 0.9 * means[index] + 0.1 * gradient
                squares[index] = 0.999 * squares[index] + 0.001 * gradient**2
                weights[index] = weights[index] - rate * means[index] / (np.sqrt(squares[index]) + 1e-7)
    return weights
