"""The same dream step in PyTorch, as most would write it, and tuned by hand; to race against.

python -m benchmarks.torch_dream     (needs torch)
"""

import time

import numpy as np

from . import timing


def rows(lanes: int, steps: int, ceiling: float | None = None) -> list[timing.Row]:
    """Steps/s of eager and compiled PyTorch, float32 and bfloat16 products; [] without torch."""
    try:
        import torch
    except ImportError:
        print("torch is not installed: its rows are skipped")
        return []
    found = []
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            for compiled in (False, True):
                rate = _rate(torch, dtype, compiled, lanes, steps)
                kind = f"torch {'compiled' if compiled else 'eager'} {str(dtype)[6:]}"
                found.append(
                    timing.row(kind, lanes, rate, "steps/s", rate / ceiling if ceiling else None)
                )
    return found


def original_rows(steps: int = 400) -> list[timing.Row]:
    """The original's way: batch 1, and a Python loop over the latents that samples each."""
    try:
        import torch
    except ImportError:
        return []
    Z, H, K = 64, 512, 5
    lstm, head = 0.05 * torch.randn(Z + 2 + H, 4 * H), 0.05 * torch.randn(H, 3 * K * Z + 1)
    weights = 0.1 * np.random.default_rng(0).standard_normal(Z + 2 * H).astype(np.float32)
    z, c, h = np.zeros(Z, np.float32), torch.zeros(1, H), torch.zeros(1, H)
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(steps):
            read = np.concatenate([z, c[0].numpy(), h[0].numpy()])
            action = np.tanh(weights @ read)
            x = torch.cat([torch.from_numpy(np.append(z, [action, 0]))[None].float(), h], 1)
            i, j, f, o = (x @ lstm).chunk(4, 1)
            c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(j)
            h = torch.sigmoid(o) * torch.tanh(c)
            z = _sample_one_by_one((h @ head)[0, :-1].numpy().reshape(3, K, Z))
    rate = steps / (time.perf_counter() - start)
    return [timing.row("the original's way, torch", 1, rate, "steps/s")]


def _sample_one_by_one(mixture: np.ndarray) -> np.ndarray:
    """The next z [Z] of a mixture [3, K, Z], a latent at a time as `doomrnn.py` does."""
    logits, mean, logstd = mixture
    weights = np.exp(logits - logits.max(0))
    weights /= weights.sum(0)
    z = np.zeros(mixture.shape[-1], np.float32)
    noise = np.random.randn(len(z))
    for d in range(len(z)):
        level, total, k = np.random.rand(), 0.0, -1
        while total <= level and k + 1 < len(weights):
            k += 1
            total += weights[k, d]
        z[d] = mean[k, d] + np.exp(logstd[k, d]) * noise[d]
    return z


def _rate(torch, dtype, compiled: bool, lanes: int, steps: int, repeats: int = 3) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    step = _make_step(torch, dtype, device)
    if compiled:
        step = torch.compile(step)
    Z, H = 64, 512
    state = [torch.zeros(lanes, n, device=device) for n in (Z, H, H)]
    weights = 0.1 * torch.randn(64, Z + 2 * H, device=device)
    for _ in range(5):
        state = step(*state, weights)
    taken = []
    for _ in range(repeats):
        _wait(torch, device)
        start = time.perf_counter()
        for _ in range(steps):
            state = step(*state, weights)
        _wait(torch, device)
        taken.append(time.perf_counter() - start)
    return lanes * steps / float(np.median(taken))


def _wait(torch, device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _make_step(torch, dtype, device: str):
    """One step of C, M and the sampler; members of the population take turns along the lanes."""
    Z, H, K = 64, 512, 5
    lstm = (0.05 * torch.randn(Z + 2 + H, 4 * H, device=device)).to(dtype)
    head = (0.05 * torch.randn(H, 3 * K * Z + 1, device=device)).to(dtype)

    def step(z, c, h, weights):
        lanes = len(z)
        features = torch.cat([z, c, h], 1).view(len(weights), -1, Z + 2 * H)
        action = torch.tanh(torch.einsum("prf,pf->pr", features, weights)).reshape(lanes, 1)
        x = torch.cat([z, action, torch.zeros_like(action), h], 1)
        i, j, f, o = (x.to(dtype) @ lstm).float().chunk(4, 1)
        c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(j)
        h = torch.sigmoid(o) * torch.tanh(c)
        out = (h.to(dtype) @ head).float()
        logits, mean, logstd = out[:, :-1].view(lanes, 3, K, Z).unbind(1)
        cumulative = torch.softmax(logits, 1).cumsum(1)
        uniform = torch.rand(lanes, 1, Z, device=z.device)
        component = (uniform > cumulative).sum(1, keepdim=True).clamp(max=K - 1)
        mean, logstd = (part.gather(1, component)[:, 0] for part in (mean, logstd))
        return mean + torch.exp(logstd) * torch.randn_like(mean), c, h

    return step


if __name__ == "__main__":
    for found in rows(1024, 50):
        print(found)
