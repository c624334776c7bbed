"""Where examples, a method, a control and a model meet: requests in, generations out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.control import Control, stable_seed
from harness.data import Access, Example, Parameters
from harness.first_pass import check_intervention
from harness.flow import POOL_ROWS, Flow, Following
from harness.scoring import Generation, Record
from harness.steering import Artifact, Intervention, Method
from harness.subject.batch import Decoded
from harness.subject.local import LocalSubject, Template
from harness.subject.passes import Text, loglikelihood
from harness.tasks.task import Task
from harness.workspace import Workspace


@dataclass(frozen=True)
class Request:
    """One row to run. Empty parameters mean un-steered."""

    example: Example
    parameters: Parameters
    trial: int = -1
    temperature: float = 0.0


def instruction_for(example: Example, method: Method, control: Control) -> str:
    """The text that method and control place before an example's question; "" if they place none."""
    # Only a control may look at the answer here, and only one that declares it.
    seen = example if Access.GOLD in control.access else example.redacted()
    parts = [control.instruction(seen), method.instruct(example.shown_to(method.access))]
    return "\n\n".join(filter(None, parts))


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
        return self.subject.render(example.question, instruction_for(example, self.method, self.control))

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
        kinds: dict[tuple[bool, float], list[int]] = {}
        for index, request in enumerate(requests):
            kinds.setdefault((bool(request.parameters) and self.steers, request.temperature), []).append(index)
        by_index: dict[int, Generation] = {}
        for members in kinds.values():
            generations = self.run_on([requests[index] for index in members], None, on_finish)
            by_index.update(zip(members, generations, strict=True))
        return [by_index[index] for index in range(len(requests))]

    def run_on(
        self,
        requests: Sequence[Request],
        following: Following | None,
        on_finish: Callable[[], None] | None = None,
    ) -> list[Generation]:
        """Run requests whose results decide what to run next, in batches that stay full.

        Args:
            requests: the first rows. They and all that follow are of one kind: steered or not, at one temperature.
            following: is handed rows that are done, with their generations, and returns those to run next; None: none.
            on_finish: called once per finished row.

        Returns:
            All generations, in the order in which they were asked for.
        """
        if self.task.kind != "choice":
            return Flow(self, following, on_finish).run(requests)
        answered: list[Generation] = []
        while requests:
            empty = [Generation(request.example.id, request.parameters, "", (), "choice") for request in requests]
            generations = self.with_choices(requests, empty)
            answered += generations
            requests = following(list(zip(requests, generations, strict=True))) if following is not None else ()
        return answered

    def intervention(self, requests: Sequence[Request]) -> Intervention:
        """The edits for these rows; none if the first request is un-steered."""
        if not requests or not requests[0].parameters or not self.steers:
            return Intervention()
        self.look_up([request.example for request in requests])
        conditions = [self._conditions[request.example.id] for request in requests]
        condition = {name: torch.stack([looked_up[name] for looked_up in conditions]) for name in conditions[0]}

        device = self.subject.network.device
        parameters: dict[str, Tensor] = {
            name: torch.tensor([request.parameters[name] for request in requests], dtype=torch.float32, device=device)
            for name in requests[0].parameters
        }

        edits = self.method.intervention(self.artifact, condition, parameters)
        check_intervention(edits, self.method, len(requests))
        if self.method.couples_rows:
            edits = dataclasses.replace(edits, groups=torch.tensor(self._groups(requests), device=device))
        ids = [request.example.id for request in requests]
        return self.control.wrap(edits, ids, self.subject.layout, self.seed)

    def _groups(self, requests: Sequence[Request]) -> list[int]:
        """Which rows are samples of one prompt: those of the same text, trial and parameters."""
        kinds = [(self.prompt(r.example), r.trial, tuple(sorted(r.parameters.items()))) for r in requests]
        numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
        return [numbers[kind] for kind in kinds]

    def look_up(self, examples: Sequence[Example]) -> None:
        """Have the method look up what it needs for these examples, unless it is known already."""
        missing = list({e.id: e for e in examples if e.id not in self._conditions}.values())
        if not missing:
            return
        handed = [self._fed.get(example.id, example) for example in missing]
        handed = [example.shown_to(self.method.access) for example in handed]
        conditions = self.method.condition(self.subject, self.artifact, handed)
        for index, example in enumerate(missing):
            self._conditions[example.id] = {name: value[index] for name, value in conditions.items()}

    def read_latents(self, examples: Sequence[Example]) -> list[Record]:
        """What the method reads in the texts of each example (see `Task.latent_examples`), the model un-steered.

        A method that reads nothing, or has nothing of its own to read under this control, leaves empty records.
        """
        reads = self.steers and self.control.detects
        return [self._latents_of(example) if reads else _latents_record(example, ()) for example in examples]

    def _latents_of(self, example: Example) -> Record:
        # Concept by concept, as strengths were measured: the states of these texts may still be kept from there.
        texts = [(prompt, completion) for prompt, completion in example.metadata["texts"]]
        latents = self.method.latents(self.subject, self.artifact, texts, [example.group] * len(texts))
        return _latents_record(example, () if latents is None else latents.tolist())

    def seed_of(self, request: Request) -> int:
        """The seed of a row's sampling, its own alone."""
        return stable_seed(self.seed, request.example.id, request.trial)

    def generation(self, request: Request, row: Decoded, prompt_tokens: int) -> Generation:
        """What a row of the engine has become."""
        text = self.subject.decode_text(row.token_ids)
        return Generation(
            request.example.id, request.parameters, text, row.token_ids, row.finish, prompt_tokens, row.near_ties
        )

    def with_choices(self, requests: Sequence[Request], generations: Sequence[Generation]) -> list[Generation]:
        """The generations with the log-likelihood of each choice of their examples."""
        completed: list[Generation] = []
        for start in range(0, len(requests), POOL_ROWS):
            rows = slice(start, start + POOL_ROWS)
            likely = self._choice_logprobs(requests[rows])
            completed += [
                dataclasses.replace(generation, choice_logprobs=logprobs)
                for generation, logprobs in zip(generations[rows], likely, strict=True)
            ]
        return completed

    def _choice_logprobs(self, requests: Sequence[Request]) -> list[tuple[float, ...]]:
        texts, owners = [], []
        for index, request in enumerate(requests):
            prompt = self.subject.encode(self.prompt(request.example))
            for number, choice in enumerate(request.example.choices):
                if request.example.choice_questions:
                    prompt = self.subject.encode(self.prompt(request.example.replying_to(number)))
                texts.append(Text(prompt, self.subject.encode(choice)))
                owners.append(index)

        with torch.no_grad():
            intervention = self.intervention(requests)
            rows = loglikelihood(self.subject.network, texts, intervention, self.subject.tally, owners)
        sums: list[list[float]] = [[] for _ in requests]
        for owner, row in zip(owners, rows, strict=True):
            sums[owner].append(float(row.sum()))
        return [tuple(row) for row in sums]


def _latents_record(example: Example, latents: Sequence[float]) -> Record:
    return Record(example, Generation(example.id, {}, "", (), "latents", latents=tuple(latents)), "")
