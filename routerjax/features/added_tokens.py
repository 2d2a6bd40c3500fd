"""Tokens after the vocabulary of a decoder: labels, and the CLS token at the end of each text."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence

from routerjax.errors import InputError
from routerjax.features.tokens import TokenFeaturizer
from routerjax.models import Decoder
from routerjax.pretrained import RESOLVED_FILE, TOKENIZER_CONFIG, TOKENIZER_FILE, ChatTemplate, resolved_tokenizer

UNREACHABLE = "\ue000"
"""Put after the CLS token's own text, so that no prompt spells the token."""
# What would make the general class of tokenizers change the file that it is given.
_OF_CLASSES = ("added_tokens_decoder", "add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "use_fast")


def one_file(featurizer: TokenFeaturizer, added: Sequence[str] = ()) -> tuple[dict[str, bytes], dict[str, object]]:
    """The tokenizer that a router runs as one file that holds all, whatever class of tokenizer its files were for.

    Args:
        featurizer: of the router.
        added: special tokens that get the ids after all rows of the encoder's vocabulary.

    Returns:
        The files but for ``tokenizer_config.json``, and the content of that.

    Raises:
        InputError: the tokenizer has one of these tokens already.
    """
    described = {name: value for name, value in featurizer.tokenizer_config.items() if name not in _OF_CLASSES}
    described["tokenizer_class"] = "PreTrainedTokenizerFast"
    if ends_in_cls(featurizer):
        described["cls_token"] = cls_token(featurizer) + UNREACHABLE
    files = {name: content for name, content in featurizer.files.items() if name == "chat_template.jinja"}
    return {**files, TOKENIZER_FILE: _with_tokens(featurizer, added)}, described


def _with_tokens(featurizer: TokenFeaturizer, added: Sequence[str]) -> bytes:
    """A ``tokenizer.json`` in which the tokens have the ids after the vocabulary, and each row before them a token."""
    tokenizer = featurizer.tokenizer
    known = tokenizer.tokenizer.get_vocab(with_added_tokens=True)
    repeated = sorted(set(added) & set(known))
    if repeated:
        raise InputError(f"the tokenizer has a token {repeated[0]!r} already: choose another name")
    content = json.loads(tokenizer.tokenizer_json)
    start = featurizer.encoder.vocab_size
    # Ids are given one after the other, so that rows of the table without a token get one, which no text has.
    unused = [f"<|unused:{row}|>" for row in range(tokenizer.largest_id + 1, start)] if added else []
    settings = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] += [
        {"id": start - len(unused) + place, "content": token, **settings}
        for place, token in enumerate([*unused, *added])
    ]
    return json.dumps(content, ensure_ascii=False).encode()


def add_cls(featurizer: TokenFeaturizer, token: str) -> TokenFeaturizer:
    """Copy with a CLS token after the vocabulary, for which the encoder has a row more, at the end of each text.

    Args:
        featurizer: of a decoder, with a template.
        token: such as ``<|cls|>``.

    Raises:
        InputError: an encoder that is no decoder, or no such token, or one that the tokenizer has already.
    """
    encoder = featurizer.encoder
    if not isinstance(encoder, Decoder):
        raise InputError(f"features.cls_token is of a decoder, and {encoder.model_type} has its own: leave it out")
    if not re.fullmatch(r"<[^<>\s]+>|\[[^\[\]\s]+\]", token):
        raise InputError(f"features.cls_token must be a word in < > or [ ], such as <|cls|>, got {token!r:.40}")
    try:
        files, described = one_file(featurizer, [token])
    except InputError as error:
        raise InputError(f"features.cls_token: {error}") from error
    files[TOKENIZER_CONFIG] = json.dumps({**described, "cls_token": token}, indent=2, ensure_ascii=False).encode()
    config = dataclasses.replace(encoder.config, added_tokens=encoder.config.added_tokens + 1)
    longer = dataclasses.replace(featurizer, encoder=Decoder(config), tokenizer_files=files)
    return with_cls(longer, featurizer.template)


def cls_token(featurizer: TokenFeaturizer) -> str:
    """The CLS token that the tokenizer's files name.

    Raises:
        InputError: none.
    """
    token = featurizer.tokenizer_config.get("cls_token")
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str) or not token:
        raise InputError(
            f"{featurizer.source}: tokenizer_config.json must name a cls_token, which ends each text, or train with "
            "features.cls_token='<|cls|>', which adds one"
        )
    return token


def ends_in_cls(featurizer: TokenFeaturizer) -> bool:
    """Return True for what :func:`with_cls` made, whose tokenizer is another than its files describe."""
    suffix = featurizer.template.suffix
    return suffix.endswith(UNREACHABLE) and suffix.endswith(cls_token(featurizer) + UNREACHABLE)


def with_cls(featurizer: TokenFeaturizer, template: ChatTemplate) -> TokenFeaturizer:
    """Copy that reads a text in a template with the CLS token, one of the tokenizer's, at the end and nowhere else.

    A prompt that spells it has ``<cls>`` in its place, as in P2L's code.

    Raises:
        InputError: the tokenizer names no CLS token, or does not have it as one added token.
    """
    cls = cls_token(featurizer)
    content = json.loads(resolved_tokenizer(featurizer.files))
    tokens = [token for token in content["added_tokens"] if token["content"] == cls]
    vocabulary = content["model"].get("vocab")
    if len(tokens) != 1 or not isinstance(vocabulary, dict):
        raise InputError(f"{featurizer.source}: the tokenizer must have {cls!r} as one added token")
    tokens[0]["content"] = cls + UNREACHABLE
    if cls in vocabulary:
        content["model"]["vocab"] = {name + UNREACHABLE * (name == cls): row for name, row in vocabulary.items()}
    replaced = {"type": "Replace", "pattern": {"String": cls}, "content": "<cls>"}
    steps = [replaced, *([] if content["normalizer"] is None else [content["normalizer"]])]
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return dataclasses.replace(
        featurizer,
        tokenizer_files={**featurizer.files, RESOLVED_FILE: json.dumps(content, ensure_ascii=False).encode()},
        template=dataclasses.replace(template, suffix=template.suffix + cls + UNREACHABLE),
    )
