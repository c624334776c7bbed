"""`python -m harness.export RUN --to TOOL`: what a run found, as a file for this or another tool."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from harness.commands.parser import OneLineParser
from harness.nodes import built, installed_packages
from harness.subject.load import ModelConfig, ResolvedModel, resolve
from harness.vectors.additions import additions_of, described
from harness.vectors.bundle import Bundle, bundle_of_run, read_bundle
from harness.vectors.checkpoint import write_checkpoint
from harness.vectors.formats import WRITERS

TOOLS = ("bundle", "hf", *WRITERS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; exit status 0, or 2 if it cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        written, note = export(options.run, options.to, options.out, options.set, options.group)
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(f"{note}\nwrote {written}")
    return 0


def export(
    source: Path, tool: str, out: Path | None = None, settings: Sequence[str] = (), group: str = ""
) -> tuple[Path, str]:
    """Write what a run or a bundle holds in a tool's format.

    Args:
        source: a run's folder, or a bundle.
        tool: one of `TOOLS`.
        out: file or, for ``hf``, folder; None puts it beside the source.
        settings: parameters as NAME=NUMBER; those not given are the chosen ones, else the method's defaults.
        group: which of several fitted concepts or behaviours.

    Returns:
        The path written, and one line about what it holds.

    Raises:
        ValueError: the method is no addition, or one that the tool cannot do.
    """
    bundle = bundle_of_run(source) if source.is_dir() else read_bundle(source)
    if tool == "bundle":
        path = out or _beside(source, "vector.safetensors")
        return bundle.save(path), f"{bundle.note.label} with {described(bundle.note.parameters)}"
    model = model_of(bundle)
    parameters = _parameters(bundle, model, settings)
    additions = additions_of(bundle.method(), bundle.artifact, parameters, group=group)
    places = ", ".join(f"{item.site} (length {item.vector.norm():.3g})" for item in additions[:3])
    note = f"{bundle.note.label} with {described(parameters)}: {len(additions)} vectors, {places}"

    if tool == "hf":
        path = out or _beside(source, "steered-model")
        write_checkpoint(additions, path, model)
        return path, note
    suffix, write = WRITERS[tool]
    path = out or _beside(source, f"vector-{tool}{suffix}")
    if path.suffix != suffix:
        raise ValueError(f"--out: the file for {tool} must end in {suffix}, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(additions, path, model.settings.model_type)
    return path, note


def model_of(bundle: Bundle) -> ResolvedModel:
    """The model that a bundle was fitted on, found again; its weights are not loaded.

    Raises:
        ValueError: there is another model now where it was, or it was handed over in memory.
    """
    if not bundle.note.model_node:
        raise ValueError(f"{bundle.note.model} was handed over in memory; the bundle does not say where to find it")
    # Whether a model may run code of its own is never decided by a file.
    node = bundle.note.model_node | {"trust_remote_code": False}
    model = resolve(built(node, ModelConfig, "model", packages=installed_packages()))
    if model.identity != bundle.note.model_identity:
        raise ValueError(f"the method was fitted on {bundle.note.model_identity}; there is now {model.identity}")
    return model


def _parameters(bundle: Bundle, model: ResolvedModel, settings: Sequence[str]) -> dict[str, float]:
    method = bundle.method()
    parameters = method.defaults(model.layout) | bundle.note.parameters
    for item in settings:
        name, _, text = item.partition("=")
        if name not in parameters:
            raise ValueError(f"--set: there is no parameter {name!r}; {bundle.note.label} has {', '.join(parameters)}")
        try:
            parameters[name] = float(text)
        except ValueError:
            raise ValueError(f"--set: {name} must be a number, got {text!r}") from None
    return parameters


def _beside(source: Path, name: str) -> Path:
    return (source if source.is_dir() else source.parent) / name


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m harness.export", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN|BUNDLE", help="folder of a finished run, or a bundle")
    parser.add_argument("--to", choices=TOOLS, default="bundle", help="for which tool (default: bundle)")
    parser.add_argument("--out", type=Path, help="where to write (default: into the run's folder)")
    parser.add_argument("--group", default="", help="which of several fitted concepts or behaviours")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=NUMBER", help="a parameter, instead of the chosen value"
    )
    return parser
