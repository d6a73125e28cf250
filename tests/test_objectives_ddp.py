"""Every objective over several steps of real DistributedDataParallel (default settings, so rank 0's buffers are broadcast
before each forward pass) on two gloo ranks, against one process with the joined batch: loss, gradient and state."""
import copy

import pytest
import torch
import torch.distributed as dist
from distributed import run_two_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssl_nb import objectives

pytestmark = pytest.mark.xdist_group("objectives_ddp")  # one worker makes the two ranks for all of them

STEPS, ROWS, WIDTH = 6, 8, 6


def inputs(step):
    "Three views of the joined batch of a step."
    return torch.randn(3, ROWS, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


class Problem(nn.Module):
    "An encoder, perhaps a predictor and a teacher, and an objective with whatever state it has."

    def __init__(self, compare, predictor=None, teacher=False, head=None):
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), head or nn.Linear(8, WIDTH))
        self.predictor, self.compare = predictor or nn.Identity(), compare
        self.teacher = copy.deepcopy(self.student).requires_grad_(False) if teacher else None

    def forward(self, views):
        z = [self.student(v) for v in views]
        with torch.no_grad():
            targets = [self.teacher(v) for v in views] if self.teacher else z
        return self.compare([self.predictor(v) for v in z], targets)

    def after_step(self, progress):
        if self.teacher:
            objectives.ema_update(self.teacher, self.student, 0.8)
        for part in self.modules():
            if part is not self and hasattr(part, "after_step"):
                part.after_step(progress)


class Swav(nn.Module):
    def __init__(self, queue):
        super().__init__()
        self.prototypes = objectives.Prototypes(WIDTH, 5, freeze_until=0.4)
        self.queue = objectives.FeatureQueue(queue, WIDTH) if queue else None

    def forward(self, z, _):
        scores = [self.prototypes(v) for v in z]
        queued = self.queue.scores(self.prototypes) if self.queue else None
        loss = objectives.swav(scores, queue_scores=queued, iterations=8)
        if self.queue:
            self.queue.push([v.detach() for v in z[:2]])
        return loss


class Moco(nn.Module):
    def __init__(self):
        super().__init__()
        self.moco = objectives.MoCoQueue(20, WIDTH, temperature=0.2)

    def forward(self, z, t):
        return self.moco(z[0], t[1])


class Dino(objectives.DINOLoss):
    def forward(self, z, t):
        return super().forward(z, t[:2])


def masked(z, _):
    mask = torch.arange(WIDTH // 2).expand(len(z[0]), -1) == (z[0].detach()[:, :1] > 0)  # one hidden patch of three, per row
    return objectives.masked_mse(z[0].view(len(z[0]), -1, 2), z[1].view(len(z[0]), -1, 2), mask)


def direct(mode):
    return Problem(lambda p, z: objectives.simsiam(*p[:2], *z[:2]), objectives.DirectPredictor(WIDTH, mode=mode, every=2))


PROBLEMS = {
    "info_nce": lambda: Problem(lambda z, _: objectives.info_nce(*z[:2], negatives=z[2].detach())),
    "nt_xent": lambda: Problem(lambda z, _: objectives.nt_xent(*z[:2])),
    "barlow_twins": lambda: Problem(lambda z, _: objectives.barlow_twins(*z[:2])),
    "vicreg": lambda: Problem(lambda z, _: objectives.vicreg(*z[:2])),
    "moco": lambda: Problem(Moco(), teacher=True),
    "byol": lambda: Problem(lambda p, t: objectives.byol(*p[:2], *t[:2]), nn.Linear(WIDTH, WIDTH), teacher=True),
    "simsiam": lambda: Problem(lambda p, z: objectives.simsiam(*p[:2], *z[:2]), nn.Linear(WIDTH, WIDTH)),
    "directpred": lambda: direct("directpred"),
    "directcopy": lambda: direct("directcopy"),
    "swav": lambda: Problem(Swav(0)),
    "swav with a queue": lambda: Problem(Swav(19)),  # full from the fourth step on; divisible neither by ranks nor by rows
    "dino": lambda: Problem(Dino(7, warmup_temperature=0.2, warmup=0.6), teacher=True,
                            head=objectives.DINOHead(8, 7, 9, 4, freeze_until=0.3)),
    "masked_mse": lambda: Problem(masked),
}  # fmt: skip


def train(name, rank=0, world=1):
    "Loss and gradient of every step, and the state behind the last one."
    torch.manual_seed(0)  # of the weights that a problem draws before its encoder
    problem = PROBLEMS[name]().double()
    wrapped = DistributedDataParallel(problem) if world > 1 else problem
    optimizer = torch.optim.SGD((p for p in problem.parameters() if p.requires_grad), 0.1)
    mine, losses, gradients = slice(ROWS // world * rank, ROWS // world * (rank + 1)), [], []
    for step in range(STEPS):
        loss = wrapped(inputs(step)[:, mine])
        optimizer.zero_grad()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in problem.parameters() if p.requires_grad]))
        optimizer.step()
        problem.after_step((step + 1) / STEPS)
        losses.append(loss.detach())
    losses = torch.stack(losses)
    if world > 1:  # an objective may be the mean over this rank's rows
        dist.all_reduce(losses)
        losses /= world
    return {"loss": losses, "gradient": torch.stack(gradients), **{f"state {k}": v for k, v in problem.state_dict().items()}}


def train_all(rank, world):
    return {name: train(name, rank, world) for name in PROBLEMS}


@pytest.fixture(scope="module")
def two_ranks():
    return run_two_ranks(train_all)


@pytest.mark.parametrize("name", PROBLEMS)
def test_steps_of_two_ranks_are_those_of_one_process(two_ranks, name):
    joined = train(name)
    assert joined["gradient"].norm(dim=1).min() > 1e-6  # every step trains
    for rank in two_ranks:
        assert rank[name].keys() == joined.keys()
        for key, expected in joined.items():
            got = rank[name][key]
            assert (got - expected).abs().max() <= 1e-9 * expected.abs().max().clamp_min(1), key
