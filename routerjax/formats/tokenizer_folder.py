"""Files of a router's tokenizer, as transformers reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from routerjax.errors import InputError
from routerjax.features import TokenFeaturizer
from routerjax.pretrained import RESOLVED_FILE, TOKENIZER_CONFIG, TOKENIZER_FILE


def json_bytes(content: Mapping[str, object]) -> bytes:
    """A JSON object as the content of a file."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def tokenizer_files(
    featurizer: TokenFeaturizer, *, pad_token: str | None = None, added: Sequence[str] = ()
) -> dict[str, bytes]:
    """The tokenizer's own files, told which tokens the router reads; the resolved one where nothing configures it.

    Args:
        featurizer: of the router.
        pad_token: that the files are told of; default that of the encoder, where nothing configures the tokenizer.
        added: special tokens to add after all rows of the encoder's vocabulary.
    """
    reads: dict[str, Any] = {"model_max_length": featurizer.max_length, "truncation_side": featurizer.truncation}
    if pad_token is not None:
        reads |= {"pad_token": pad_token, "padding_side": "right"}
    files = {name: content for name, content in featurizer.files.items() if name != RESOLVED_FILE}
    described = dict(featurizer.tokenizer_config)
    if added:
        # One file that holds all, whatever class of tokenizer the others were for.
        files = {name: content for name, content in files.items() if name == "chat_template.jinja"}
        described = {name: value for name, value in described.items() if name not in _OF_CLASSES}
        described["tokenizer_class"] = "PreTrainedTokenizerFast"
        files[TOKENIZER_FILE] = _with_tokens(featurizer, added)
    if described:
        is_told = not added and all(described.get(name) == value for name, value in reads.items())
        return files if is_told else {**files, TOKENIZER_CONFIG: json_bytes({**described, **reads})}
    tokenizer = featurizer.tokenizer
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": tokenizer.tokenizer.id_to_token(featurizer.encoder.padding_id),
        **reads,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return {**files, TOKENIZER_FILE: tokenizer.tokenizer_json, TOKENIZER_CONFIG: json_bytes(config)}


# What would make the general class of tokenizers change the file that it is given.
_OF_CLASSES = ("added_tokens_decoder", "add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "use_fast")


def _with_tokens(featurizer: TokenFeaturizer, added: Sequence[str]) -> bytes:
    """A ``tokenizer.json`` in which the tokens have the ids after the vocabulary, and each row before them a token."""
    tokenizer = featurizer.tokenizer
    known = tokenizer.tokenizer.get_vocab(with_added_tokens=True)
    repeated = sorted(set(added) & set(known))
    if repeated:
        raise InputError(f"the tokenizer has a token {repeated[0]!r} already: rename the model")
    content = json.loads(tokenizer.tokenizer_json)
    start = featurizer.encoder.vocab_size
    # Ids are given one after the other, so that rows of the table without a token get one, which no text has.
    unused = [f"<|unused:{row}|>" for row in range(tokenizer.largest_id + 1, start)]
    settings = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] += [
        {"id": start - len(unused) + place, "content": token, **settings}
        for place, token in enumerate([*unused, *added])
    ]
    return json.dumps(content, ensure_ascii=False).encode()


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
