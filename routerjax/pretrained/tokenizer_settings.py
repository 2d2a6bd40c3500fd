"""Settings of ``tokenizer_config.json`` that transformers follows, followed here in the same way or refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from routerjax.errors import InputError
from routerjax.pretrained.files import parse_json
from routerjax.pretrained.tokenizer_files import (
    ADDED_TOKENS,
    NOT_A_TOKENIZER,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    TOKENIZER_FILE,
    tokenizer_config,
    tokenizer_steps,
)

logger = logging.getLogger(__name__)

BERT, ROBERTA, XLM_ROBERTA, GENERIC = "BertTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer", "TokenizersBackend"
# Names in tokenizer_class, without Fast -> the class whose settings they have.
CLASSES = {
    **dict.fromkeys((BERT, "DistilBertTokenizer", "MPNetTokenizer", "ElectraTokenizer"), BERT),
    ROBERTA: ROBERTA,
    **dict.fromkeys((XLM_ROBERTA, "CamembertTokenizer"), XLM_ROBERTA),
    **dict.fromkeys((GENERIC, "PreTrainedTokenizer"), GENERIC),
}
# Where no class is named, transformers goes by the architecture.
OF_ARCHITECTURE = {
    **dict.fromkeys(("bert", "distilbert", "mpnet"), BERT),
    "roberta": ROBERTA,
    **dict.fromkeys(("xlm-roberta", "camembert"), XLM_ROBERTA),
}
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def configured_tokenizer(files: Mapping[str, bytes], model_type: str) -> bytes:
    """Content of ``tokenizer.json`` with the settings of ``tokenizer_config.json`` that transformers follows.

    Those are ``do_lower_case``, ``strip_accents`` and ``tokenize_chinese_chars`` of BERT's tokenizers,
    ``add_prefix_space`` of RoBERTa's and XLM-RoBERTa's, and special and added tokens, which older versions kept in
    ``special_tokens_map.json`` and ``added_tokens.json``. What differs is logged.

    Args:
        files: of the tokenizer, name -> content.
        model_type: of the encoder, as in ``config.json``.

    Returns:
        The content as it is where the settings change nothing.

    Raises:
        InputError: a file is damaged, or a setting cannot be followed.

    Reference:
        ``tokenization_utils_tokenizers.py`` and ``models/{bert,roberta,xlm_roberta}/tokenization_*.py`` of
        transformers 5.
    """
    config = _with_older_files(tokenizer_config(files), files)
    name = config.get("tokenizer_class")
    if name is None:
        kind = OF_ARCHITECTURE.get(model_type, GENERIC)
    else:
        kind = CLASSES.get(str(name).removesuffix("Fast"))
        if kind is None:
            raise _refusal("tokenizer_class", name, f"be one of {', '.join(CLASSES)}")
    tokenizer = parse_json(files[TOKENIZER_FILE], dict, NOT_A_TOKENIZER)
    try:
        changes = [*_follow_normalization(tokenizer, config, kind), *_follow_prefix_space(tokenizer, config, kind)]
        changes += _follow_added_tokens(tokenizer, config)
    except (TypeError, KeyError, AttributeError) as error:  # parts of another form than tokenizers writes
        raise InputError(f"{TOKENIZER_FILE} is not a tokenizer: {error}") from error
    if config.get("split_special_tokens"):
        raise _refusal("split_special_tokens", True, "be false")
    if kind == GENERIC and (config.get("add_bos_token") or config.get("add_eos_token")):
        raise _refusal("add_bos_token and add_eos_token", True, f"be what the post_processor of {TOKENIZER_FILE} does")
    if not changes:
        return files[TOKENIZER_FILE]
    logger.info("%s, read as transformers' %s: %s", TOKENIZER_FILE, kind, "; ".join(changes))
    return json.dumps(tokenizer, ensure_ascii=False).encode()


def _with_older_files(config: dict[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    """Settings with the tokens of the older files, which transformers reads where ``added_tokens_decoder`` is not."""
    if "added_tokens_decoder" in config:
        return config
    special, added = (parse_json(files.get(name, b"{}"), dict, name) for name in (SPECIAL_TOKENS, ADDED_TOKENS))
    before, after = (settings.get("extra_special_tokens") for settings in (config, special))
    # Tokens of added_tokens.json are special if they are named, but not if special_tokens_map.json alone lists them as
    # additional ones.
    listed = [before or config.get("additional_special_tokens"), after]
    if isinstance(before, list) and isinstance(after, list):
        special = {**special, "extra_special_tokens": before + after}
    config = {**config, **special}
    tokens = [config.get(name) for name in SPECIAL] + [
        token for part in listed if isinstance(part, list) for token in part
    ]
    named = [_content(token) for token in tokens]
    decoder = {
        index: {"content": token, "normalized": token not in named, "special": token in named}
        for token, index in added.items()
    }
    return {**config, "added_tokens_decoder": decoder} if decoder else config


def _content(token: object) -> object:
    return token.get("content") if isinstance(token, dict) else token


def _refusal(setting: str, got: object, expected: str) -> InputError:
    return InputError(
        f"{TOKENIZER_CONFIG}: {setting} must {expected}, got {got!r}; save the tokenizer again with transformers, as "
        "PreTrainedTokenizerFast"
    )


def _follow_normalization(tokenizer: dict[str, Any], config: Mapping[str, object], kind: str) -> Iterator[str]:
    """Make the normalizer that of transformers' BERT tokenizers, whose settings have these defaults."""
    if kind != BERT:
        return
    settings = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None}
    normalizer = tokenizer.get("normalizer")
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        for setting in settings:
            if setting in config:
                raise _refusal(setting, config[setting], f"be left out: {TOKENIZER_FILE} has no BertNormalizer")
        return
    for setting, part in zip(settings, ("lowercase", "handle_chinese_chars", "strip_accents"), strict=True):
        value = config.get(setting, settings[setting])
        if not (isinstance(value, bool) or (value is None and part == "strip_accents")):
            raise _refusal(setting, value, "be true or false")
        if normalizer.get(part) != value:
            yield f"{part} {value}"
            normalizer[part] = value


def _follow_prefix_space(tokenizer: dict[str, Any], config: Mapping[str, object], kind: str) -> Iterator[str]:
    """Put a space before a text, or none, as ``add_prefix_space`` says, which RoBERTa's tokenizer takes for false."""
    value = config.get("add_prefix_space", False if kind == ROBERTA else None)
    if value is None or kind == BERT:
        return
    if not isinstance(value, bool):
        raise _refusal("add_prefix_space", value, "be true or false")
    steps = tokenizer_steps(tokenizer, "pre_tokenizer")
    of_bytes = [step for step in steps if step.get("type") == "ByteLevel"]
    spaces = [step for step in steps if step.get("type") == "Metaspace"]
    if kind == XLM_ROBERTA and spaces:
        scheme = "always" if value else "never"
        for step in spaces:
            if step.get("prepend_scheme", "always") != scheme:
                yield f"prepend_scheme {scheme}"
                step["prepend_scheme"] = scheme
                step.pop("add_prefix_space", None)  # the older spelling
    elif of_bytes:
        for step in of_bytes:
            if step.get("add_prefix_space") != value:
                if kind == GENERIC:  # versions of transformers differ
                    raise _refusal("add_prefix_space", value, f"be that of {TOKENIZER_FILE}")
                yield f"add_prefix_space {value}"
                step["add_prefix_space"] = value
    elif value and "add_prefix_space" in config and not spaces:
        raise _refusal("add_prefix_space", value, f"be left out: {TOKENIZER_FILE} has no pre-tokenizer that adds one")


def _follow_added_tokens(tokenizer: dict[str, Any], config: Mapping[str, object]) -> Iterator[str]:
    """Make the tokens that are named part of the tokenizer: each is found in a text as one token."""
    named: list[object] = [config.get(name) for name in SPECIAL]
    for several in ("additional_special_tokens", "extra_special_tokens"):
        tokens = config.get(several)
        named += tokens.values() if isinstance(tokens, dict) else tokens if isinstance(tokens, list) else ()
    decoder = config.get("added_tokens_decoder")
    decoder = decoder if isinstance(decoder, dict) else {}
    added = tokenizer.setdefault("added_tokens", [])
    known = {token.get("content") for token in added if isinstance(token, dict)}
    vocabulary = _vocabulary(tokenizer)
    # Those of the decoder come first: it says how each is found in a text.
    for index, token in [*decoder.items(), *((None, token) for token in named)]:
        content = _content(token)
        if content is None or content in known:
            continue
        if not isinstance(content, str) or content not in vocabulary:
            raise _refusal("a special or added token", content, f"be a token of {TOKENIZER_FILE}")
        if index is not None and str(index) != str(vocabulary[content]):
            raise _refusal(f"the id of {content!r}", index, f"be that of {TOKENIZER_FILE}, {vocabulary[content]}")
        flags = {name: False for name in ("single_word", "lstrip", "rstrip", "normalized")} | {"special": True}
        given = {name: token[name] for name in flags if name in token} if isinstance(token, dict) else {}
        added.append({"id": vocabulary[content], "content": content, **flags, **given})
        added.sort(key=lambda entry: entry["id"])
        known.add(content)
        yield f"added token {content}"


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    model = tokenizer.get("model")
    entries = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(entries, list):  # Unigram's pairs of token and score
        return {entry[0]: row for row, entry in enumerate(entries) if isinstance(entry, list) and entry}
    return entries if isinstance(entries, dict) else {}
