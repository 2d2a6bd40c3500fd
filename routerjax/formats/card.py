"""Model card of a bundle: what the router is, what it takes and gives, how it was compared, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from routerjax.runtime import GOLDEN, RUNTIME


def model_card(
    description: Mapping[str, Any], provenance: Mapping[str, object], notes: Sequence[str], requirements: Sequence[str]
) -> str:
    """Write the card as Markdown; names that others chose are quoted as JSON, in ASCII.

    Args:
        description: content of ``bundle.json``, so far.
        provenance: of the router.
        notes: lines of the format.
        requirements: packages that the runtime needs.
    """
    models, text = description["models"], description["text"]
    functions = [f"{name} ({_shapes(parts['inputs'])})" for name, parts in description["functions"].items()]
    compared = f"{len(description['golden_prompts'])} golden prompts" if description["golden_prompts"] else "embeddings"
    tolerance = ", ".join(f"{name} {value:.0e}" for name, value in description["tolerance"].items())
    lines = [
        f"# Router of {len(models)} models, family {description['family']}",
        "",
        f"Exported by routerjax {description['routerjax_version']} as `{description['format']}`, "
        f"schema {description['schema']}.",
        "",
        f"- Models: {json.dumps(models)}",
        f"- Policy: {json.dumps(description['policy'])}",
        f"- Functions: {'; '.join(functions)}; outputs {', '.join(description['outputs'])}",
        f"- Text: {'none is read' if text is None else _reading(text)}",
        f"- Licence: {json.dumps(description['licence']) if description['licence'] else 'not stated'}",
        f"- Compared with the router on {compared} (`{GOLDEN}`); differences accepted: {tolerance}",
        *(f"- {note}" for note in notes),
        "",
        "## Use",
        "",
        f"`pip install {' '.join(json.dumps(each) for each in requirements)}`, then `python {RUNTIME} --verify`"
        + ("." if text is None else f', `python {RUNTIME} "A prompt"`, or from Python:'),
        "",
        "```python",
        "from routerjax_runtime import load",
        "",
        'bundle = load("path/of/this/folder")',
        "bundle.win_prob(embedding=embedding)" if text is None else 'bundle.route("A prompt")',
        "```",
        "",
        "## Provenance",
        "",
        "```json",
        json.dumps(dict(provenance), indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)


def _shapes(inputs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {each['dtype']} [{', '.join(map(str, each['shape']))}]" for name, each in inputs.items())


def _reading(text: Mapping[str, Any]) -> str:
    return f"at most {text['max_length']} tokens, of a longer one the {text['truncation']} is left out"
