"""Score prompts with an exported router. Needs jax, numpy and safetensors (and tokenizers for text); not routerjax.

    python load.py --verify             compare with the scores that the bundle was written with
    python load.py "A prompt" ...       print win probabilities

From code::

    bundle = Bundle("path/of/bundle")
    bundle.win_prob(["A prompt"])               # text
    bundle.win_prob_from_embedding(embedding)   # float32 [batch, embed]
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
from safetensors.numpy import load_file

# Requests of any size are padded to a few sizes, each of which compiles once.
SMALLEST_BATCH, LARGEST_BATCH, LENGTH_STEP = 8, 64, 32


class Bundle:
    """An exported router: ``description`` is bundle.json."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.description = json.loads((self.folder / "bundle.json").read_text(encoding="utf-8"))
        needed, got = self.description["jax_version"], jax.__version__
        if _version(got) < _version(needed):
            raise SystemExit(
                f"this bundle was written by jax {needed} and needs that or newer, got jax {got}: "
                f"pip install 'jax>={needed}'"
            )
        for name, expected in self.description["sha256"].items():
            if hashlib.sha256((self.folder / name).read_bytes()).hexdigest() != expected:
                raise SystemExit(f"{self.folder / name} is damaged: its sha256 is not that in bundle.json")
        self.router = load_file(self.folder / "router.safetensors")
        self.takes_embeddings = "from_embedding.stablehlo" in self.description["sha256"]
        if self.takes_embeddings:
            self._from_embedding = self._function("from_embedding.stablehlo")
        self.max_length = self.description["max_length"]
        if self.max_length is not None:
            has_encoder = "encoder.safetensors" in self.description["sha256"]
            self.encoder = load_file(self.folder / "encoder.safetensors") if has_encoder else {}
            self._from_token_ids = self._function("from_token_ids.stablehlo")

    def _function(self, name):
        return jax.jit(jax.export.deserialize(bytearray((self.folder / name).read_bytes())).call)

    def win_prob_from_embedding(self, embedding):
        """P(strong is better than weak), float32 [batch], from embeddings float32 [batch, embed]."""
        if not self.takes_embeddings:
            raise ValueError("this router reads text, not embeddings: use win_prob or win_prob_from_token_ids")
        return _in_batches(lambda part: self._from_embedding(self.router, part), np.asarray(embedding, np.float32))

    def win_prob_from_token_ids(self, token_ids, attention_mask):
        """The same from int32 [batch, length]; any length up to ``max_length``."""
        if np.shape(token_ids)[1] > self.max_length:
            raise ValueError(f"at most {self.max_length} tokens a prompt, got {np.shape(token_ids)[1]}: truncate them")
        return _in_batches(
            lambda ids, mask: self._from_token_ids(self.router, self.encoder, ids, mask),
            np.asarray(token_ids, np.int32),
            np.asarray(attention_mask, np.int32),
        )

    def win_prob(self, prompts):
        """The same from texts."""
        token_ids = self._token_ids(prompts)
        longest = max(map(len, token_ids), default=1)
        length = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, self.max_length)
        padded = np.zeros((len(token_ids), length), np.int32)
        mask = np.zeros_like(padded)
        for row, ids in enumerate(token_ids):
            padded[row, : len(ids)], mask[row, : len(ids)] = ids, 1
        return self.win_prob_from_token_ids(padded, mask)

    def _token_ids(self, prompts):
        """Tokens of each text, of a long one without its beginning, middle or end, as the router leaves them out."""
        from tokenizers import Encoding, Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        prompts = [self.description["prefix"] + prompt for prompt in prompts]
        side, characters = self.description["truncation"], self.description["characters_per_token"] * self.max_length
        count = self.max_length - tokenizer.num_special_tokens_to_add(False)
        # Of how many tokens the beginning and the end are, and of how many characters of a text that is not read whole.
        first, last = {"right": (count, 0), "left": (0, count), "middle": ((count + 1) // 2, count // 2)}[side]
        half = characters // 2 if side == "middle" else characters

        def encode(texts):
            # Half of a broken emoji is no text that a tokenizer takes.
            valid = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
            return tokenizer.encode_batch(valid, add_special_tokens=False)

        encodings = encode([text if len(text) <= characters else text[:half] for text in prompts])
        cut = [row for row, text in enumerate(prompts) if len(text) > characters or len(encodings[row].ids) > count]
        tails = encode([prompts[row] if len(prompts[row]) <= characters else prompts[row][-half:] for row in cut])
        for row, tail in zip(cut, tails, strict=True):
            encodings[row].truncate(first)
            tail.truncate(last, direction="left")
            encodings[row] = Encoding.merge([encodings[row], tail])
        return [tokenizer.post_process(encoding).ids for encoding in encodings]

    def verify(self):
        """Largest differences from the scores the bundle was written with; stops the program if one is too large."""
        golden = load_file(self.folder / "golden.safetensors")
        largest = {}
        # One prompt alone, a few, and all: batch sizes that the functions were not traced with.
        for rows in (slice(0, 1), slice(0, 5), slice(None)):
            found = {}
            if self.takes_embeddings:
                found["from_embedding"] = self.win_prob_from_embedding(golden["embedding"][rows])
            if self.max_length is not None:
                ids, mask = golden["token_ids"][rows], golden["attention_mask"][rows]
                length = int(mask.sum(axis=1).max())  # and lengths, without the padding of longer prompts
                found["from_token_ids"] = self.win_prob_from_token_ids(ids[:, :length], mask[:, :length])
                found["from_text"] = self.win_prob(self.description["golden_prompts"][rows])
            for name, win_prob in found.items():
                difference = float(np.abs(win_prob - golden["win_prob"][rows]).max())
                largest[name] = max(difference, largest.get(name, 0.0))
                if not difference <= self.description["tolerance"][name]:
                    raise SystemExit(
                        f"{name} differs from the golden scores by {difference:.2e}, "
                        f"more than {self.description['tolerance'][name]:.0e}"
                    )
        return largest


def _version(text):
    return tuple(int(part) for part in text.split(".")[:2])


def _in_batches(function, *columns):
    if len(columns[0]) == 0:
        return np.zeros(0, np.float32)
    parts = []
    for start in range(0, len(columns[0]), LARGEST_BATCH):
        part = [column[start : start + LARGEST_BATCH] for column in columns]
        count = len(part[0])
        size = SMALLEST_BATCH
        while size < count:
            size *= 2
        padded = [column[np.minimum(np.arange(size), count - 1)] for column in part]
        parts.append(np.asarray(function(*padded))[:count])
    return np.concatenate(parts)


def main():
    """Verify the bundle in this file's folder, or score the prompts on the command line."""
    parser = argparse.ArgumentParser(description="Score prompts with an exported router.")
    parser.add_argument("prompts", nargs="*")
    parser.add_argument("--verify", action="store_true", help="compare with the scores the bundle was written with")
    arguments = parser.parse_args()
    bundle = Bundle(Path(__file__).resolve().parent)
    if arguments.verify or not arguments.prompts:
        print(json.dumps({"largest_difference": bundle.verify()}))
        return
    if bundle.max_length is None:
        sys.exit("this router takes embeddings, not text: use Bundle.win_prob_from_embedding")
    threshold = bundle.description["threshold"]
    for prompt, win_prob in zip(arguments.prompts, bundle.win_prob(arguments.prompts).tolist(), strict=True):
        row = {"prompt": prompt, "win_prob": win_prob}
        if threshold is not None:
            row["model"] = bundle.description["strong" if win_prob >= float(threshold) else "weak"]
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
