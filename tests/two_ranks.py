"""Runs of the training loop on two processes (gloo, CPU). A script, because Fabric starts the second process by running it again.

`python two_ranks.py FOLDER` writes FOLDER/0.pt and FOLDER/1.pt, what each rank found: {name of the run: state of the method}."""

import sys
from pathlib import Path

import torch
from torch import nn
from toy import toy_split, toy_trainer

from ssl_nb import methods
from ssl_nb.training import Trainer

METHODS = ("simclr", "vicreg", "moco", "swav", "dino")


def state(trainer):
    return {key: value.detach().clone() for key, value in trainer.method.state_dict().items()}


class Plain(nn.Module):
    "An encoder without batch statistics, which two processes do not share."

    num_features = 8

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh())

    def forward(self, x):
        return self.net(x)


def fixed_views(batch, generator):
    "Views that depend on the images alone: then the rows of two ranks together are the batch of one process."
    return [batch.x / 255, batch.x.flip(-1) / 255]


def method(name):
    torch.manual_seed(0)
    knobs = {"moco": dict(queue=32, momentum=0.9), "swav": dict(prototypes=6), "dino": dict(out_dim=16)}.get(name, {})
    if name != "dino":
        knobs["projector"] = (8,)  # one linear layer: no batch statistics either
    return methods.create(name, encoder=Plain(), views=fixed_views, **knobs)


def trained(name, devices):
    "A few steps with 16 images on all processes together."
    trainer = Trainer(method(name), toy_split(), epochs=2, batch_size=16 // devices, devices=devices, optimizer="sgd", lr=0.1,
                      clip=10.0, device="cpu")
    trainer.run(lambda line: None)
    return state(trainer)


def resumed(folder):
    "A run of two processes, whole and in two sittings; every kind of randomness takes part."
    settings = dict(devices=2, batch_size=8, epochs=3, checkpoint_every=100)
    whole = toy_trainer(**settings)
    whole.run(lambda line: None)
    first = toy_trainer(folder, **settings)
    for step in range(5):
        first.step()
        if step == 2:
            first.checkpoint()
    second = toy_trainer(folder, **settings)
    at = second.step_number
    second.run(lambda line: None)
    return {"whole": state(whole), "resumed": state(second), "at": at, "views": second.generator.get_state()}


def main(folder):
    torch.set_num_threads(1)
    found = resumed(folder / "run")
    found |= {name: trained(name, devices=2) for name in METHODS}
    torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
