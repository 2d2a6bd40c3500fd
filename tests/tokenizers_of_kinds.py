"""Small tokenizers of the kinds that BERT, RoBERTa, XLM-RoBERTa and Llama have, learned from a few sentences."""

import functools

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = (
    "What is the capital of this country, and why did nobody move it?",
    "Prove that there are infinitely many primes of the form 4k + 3.",
    "naïve façade ÉTÉ — où est-ce qu'on a caché l'œuvre?",
    "почему небо голубое? объясни 你好。世界。为什么天空是蓝色的。 こんにちは 東京",
    "def f(x):\n\treturn x**2 != y  # aaaa aaaaaaaa    spaces\n\n",
)
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


@functools.cache
def make_tokenizer_of(kind: str) -> tokenizers.Tokenizer:
    """Train a tokenizer of one of KINDS."""
    tokenizer, trainer = KINDS[kind]()
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    first, last = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", first), ("</s>", last)]
    )
    return tokenizer


def _word_piece(*, lowercase: bool = True):
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=220, special_tokens=list(SPECIAL), show_progress=False)


def _byte_level(*, add_prefix_space: bool = False):
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )


def _unigram(*, splits_at_white_space: bool):
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    metaspace = pre_tokenizers.Metaspace()
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.pre_tokenizer = split if splits_at_white_space else metaspace
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=250, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
    )


def _whole_text():
    """Tokenize like Llama's: no words, the model sees the text at once."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer, trainers.BpeTrainer(vocab_size=250, special_tokens=list(SPECIAL), show_progress=False)


KINDS = {
    "WordPiece": _word_piece,
    "WordPiece, cased": functools.partial(_word_piece, lowercase=False),
    "byte-level BPE": _byte_level,
    "byte-level BPE, prefix space": functools.partial(_byte_level, add_prefix_space=True),
    "Unigram": functools.partial(_unigram, splits_at_white_space=True),
    "Unigram, metaspace alone": functools.partial(_unigram, splits_at_white_space=False),
    "BPE of the whole text": _whole_text,
}
