"""Texts are cut and padded as transformers' AutoTokenizer does, whatever the settings of its files."""

import json
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from routerjax.features import TextTokenizer
from routerjax.pretrained import read_tokenizer
from tests.tokenizers_of_kinds import SENTENCES, make_tokenizer_of

pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

NAMED = {"cls_token": "<s>", "sep_token": "</s>", "bos_token": "<s>", "eos_token": "</s>"}
NAMED |= {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<pad>"}
OF_KIND = {
    "WordPiece": ("bert", "BertTokenizer", ("do_lower_case", "strip_accents", "tokenize_chinese_chars")),
    "byte-level BPE": ("roberta", "RobertaTokenizer", ("add_prefix_space",)),
    "Unigram": ("xlm-roberta", "PreTrainedTokenizerFast", ()),
}


@pytest.mark.parametrize("kind", OF_KIND)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=25, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_tokens_are_those_of_transformers(
    kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from transformers import AutoTokenizer

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    model_type, name, settings = OF_KIND[kind]
    config = {"tokenizer_class": name, "model_max_length": 12, **NAMED}
    config |= data.draw(st.fixed_dictionaries({}, optional={setting: st.booleans() for setting in settings}))
    config |= data.draw(st.fixed_dictionaries({}, optional={"truncation_side": st.sampled_from(["left", "right"])}))
    is_lower = {"WordPiece": "WordPiece, cased"}.get(kind, kind) if data.draw(st.booleans()) else kind
    make_tokenizer_of(is_lower).save(str(folder / "tokenizer.json"))
    numbers = make_tokenizer_of(is_lower).get_vocab(with_added_tokens=False)
    some = st.lists(st.sampled_from([token for token in sorted(numbers) if token.isalpha()]), max_size=2, unique=True)
    special = {"additional_special_tokens": data.draw(some)}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    added = {token: numbers[token] for token in data.draw(some)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    read = read_tokenizer(folder, vocab_size=1000)
    ours = TextTokenizer(read.tokenizer_json, 12, numbers["<pad>"], read.truncation)
    reference = AutoTokenizer.from_pretrained(str(folder))
    texts = [*SENTENCES, "MiXeD CaSe TEXT", "naïve 你好", "", *data.draw(st.lists(st.text(max_size=40), max_size=3))]
    expected = reference(texts, truncation=True, max_length=12, padding=True, return_tensors="np")
    padded = ours.pad(ours.token_ids(texts))
    for name, key in {"token_ids": "input_ids", "attention_mask": "attention_mask"}.items():
        np.testing.assert_array_equal(padded[name], expected[key], err_msg=str((config, special, added)))
