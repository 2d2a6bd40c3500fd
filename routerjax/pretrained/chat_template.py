"""Chat templates of pretrained folders, as two strings around a prompt, so that scoring needs no template engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routerjax.errors import InputError
from routerjax.pretrained.auto_classes import from_pretrained
from routerjax.pretrained.tokenizer_files import read_tokenizer_files

logger = logging.getLogger(__name__)

PROMPT = "{prompt}"
"""Mark of the prompt's place in the turns."""
# Found in no template; its ends are neither white space nor anything that a template would treat in a way of its own.
PLACEHOLDER = "prompt-3f9c2b7e-placeholder"
# Texts that a template might change: white space around them, quotes, markup, the syntax of templates themselves.
AWKWARD = (
    *("", " ", "a", "A" * 5000, "  two\nlines\n\n", "\ttab", "0", "None", "[]"),
    *("'single' \"double\" \\n \\ /", "<b>&amp; &</b>", "{{ messages }} {% if x %} {# y #}", "{prompt} {0}"),
    *("<think>a</think> b", "</think>", "<|im_end|>", "<s> </s> [INST] x [/INST]", "<<SYS>>", "naïve 你好 \u00a0"),
)


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """Turns of a conversation as one text, in which a prompt takes its place.

    Attributes:
        prefix: before the prompt.
        suffix: after it.
        strips: the template drops the white space at both ends of the prompt.
    """

    prefix: str
    suffix: str
    strips: bool = False

    def render(self, prompt: str) -> str:
        """The text to tokenise, which has the special tokens of the template in it: add no others.

        Example:
            >>> ChatTemplate(prefix="<|user|>", suffix="<|end|>").render("Hello")
            '<|user|>Hello<|end|>'
        """
        return self.prefix + self.trim(prompt) + self.suffix

    def trim(self, prompt: str) -> str:
        """The prompt itself as the text has it."""
        return prompt.strip() if self.strips else prompt


NO_TEMPLATE = ChatTemplate(prefix="", suffix="")
"""The prompt alone, between the special tokens that the tokenizer adds."""


def parse_template(text: str) -> ChatTemplate:
    """Read a template that is written as text, with ``{prompt}`` where the prompt goes.

    Raises:
        InputError: ``{prompt}`` is not there once.

    Example:
        >>> parse_template("Q: {prompt}").render("Why?")
        'Q: Why?'
    """
    parts = text.split(PROMPT)
    if len(parts) != 2:
        raise InputError(f"a template must have {PROMPT} in one place, got {text!r:.80}")
    return ChatTemplate(prefix=parts[0], suffix=parts[1])


def read_chat_template(
    folder: Path, turns: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
) -> ChatTemplate:
    """Render turns once with the chat template of a folder's tokenizer, by transformers.

    A template that writes the date writes that of now.

    Args:
        folder: that holds the tokenizer's files, and ``config.json``.
        turns: each with its ``role`` and ``content``; in one place of one content stands ``{prompt}``.
        add_generation_prompt: end with the beginning of the assistant's turn.

    Raises:
        InputError: ``{prompt}`` not once in the turns, no chat template, one that refuses these turns, or one that
            changes the text of a prompt otherwise than by dropping white space around it.
    """
    places = sum(turn["content"].count(PROMPT) for turn in turns)
    if places != 1:
        raise InputError(f"the turns must have {PROMPT} in one place, got {places}")

    def read(loaded: Any) -> ChatTemplate:
        if loaded.chat_template is None:
            raise InputError(
                f"{folder}: its tokenizer has no chat template (chat_template in tokenizer_config.json): give "
                "features.template=TEXT with {prompt} in it, after a line break"
            )

        def render(prompt: str) -> str:
            filled = [{**turn, "content": turn["content"].replace(PROMPT, prompt)} for turn in turns]
            try:
                return loaded.apply_chat_template(filled, tokenize=False, add_generation_prompt=add_generation_prompt)
            except Exception as error:  # of jinja2, or raised by the template itself
                roles = ", ".join(turn["role"] for turn in turns)
                raise InputError(
                    f"{folder}: its chat template refuses the turns {roles}: {' '.join(str(error).split())[:300]}"
                ) from error

        prefix, *others = render(PLACEHOLDER).split(PLACEHOLDER)
        if len(others) != 1:
            raise InputError(f"{folder}: its chat template must write the prompt once, got {len(others)} times")
        changes = []
        for strips in (False, True):
            template = ChatTemplate(prefix=prefix, suffix=others[0], strips=strips)
            changed = next((text for text in AWKWARD if render(text) != template.render(text)), None)
            if changed is None:
                logger.info("%s: prompts stand between %r and %r%s", folder, prefix, others[0], ", stripped" * strips)
                return template
            changes.append(changed)
        raise InputError(f"{folder}: its chat template changes the text of a prompt, such as {changes[0]!r:.60}")

    return from_pretrained("AutoTokenizer", read_tokenizer_files(folder), folder, read)
