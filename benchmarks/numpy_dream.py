"""The dream in plain Python and NumPy, one episode at a time, as the original stepped it.

It is the baseline that the compiled dream is raced against, and the oracle its tests compare
with: nothing here is shared with `dreamjax.memory.model` or `dreamjax.dream.env` but the weights.
"""

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def weights_of(memory) -> dict[str, np.ndarray]:
    """M's four arrays as float64 NumPy."""
    names = ("lstm_kernel", "lstm_bias", "head_kernel", "head_bias")
    return {name: np.asarray(getattr(memory, name)[...], np.float64) for name in names}


def lstm(w: dict, c, h, z, action, restart: bool):
    """One LSTM step with the restart flag as input; returns (c, h)."""
    if restart:
        c, h = np.zeros_like(c), np.zeros_like(h)
    x = np.concatenate([z, action, [float(restart)], h])
    i, j, f, o = np.split(x @ w["lstm_kernel"] + w["lstm_bias"], 4)
    c = sigmoid(f + 1.0) * c + sigmoid(i) * np.tanh(j)
    return c, sigmoid(o) * np.tanh(c)


def predict(w: dict, h: np.ndarray, latent_size: int):
    """Mixture (logits, mean, logstd), each [K, Z], and the death logit, of h [H]."""
    out = h @ w["head_kernel"] + w["head_bias"]
    logits, mean, logstd = out[:-1].reshape(3, -1, latent_size)
    return logits, mean, logstd, out[-1]


def sample(logits, mean, logstd, uniform, normal, temperature: float) -> np.ndarray:
    """The next z [Z]: a component per dimension by its cumulative probability, then a Gaussian."""
    scaled = logits / temperature
    probability = np.exp(scaled - scaled.max(0))
    cumulative = np.cumsum(probability / probability.sum(0), axis=0)
    z = np.empty(mean.shape[1])
    for d in range(len(z)):
        k = min(np.searchsorted(cumulative[:, d], uniform[d], side="right"), len(mean) - 1)
        z[d] = mean[k, d] + np.exp(logstd[k, d]) * np.sqrt(temperature) * normal[d]
    return z


def step(w: dict, state, action, uniform, normal, temperature: float):
    """One dream step: state (z, c, h, first) -> (state, death logit)."""
    z, c, h, first = state
    c, h = lstm(w, c, h, z, np.clip(action, -1, 1), first)
    *mixture, death = predict(w, h, len(z))
    return (sample(*mixture, uniform, normal, temperature), c, h, False), death
