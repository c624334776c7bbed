"""`python -m harness.lm_eval RUN --tasks NAME…`: a steered model in lm-evaluation-harness.

Any of its tasks, with any fitted method: likelihoods and completions come from the batched engine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from harness.api.fitted import Fitted, Steer, load_vector
from harness.api.model import Model, Prompts, load
from harness.control import Control
from harness.data import Example
from harness.protocol import Unsteered
from harness.records.lines import replaced
from harness.steering import Intervention
from harness.subject.forward import forward
from harness.subject.passes import Text
from harness.subject.sampling import Sampling
from harness.workbench import Request, Workbench

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

PASS_TOKENS = 4096
"""Tokens of one likelihood pass, padding included."""
_NEW_TOKENS = 256

Scored = tuple[tuple[str, str], list[int], list[int]]
"""A request's texts, and the token ids of context and continuation."""


@register_model("harness")
class HarnessLM(TemplateLM):
    """A model of the harness, steered or not, as lm-evaluation-harness wants it.

    Contexts are read as they are: templates are the task's business.

    Args:
        model: what `harness.load` gave.
        steer: what steers; None for the model as it is.
        max_new_tokens: length limit of completions whose task names none.
    """

    def __init__(self, model: Model, steer: Fitted | Steer | None = None, max_new_tokens: int = _NEW_TOKENS) -> None:
        super().__init__()
        self._steered = None if steer is None else steer.at()
        self._model, self._max_new_tokens = model, max_new_tokens
        method = Unsteered() if self._steered is None else self._steered.fitted.method
        self._bench = Workbench(model.subject, Prompts(), method, Control(), seed=0)
        if self._steered is not None:
            self._steered.fitted.check(model)
            self._bench.adopt(self._steered.fitted.artifact)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text; it also stands for an empty context."""
        return int(self._model.subject.tokenizer.eos_token_id)

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, part of the key of cached requests."""
        return self._model.name

    @property
    def max_length(self) -> int:
        """The longest text that the model can read, in tokens."""
        settings = self._model.resolved.settings.get_text_config()
        return int(getattr(settings, "max_position_embeddings", 2048))

    def get_model_info(self) -> dict[str, Any]:
        """What stands among lm-evaluation-harness's results: which weights ran, and what steered them."""
        info = {"model": self._model.name, "model_identity": self._model.resolved.identity, "steering": None}
        if self._steered is None:
            return info
        note = self._steered.fitted.bundle.note
        parameters = dict(self._steered.parameters)
        steering = {"method": note.label, "version": note.version, "access": note.access, "parameters": parameters}
        return info | {"steering": steering}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_options: Any) -> list[int]:
        """Token ids of a text; special tokens as the model's tokenizer sets them, unless told."""
        tokenizer = self._model.subject.tokenizer
        extra = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(tokenizer(string, **extra).input_ids)

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = False, **_options: Any
    ) -> list[tuple[float, bool]]:
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for batch in self._batches(requests):
            rows = [requests[index] for index in batch]
            scored = self._scored([(texts[0], context, continuation) for texts, context, continuation in rows])
            for index, result in zip(batch, scored, strict=True):
                results[index] = result
        return results

    def _batches(self, requests: Sequence[Scored]) -> Iterator[list[int]]:
        """Requests of like length together, the longest first, so that a batch that is too large fails at once."""
        lengths = [len(context) + len(continuation) for _, context, continuation in requests]
        batch: list[int] = []
        for index in sorted(range(len(requests)), key=lambda index: -lengths[index]):
            if batch and lengths[batch[0]] * (len(batch) + 1) > PASS_TOKENS:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    @torch.no_grad()
    def _scored(self, rows: Sequence[tuple[str, list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Summed log-probability in nats of each continuation, and whether greedy decoding would have written it."""
        texts = []
        for _, context, continuation in rows:
            kept = (context + continuation)[-self.max_length :]
            texts.append(Text(tuple(kept[: -len(continuation)]), tuple(continuation)))
        subject = self._model.subject
        intervention = self._intervention([text for text, _, _ in rows])
        passed = forward(subject.network, texts, (), intervention=intervention, logits=True, tally=subject.tally)

        predicted = [logits.argmax(-1) for logits in passed.logit_pieces(passed.predicting, 512)]
        expected = passed.ids[passed.completion]
        agrees = torch.cat(predicted) == expected
        sums = passed.logprobs().sum(1).tolist()
        counts = [len(text.completion) for text in texts]
        return [(total, bool(own.all())) for total, own in zip(sums, agrees.split(counts), strict=True)]

    def _intervention(self, contexts: Sequence[str]) -> Intervention:
        if self._steered is None:
            return Intervention()
        parameters = dict(self._steered.parameters)
        self._bench.forget_conditions()
        items = [Example(f"request-{place}", context) for place, context in enumerate(contexts)]
        return self._bench.intervention([Request(item, parameters) for item in items])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Summed log-probability in nats of whole texts, after the token that ends one."""
        scored: list[Scored] = []
        for request in requests:
            (text,) = request.args
            scored.append(((text, ""), [self.prefix_token_id], self.tok_encode(text, add_special_tokens=False)))
        return [total for total, _ in self._loglikelihood_tokens(scored)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy completions, cut before the first of the task's stop texts."""
        asked: list[tuple[str, dict[str, Any]]] = [tuple(request.args) for request in requests]  # pyright: ignore
        groups: dict[tuple[int, float], list[int]] = {}
        for index, (_, options) in enumerate(asked):
            length = int(options.get("max_gen_toks") or options.get("max_new_tokens") or self._max_new_tokens)
            is_drawn = bool(options.get("do_sample"))
            temperature = float(options.get("temperature") or 0.0) if is_drawn else 0.0
            groups.setdefault((length, temperature), []).append(index)

        texts = [""] * len(requests)
        for (length, temperature), members in groups.items():
            contexts = [asked[index][0] for index in members]
            prompts = [self.tok_encode(context)[-(self.max_length - length) :] for context in contexts]
            sampling = Sampling(length, temperature=temperature)
            rows = self._model.subject.decode(prompts, self._intervention(contexts), sampling)
            for index, row in zip(members, rows, strict=True):
                until = asked[index][1].get("until") or []
                stops = [until] if isinstance(until, str) else until
                texts[index] = _before(self._model.subject.decode_text(row.token_ids), stops)
        return texts


def _before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stop texts."""
    ends = [text.find(stop) for stop in stops if stop and stop in text]
    return text[: min(ends)] if ends else text


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate; exit status 0, or 2 if it cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        _refuse_full_folder(options.log_samples)
        model = load(options.model)
        steer = None if options.source is None else load_vector(options.source)
        results = simple_evaluate(
            HarnessLM(model, steer),
            tasks=options.tasks,
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            task_manager=_task_manager(options.include_path, options.tasks),
            bootstrap_iters=1000,
        )
    except (ValueError, OSError, KeyError) as error:
        print(f"lm_eval: {error}", file=sys.stderr)
        return 2

    assert results is not None
    print(make_table(results))
    if options.out is not None:
        with replaced(options.out) as draft:
            kept = {name: dict(results).get(name, {}) for name in ("results", "samples")}
            draft.write_text(json.dumps(kept, default=str, ensure_ascii=False), encoding="utf-8")
        print(f"wrote {options.out}")
    if options.log_samples is not None:
        _log_samples(options.log_samples, dict(results), model.name)
        print(f"wrote {options.log_samples}: python -m harness.import_samples LABEL={options.log_samples} … out=DIR")
    return 0


def _task_manager(own: str | None, tasks: Sequence[str]) -> TaskManager:
    """Knows one's own tasks; those that lm-evaluation-harness ships, which take long to list, if one of them is due."""
    if own is not None:
        manager = TaskManager(include_path=own, include_defaults=False)
        if set(tasks) <= set(manager.all_tasks):
            return manager
    return TaskManager(include_path=own)


def _refuse_full_folder(folder: Path | None) -> None:
    """Raise ValueError where samples lie already: of two files of one task nobody could say which one counts."""
    if folder is not None and (earlier := sorted(folder.rglob("samples_*.jsonl"))):
        raise ValueError(f"--log-samples {folder} holds samples already ({earlier[0].name}); give each run its own")


def _log_samples(folder: Path, results: dict[str, Any], model: str) -> None:
    """Results and samples in lm-evaluation-harness's own files, by its own writer."""
    samples = results.pop("samples")
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args(
        "harness", {"model": model}, system_instruction="", chat_template="", fewshot_as_multiturn=False
    )
    tracker.save_results_aggregated(results, samples)
    for task in results["configs"]:
        tracker.save_results_samples(task, samples[task])
    # Its writer turns errors into warnings.
    if len(list(folder.rglob("samples_*.jsonl"))) != len(samples):
        raise OSError(f"the samples could not be written into {folder}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.lm_eval", description=__doc__)
    parser.add_argument("source", nargs="?", type=Path, metavar="RUN|BUNDLE", help="what steers (default: nothing)")
    parser.add_argument("--model", default="smollm2", help="as harness.load: a name, OWNER/NAME, a folder, a GGUF file")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="NAME", help="tasks of lm-evaluation-harness")
    parser.add_argument("--include-path", metavar="DIR", help="a folder with tasks of your own")
    parser.add_argument("--num-fewshot", type=int, help="examples before each question (default: the task's)")
    parser.add_argument("--limit", type=int, help="at most so many items of each task")
    parser.add_argument("--out", type=Path, help="a JSON file for results and samples")
    parser.add_argument(
        "--log-samples", type=Path, metavar="DIR",
        help="a folder for lm-evaluation-harness's own files, which python -m harness.import_samples reads",
    )  # fmt: skip
    return parser
