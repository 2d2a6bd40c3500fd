"""all-MiniLM-L6-v2 against the sentence-transformers library on the same weights."""

import numpy as np
import pytest

from routerjax import features
from routerjax.pretrained import MINILM, locate

pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.parity

NEARLY_EMPTY = (
    "", " ", "?", "   a ", "\n", "\t\t", ".", "\u200b", "\ufeff", "\x00", "\x07", "\u00ad", "[SEP]", "[MASK] [PAD]"
)  # fmt: skip
# Words of one kind, separated by single spaces.
WORDS = {
    "English": "what is the capital of this country and why did nobody move it don't e.g. co-operate 3.14 $5",
    "French": "où est-ce qu'on a caché l'œuvre déjà naïve façade ÉTÉ",
    "German": "Straße Übergrößenträger Fußgänger warum heißt das Donaudampfschiffahrtsgesellschaft",
    "Vietnamese": "tiếng Việt nghĩa là gì nước đường",
    "Russian": "почему небо голубое Ёлка объясни",
    "Greek": "γιατί ΟΔΥΣΣΕΥΣ είναι ουρανός",
    "Chinese": "你好 世界 为什么 天空是蓝色的 。 龘",
    "Japanese": "こんにちは カタカナ がぎぐ 東京 ﾊﾝｶｸ",
    "Korean": "왜 하늘은 파란가요 안녕하세요",
    "Arabic": "لماذا السماء زرقاء مُحَمَّد",
    "Hebrew": "למה השמיים כחולים שָׁלוֹם",
    "Hindi": "आकाश नीला क्यों है नमस्ते",
    "Thai": "ทำไม ท้องฟ้า สีฟ้า",
    "emoji": "😀 👩\u200d👩\u200d👧 🇫🇷 ❤\ufe0f 👍🏽 ok",
    "code": "def f(x):\n\treturn x**2!=y /*c*/ {'a':[1,2]} && <br/> \\frac{a}{b} #!/bin/sh",
    "control": "a\x00b \x1b[31mred\x1b[0m \x7f tab\tbed \r\n zero\u200bwidth \u202ereversed \ufffd",
    "forms": "e\u0301 a\u030a\u0323 \ufb01 \uff21 \U0001d54f " + "x" * 120,
}
SPACES = (" ", " ", " ", "  ", "\t", "\n\n", "\u00a0", "\u3000", " \r\n ")


def varied_prompts(*, count: int = 200, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    prompts = list(NEARLY_EMPTY)
    kinds = [words.split(" ") for words in WORDS.values()]
    while len(prompts) < count:
        # One kind or a mixture; lengths from a word to well beyond 256 tokens.
        words = kinds[rng.integers(len(kinds))] if rng.random() < 0.7 else [word for kind in kinds for word in kind]
        length = round(2 ** rng.uniform(0, 9))
        parts = [words[rng.integers(len(words))] + SPACES[rng.integers(len(SPACES))] for _ in range(length)]
        prompts.append("".join(parts))
    return prompts


def test_embeddings_are_those_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    prompts = varied_prompts()
    reference = SentenceTransformer(str(locate(MINILM)), device="cpu")
    reference.max_seq_length = 256
    ours = features.load_encoder(MINILM, max_length=256)
    expected = reference.encode(prompts, batch_size=32, show_progress_bar=False)
    lengths = ours.tokenize(prompts)["attention_mask"].sum(axis=1)
    assert (lengths == 256).sum() >= 10
    assert (lengths <= 4).sum() >= 10
    np.testing.assert_allclose(ours.encode(prompts), expected, rtol=0, atol=1e-5)
