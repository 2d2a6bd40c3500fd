"""Files of a router's tokenizer, as transformers reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from routerjax.errors import InputError
from routerjax.features import TokenFeaturizer, ends_in_cls, one_file
from routerjax.pretrained import RESOLVED_FILE, TOKENIZER_CONFIG, TOKENIZER_FILE


def json_bytes(content: Mapping[str, object]) -> bytes:
    """A JSON object as the content of a file."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def tokenizer_files(
    featurizer: TokenFeaturizer,
    *,
    pad_token: str | None = None,
    added: Sequence[str] = (),
    as_published: bool = False,
) -> dict[str, bytes]:
    """The tokenizer's own files, told which tokens the router reads; the resolved one where nothing configures it.

    Args:
        featurizer: of the router.
        pad_token: that the files are told of; default that of the encoder, where nothing configures the tokenizer.
        added: special tokens to add after all rows of the encoder's vocabulary.
        as_published: a CLS token at the end of each text has its own name, which prompts may spell, too; see
            :func:`routerjax.features.with_cls`.
    """
    reads: dict[str, Any] = {"model_max_length": featurizer.max_length, "truncation_side": featurizer.truncation}
    if pad_token is not None:
        reads |= {"pad_token": pad_token, "padding_side": "right"}
    if added or (ends_in_cls(featurizer) and not as_published):
        files, described = one_file(featurizer, added)
        return {**files, TOKENIZER_CONFIG: json_bytes({**described, **reads})}
    files = {name: content for name, content in featurizer.files.items() if name != RESOLVED_FILE}
    described = dict(featurizer.tokenizer_config)
    if described:
        is_told = all(described.get(name) == value for name, value in reads.items())
        return files if is_told else {**files, TOKENIZER_CONFIG: json_bytes({**described, **reads})}
    tokenizer = featurizer.tokenizer
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": tokenizer.tokenizer.id_to_token(featurizer.encoder.padding_id),
        **reads,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return {**files, TOKENIZER_FILE: tokenizer.tokenizer_json, TOKENIZER_CONFIG: json_bytes(config)}


def padding_token(featurizer: TokenFeaturizer) -> tuple[int, str]:
    """Token for padding that ends no prompt: the configured one, or the first special one that stands around no text.

    Raises:
        InputError: there is none.
    """
    tokenizer = featurizer.tokenizer
    before, after = (set(ids.tolist()) for ids in tokenizer.special_tokens)
    configured = featurizer.tokenizer_config.get("pad_token")
    if isinstance(configured, dict):
        configured = configured.get("content")
    special = json.loads(tokenizer.tokenizer_json)["added_tokens"]
    tokens = [(token["id"], token["content"]) for token in special if token["special"]]
    suited = [token for token in tokens if token[0] not in after]
    # A token at the beginning of all texts is no other's padding.
    chosen = [token for token in suited if token[1] == configured] + [one for one in suited if one[0] not in before]
    if not chosen:
        raise InputError("transformers pads texts, but the tokenizer has no special token that can: add one to it")
    return chosen[0]
