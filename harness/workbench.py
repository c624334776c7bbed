"""Where examples, a method, a control and a model meet: requests in, generations out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.control import Control, stable_seed
from harness.data import Access, Example, Parameters
from harness.scoring import Generation, Record
from harness.steering import Artifact, Intervention, Method
from harness.subject.decode import Decoded, Sampling
from harness.subject.local import LocalSubject, Template
from harness.subject.passes import Text, loglikelihood
from harness.tasks.task import Task
from harness.workspace import Workspace

POOL_ROWS = 1024
"""Rows whose per-row tensors exist at once."""


@dataclass(frozen=True)
class Request:
    """One row to run. Empty parameters mean un-steered."""

    example: Example
    parameters: Parameters
    trial: int = -1
    temperature: float = 0.0


@dataclass(eq=False)
class Workbench:
    """Runs requests for one method under one control.

    Args:
        subject: the model.
        task: where examples come from.
        method: what steers.
        control: what the method is fed.
        seed: seed of sampling and of the control.
        prune_loops: stop rows that repeat themselves.
    """

    subject: LocalSubject
    task: Task
    method: Method
    control: Control
    seed: int
    prune_loops: bool = False
    artifact: Artifact = field(default_factory=dict)
    fit_examples: int = 0
    _conditions: dict[str, Artifact] = field(default_factory=dict)
    _fed: dict[str, Example] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Let fits and conditions read prompts as the run does: with its instruction, and bare for a task of texts."""
        template = Template(chat=False) if self.task.raw else self.subject.template
        self.subject = dataclasses.replace(self.subject, template=template, instruction=self.method.instruction)

    @property
    def steers(self) -> bool:
        """Whether hidden states are meant to change."""
        return self.method.steers and self.control.steers

    @property
    def temperature(self) -> float:
        """Temperature at which trials are drawn: the control's where it draws samples, else the task's."""
        return self.control.temperature or self.task.temperature

    def fit(self, workspace: Workspace | None = None) -> Artifact:
        """Fit the method on the training split, as the control hands it over.

        Args:
            workspace: where a method that trains keeps checkpoints, shows progress and counts its cost.
        """
        if not self.steers:
            self.adopt({})
            return self.artifact
        subject = dataclasses.replace(self.subject, workspace=workspace or Workspace())
        data = self.control.fit_data(self.task.fit_data(self.method.requires), self.seed)
        sets = (data.pairs, data.source, data.target, data.control, data.labelled, data.demonstrations)
        self.fit_examples = sum(map(len, sets))
        self.adopt(self.method.fit(subject, data))
        return self.artifact

    def adopt(self, artifact: Artifact) -> None:
        """Take over fitted tensors, wherever they were made, to where the model lives."""
        self.artifact = {name: value.detach().to(self.subject.device) for name, value in artifact.items()}

    def prompt(self, example: Example) -> str:
        """The exact text that the model reads for an example."""
        # Only a control may look at the answer here, and only one that declares it.
        seen = example if Access.GOLD in self.control.access else example.redacted()
        parts = [self.control.instruction(seen), self.method.instruct(example.shown_to(self.method.access))]
        return self.subject.render(example.question, "\n\n".join(filter(None, parts)))

    def record(self, example: Example, generation: Generation) -> Record:
        """What evaluators get to see of a generation."""
        return Record(example, generation, self.prompt(example))

    def feed(self, examples: Sequence[Example]) -> None:
        """Decide once, for a whole split, whose condition each example gets."""
        fed = self.control.fed(examples, self.seed)
        self._fed |= {example.id: other for example, other in zip(examples, fed, strict=True)}

    def forget_conditions(self) -> None:
        """Free what was looked up for examples that are done."""
        self._conditions.clear()

    def run(self, requests: Sequence[Request], on_finish: Callable[[], None] | None = None) -> list[Generation]:
        """Run all requests, batched, and return their generations in order.

        Args:
            requests: rows; un-steered ones and steered ones may be mixed.
            on_finish: called once per finished row.
        """
        found: dict[int, Generation] = {}
        for group in self._groups(requests):
            chosen = [requests[index] for index in group]
            intervention = self.intervention(chosen)
            if self.task.kind != "choice":
                generations = self._generate(chosen, intervention, on_finish)
            else:
                generations = [
                    Generation(request.example.id, request.parameters, "", (), "choice") for request in chosen
                ]
            if self.task.kind != "generate":
                generations = self._with_choices(chosen, generations, intervention)
            found.update(zip(group, generations, strict=True))
        return [found[index] for index in range(len(requests))]

    def _groups(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        kinds: dict[tuple[bool, float], list[int]] = {}
        for index, request in enumerate(requests):
            kinds.setdefault((bool(request.parameters) and self.steers, request.temperature), []).append(index)
        for members in kinds.values():
            for start in range(0, len(members), POOL_ROWS):
                yield members[start : start + POOL_ROWS]

    def intervention(self, requests: Sequence[Request]) -> Intervention:
        """The edits for these rows; none if the first request is un-steered."""
        if not requests or not requests[0].parameters or not self.steers:
            return Intervention()
        self.look_up([request.example for request in requests])
        conditions = [self._conditions[request.example.id] for request in requests]
        condition = {name: torch.stack([found[name] for found in conditions]) for name in conditions[0]}
        device = self.subject.network.device
        parameters: dict[str, Tensor] = {
            name: torch.tensor([request.parameters[name] for request in requests], dtype=torch.float32, device=device)
            for name in requests[0].parameters
        }
        edits = self.method.intervention(self.artifact, condition, parameters)
        ids = [request.example.id for request in requests]
        return self.control.wrap(edits, ids, self.subject.layout, self.seed)

    def look_up(self, examples: Sequence[Example]) -> None:
        """Have the method look up what it needs for these examples, unless it is known already."""
        missing = list({e.id: e for e in examples if e.id not in self._conditions}.values())
        if not missing:
            return
        handed = [self._fed.get(example.id, example) for example in missing]
        handed = [example.shown_to(self.method.access) for example in handed]
        found = self.method.condition(self.subject, self.artifact, handed)
        for index, example in enumerate(missing):
            self._conditions[example.id] = {name: value[index] for name, value in found.items()}

    def read_latents(self, examples: Sequence[Example]) -> list[Record]:
        """What the method reads in the texts of each example (see `Task.latent_examples`), the model un-steered.

        A method that reads nothing, or has nothing of its own to read under this control, leaves empty records.
        """
        texts = [tuple(text) for example in examples for text in example.metadata["texts"]]
        groups = [example.group for example in examples for _ in example.metadata["texts"]]
        reads = self.steers and self.control.detects
        found = self.method.latents(self.subject, self.artifact, texts, groups) if reads else None

        values = iter([] if found is None else found.tolist())
        return [
            Record(example, Generation(example.id, {}, "", (), "latents", latents=tuple(own)), "")
            for example in examples
            for own in [itertools.islice(values, len(example.metadata["texts"]))]
        ]

    def _generate(
        self, requests: Sequence[Request], intervention: Intervention, on_finish: Callable[[], None] | None
    ) -> list[Generation]:
        prompts = [self.subject.encode(self.prompt(request.example)) for request in requests]
        sampling = Sampling(self.task.max_new_tokens, temperature=requests[0].temperature, prune_loops=self.prune_loops)
        seeds = [stable_seed(self.seed, request.example.id, request.trial) for request in requests]
        finished = None if on_finish is None else (lambda _index: on_finish())
        rows = self.subject.decode(prompts, intervention, sampling, seeds, finished)
        return [
            self._generation(request, row, len(prompt))
            for request, row, prompt in zip(requests, rows, prompts, strict=True)
        ]

    def _generation(self, request: Request, row: Decoded, prompt_tokens: int) -> Generation:
        text = self.subject.decode_text(row.token_ids)
        return Generation(
            request.example.id, request.parameters, text, row.token_ids, row.finish, prompt_tokens, row.near_ties
        )

    def _with_choices(
        self, requests: Sequence[Request], generations: Sequence[Generation], intervention: Intervention
    ) -> list[Generation]:
        texts, owners = [], []
        for index, request in enumerate(requests):
            prompt = self.subject.encode(self.prompt(request.example))
            for number, choice in enumerate(request.example.choices):
                if request.example.choice_questions:
                    prompt = self.subject.encode(self.prompt(request.example.replying_to(number)))
                texts.append(Text(prompt, self.subject.encode(choice)))
                owners.append(index)
        with torch.no_grad():
            found = loglikelihood(self.subject.network, texts, intervention, self.subject.tally, owners)
        sums = [float(row.sum()) for row in found]
        by_row: dict[int, list[float]] = {}
        for owner, value in zip(owners, sums, strict=True):
            by_row.setdefault(owner, []).append(value)
        return [
            dataclasses.replace(generation, choice_logprobs=tuple(by_row.get(index, ())))
            for index, generation in enumerate(generations)
        ]
