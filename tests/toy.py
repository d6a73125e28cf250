"""A method, a split and a run that need no data, small enough for tests of the loop."""

import torch
from torch import nn

from ssl_nb.data import Split
from ssl_nb.methods.method import Method, Step
from ssl_nb.training import Trainer


def toy_split(n=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Split({"images": images, "labels": torch.arange(n) % 4})


class ToyEncoder(nn.Module):
    num_features = 8

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))

    def forward(self, x):
        return self.net(x / 255 if x.dtype == torch.uint8 else x)


class ToyMethod(Method):
    "Two noisy views should agree; every kind of randomness (order, views, dropout) takes part."

    def __init__(self):
        super().__init__(ToyEncoder(), lambda batch, generator: [
            batch.x / 255 + 0.1 * torch.randn(batch.x.shape, generator=generator, device=batch.device) for _ in range(2)])

    def loss(self, views, batch=None):
        a, b = (self.encoder(view.x) for view in views)
        return Step((a - b).square().mean() + (1 - a.std(0)).relu().mean(), {"gap": (a - b).abs().mean()}, a)


def toy_trainer(folder=None, **settings):
    torch.manual_seed(0)
    settings = dict(epochs=6, batch_size=16, lr=1e-2, device="cpu", checkpoint_every=3, monitors=(count_weights,)) | settings
    return Trainer(ToyMethod(), toy_split(), folder=folder, **settings)


def count_weights(method):
    return {"weight": float(method.encoder.net[1].weight.detach().square().sum())}


count_weights.every = 5
