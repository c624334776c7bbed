"""`python -m harness.write_prompts OUT task=axbench …`: have an endpoint write a steering prompt for each concept.

The file is what ``method=concept_prompting method.prompts=OUT`` reads. Concepts that stand in it already are left
alone, so the same command goes on after a break.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import openai

from harness.commands.parser import OneLineParser
from harness.config import composed, plain_values
from harness.json_text import parsed_object
from harness.nodes import built
from harness.progress import phase
from harness.tasks.task import Task

REQUEST = """\
Write an instruction for a chat assistant. It will stand before whatever a user asks. With it, the assistant's replies
should be full of this theme, whatever the subject, while they still answer the user:

{concept}

Say concretely how the theme should show (wording, examples, form). At most 120 words. Reply with the instruction alone.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is missing; exit status 0 if every concept has a prompt, 2 if something was wrong."""
    given = _parser().parse_args(arguments)
    try:
        task = built(plain_values(composed(given.overrides)[0])["task"], Task, "task")
        concepts = list(dict.fromkeys(example.concept for example in task.examples("test") if example.concept))
        if not concepts:
            raise ValueError(f"task {task.name} names no concepts; use task=axbench")

        client = openai.OpenAI(api_key=os.environ.get(given.key_variable) or "none", base_url=given.base_url)
        write(Path(given.out), concepts, client, given.model)
    except (OSError, ValueError, openai.OpenAIError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m harness.write_prompts",
        description="Have an OpenAI-compatible endpoint write a steering prompt for each concept of a task.",
    )
    parser.add_argument("out", help="JSON Lines file to write, or to go on with")
    parser.add_argument("overrides", nargs="+", help="the task, e.g. task=axbench task.path=DIR")
    parser.add_argument("--model", default=os.environ.get("JUDGE_MODEL", "gpt-4o-mini"))
    parser.add_argument("--base-url", default=os.environ.get("OPENAI_BASE_URL"))
    parser.add_argument("--key-variable", default="OPENAI_API_KEY", help="environment variable that holds the key")
    return parser


def write(out: Path, concepts: Sequence[str], client: openai.OpenAI, model: str) -> None:
    """Append a line for each concept that has none, as soon as it is written.

    Raises:
        ValueError: the endpoint replied with nothing.
        openai.OpenAIError: the endpoint refuses or cannot be reached.
    """
    lines = out.read_text("utf-8").splitlines() if out.exists() else []
    known = {parsed_object(line, f"{out} line {number}").get("concept") for number, line in enumerate(lines, start=1)}
    missing = [concept for concept in concepts if concept not in known]
    with phase(f"steering prompts by {model}", len(missing)) as advance, out.open("a", encoding="utf-8") as file:
        for concept in missing:
            message = {"role": "user", "content": REQUEST.format(concept=concept)}
            reply = client.chat.completions.create(model=model, messages=[message])  # pyright: ignore[reportArgumentType]
            prompt = (reply.choices[0].message.content or "").strip()
            if not prompt:
                raise ValueError(f"{model} wrote nothing for the concept {concept!r}")
            print(json.dumps({"concept": concept, "prompt": prompt}, ensure_ascii=False), file=file, flush=True)
            advance(1)
