"""Trains a small learner in a process of its own, so that a test can kill it. Arguments: folder, file of weights."""

import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.training import Learner, Part, Training, train
from harness.workspace import Workspace

LENGTHS = [3 + row % 5 for row in range(40)]
TRAINING = Training(epochs=4, batch_size=6, pass_tokens=20, learning_rate=0.05, warmup=0.2, dev_share=0.2, patience=3)


class Noisy(Learner):
    """A regression whose loss draws noise: what it learns depends on every draw."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(len(LENGTHS), 8, generator=generator)
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))

    def loss(self, part: Part) -> Tensor:
        """Mean squared error over the batch, against noise drawn anew in every pass."""
        noise = torch.randn(len(part.rows), generator=part.generator())
        error = self.net(self.x[list(part.rows)])[:, 0] - noise
        return error.square().sum() / len(part.batch)

    def after_step(self) -> None:
        """Take long enough to be killed."""
        time.sleep(0.02)


if __name__ == "__main__":
    torch.set_num_threads(1)
    learner = Noisy()
    workspace = Workspace(folder=Path(sys.argv[1]), save_every=0.0)
    history = train(learner, TRAINING.plan(LENGTHS), TRAINING, workspace, LENGTHS)
    save_file({**learner.state_dict(), "losses": torch.tensor(history.losses)}, sys.argv[2])
    print(history.cost.examples, history.cost.tokens, flush=True)
