# /// script
# requires-python = ">=3.11"
# dependencies = ["jax>=0.10", "numpy>=2.0", "safetensors>=0.5", "flatbuffers>=25.2", "tokenizers>=0.22"]
# ///
"""Score prompts with an exported router. Needs what is listed above, not routerjax; tokenizers for text alone.

    python load.py --verify             compare with the scores that the bundle was written with
    python load.py "A prompt" ...       print win probabilities, and the models that the router's policy chooses

From code::

    bundle = Bundle("path/of/bundle")
    bundle.win_prob(["A prompt"])               # text
    bundle.win_prob_from_embedding(embedding)   # float32 [batch, embed]
    bundle.route(["A prompt"])                  # names of models
"""

import argparse
import functools
import hashlib
import json
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
from safetensors.numpy import load_file

FORMAT = "routerjax-stablehlo-6"
FILES = (
    "from_embedding.stablehlo",
    "from_token_ids.stablehlo",
    "router.safetensors",
    "encoder.safetensors",
    "tokenizer.json",
    "golden.safetensors",
    "load.py",
)
# Requests of any size are padded to a few sizes, each of which compiles once: powers of two up to the largest batch.
LARGEST_BATCH, LENGTH_STEP = 64, 32


class BundleError(ValueError):
    """The bundle cannot do what is asked: it is changed or damaged, gives other scores, or takes another input."""


class Bundle:
    """An exported router: ``description`` is bundle.json.

    Raises:
        BundleError: the description was changed, a file is missing or damaged, or a newer jax is needed.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.description = _description(self._file("bundle.json"))
        needed, got = self.description["jax_version"], jax.__version__
        if _version(got) < _version(needed):
            raise BundleError(
                f"this bundle was written by jax {needed} and needs that or newer, got jax {got}: "
                f"pip install 'jax>={needed}'"
            )
        for name, expected in self.description["sha256"].items():
            if hashlib.sha256(self._file(name).read_bytes()).hexdigest() != expected:
                raise BundleError(f"{self.folder / name} is damaged: its sha256 is not that in bundle.json")
        self.router = load_file(self._file("router.safetensors"))
        self.takes_embeddings = "from_embedding.stablehlo" in self.description["sha256"]
        if self.takes_embeddings:
            self._from_embedding = self._function("from_embedding.stablehlo")
        self.max_length = self.description["max_length"]
        if self.max_length is not None:
            has_encoder = "encoder.safetensors" in self.description["sha256"]
            self.encoder = load_file(self._file("encoder.safetensors")) if has_encoder else {}
            self._from_token_ids = self._function("from_token_ids.stablehlo")

    def _file(self, name):
        """Path of a regular file that bundle.json names; links lead out of the folder in Hugging Face's cache alone."""
        if name != "bundle.json" and not (name in FILES and name in self.description["sha256"]):
            raise BundleError(f"{name!r} is no file of this bundle")
        path, root = self.folder / name, self.folder.resolve()
        if not path.is_file():
            raise BundleError(f"{path} is missing, or is not a regular file")
        real = path.resolve()
        blobs = [place.parents[1] / "blobs" for place in (root, *root.parents) if place.parent.name == "snapshots"]
        if not real.is_relative_to(root) and real.parent not in blobs:
            raise BundleError(f"{path} is a link to a file outside of the bundle: put a copy of the file there")
        return path

    def _function(self, name):
        return jax.jit(jax.export.deserialize(bytearray(self._file(name).read_bytes())).call)

    def win_prob_from_embedding(self, embedding):
        """P(strong is better than weak), float32 [batch], from embeddings float32 [batch, embed]."""
        return self._output("win_prob", self._embedding_outputs, embedding)

    def win_prob_from_token_ids(self, token_ids, attention_mask):
        """Win probabilities from int32 [batch, length]; any length up to ``max_length``."""
        return self._output("win_prob", self._token_outputs, token_ids, attention_mask)

    def win_prob(self, prompts):
        """Return the win probability of each of a list of texts."""
        return self._output("win_prob", self._text_outputs, prompts)

    def route_from_embedding(self, embedding):
        """Names of the chosen models, from embeddings float32 [batch, embed]."""
        return self._names(self._output("model", self._embedding_outputs, embedding))

    def route_from_token_ids(self, token_ids, attention_mask):
        """Models that are chosen, from int32 [batch, length]."""
        return self._names(self._output("model", self._token_outputs, token_ids, attention_mask))

    def route(self, prompts):
        """Return the name of the model that the router's policy chooses for each of a list of texts."""
        return self._names(self._output("model", self._text_outputs, prompts))

    def _names(self, columns):
        return [self.description["models"][column] for column in columns]

    def _output(self, name, compute, *inputs):
        if name not in self.description["outputs"]:
            has = {
                "model": "has no threshold: it gives win_prob",
                "win_prob": "is of no pair of models: it gives route",
            }
            raise BundleError(f"the policy of this router {has[name]}")
        return compute(*inputs)[name]

    def _embedding_outputs(self, embedding):
        if not self.takes_embeddings:
            raise BundleError("this router reads text, not embeddings: use win_prob or win_prob_from_token_ids")
        embedding = _numbers("embedding", embedding, "fiu").astype(np.float32)
        if embedding.ndim != 2 or not np.isfinite(embedding).all():
            raise BundleError(f"embedding must be finite and of shape [batch, embed], got shape {embedding.shape}")
        try:
            return self._in_batches(lambda part: self._from_embedding(self.router, part), embedding)
        except BundleError:
            raise
        except ValueError as error:
            raise BundleError(f"embedding of shape {embedding.shape}: {str(error).splitlines()[0]}") from error

    def _token_outputs(self, token_ids, attention_mask):
        self._require_text()
        ids, mask = _numbers("token_ids", token_ids, "iu"), _numbers("attention_mask", attention_mask, "iub")
        if ids.ndim != 2 or ids.shape != mask.shape or 0 in ids.shape[1:]:
            raise BundleError(
                f"token_ids and attention_mask must be of one shape [batch, length], got {ids.shape} and {mask.shape}"
            )
        if ids.shape[1] > self.max_length:
            raise BundleError(f"at most {self.max_length} tokens a prompt, got {ids.shape[1]}: truncate them")
        if ((ids < 0) | (ids > self._largest_id)).any() or ((mask != 0) & (mask != 1)).any():
            raise BundleError(f"token_ids must lie in [0, {self._largest_id}], and attention_mask be of 0 and 1")
        return self._in_batches(
            lambda ids, mask: self._from_token_ids(self.router, self.encoder, ids, mask),
            ids.astype(np.int32),
            mask.astype(np.int32),
        )

    def _text_outputs(self, prompts):
        self._require_text()
        if isinstance(prompts, str):
            raise BundleError("prompts must be a list of texts, got one text: put it into a list")
        if not hasattr(prompts, "__len__") or isinstance(prompts, (set, frozenset, dict, bytes)):
            raise BundleError(f"prompts must be a list of texts, got {type(prompts).__name__}")
        for row, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise BundleError(f"row {row}: a prompt must be text, got {prompt!r:.40}")
        token_ids = self._token_ids(prompts)
        longest = max(map(len, token_ids), default=1)
        length = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, self.max_length)
        padded = np.zeros((len(token_ids), length), np.int32)
        mask = np.zeros_like(padded)
        for row, ids in enumerate(token_ids):
            padded[row, : len(ids)], mask[row, : len(ids)] = ids, 1
        return self._token_outputs(padded, mask)

    def _require_text(self):
        if self.max_length is None:
            raise BundleError("this router takes embeddings, not text: use Bundle.win_prob_from_embedding")

    @functools.cached_property
    def _tokenizer(self):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._file("tokenizer.json")))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @functools.cached_property
    def _largest_id(self):
        return max(self._tokenizer.get_vocab().values())

    def _token_ids(self, prompts):
        """Tokens of each text, of a long one without its beginning, middle or end, as the router leaves them out."""
        before, after = self.description["special_tokens"]
        stripped = [prompt.strip() if self.description["strips"] else prompt for prompt in prompts]
        prompts = [self.description["prefix"] + prompt for prompt in stripped]
        side, characters = self.description["truncation"], self.description["characters_per_token"] * self.max_length
        count = self.max_length - len(before) - len(after)
        # Of how many tokens the beginning and the end are, and of how many characters of a text that is not read whole.
        first, last = {"right": (count, 0), "left": (0, count), "middle": ((count + 1) // 2, count // 2)}[side]
        half = characters // 2 if side == "middle" else characters

        def encode(texts):
            # Half of a broken emoji is no text that a tokenizer takes.
            valid = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
            return [encoding.ids for encoding in self._tokenizer.encode_batch(valid, add_special_tokens=False)]

        token_ids = encode([text if len(text) <= characters else text[:half] for text in prompts])
        cut = [row for row, text in enumerate(prompts) if len(text) > characters or len(token_ids[row]) > count]
        tails = encode([prompts[row] if len(prompts[row]) <= characters else prompts[row][-half:] for row in cut])
        for row, tail in zip(cut, tails, strict=True):
            token_ids[row] = token_ids[row][:first] + tail[max(0, len(tail) - last) :]
        return [before + ids + after for ids in token_ids]

    def _in_batches(self, function, *columns):
        """Outputs by name."""
        if len(columns[0]) == 0:
            return {
                name: np.zeros(0, np.int32 if name == "model" else np.float32) for name in self.description["outputs"]
            }
        parts = []
        for start in range(0, len(columns[0]), LARGEST_BATCH):
            part = [column[start : start + LARGEST_BATCH] for column in columns]
            count = len(part[0])
            size = 1 << (count - 1).bit_length()
            padded = [column[np.minimum(np.arange(size), count - 1)] for column in part]
            parts.append({name: np.asarray(output)[:count] for name, output in function(*padded).items()})
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for name, output in outputs.items():
            wrong = (output < 0) if name == "model" else np.isnan(output.reshape(len(output), -1)).any(axis=1)
            if wrong.any():
                raise BundleError(f"row {np.flatnonzero(wrong)[0]}: the router gives no probability or score, but NaN")
        return outputs

    def verify(self):
        """Largest differences from the scores the bundle was written with.

        Raises:
            BundleError: one of them is too large.
        """
        golden = load_file(self._file("golden.safetensors"))
        largest = {}
        # One prompt alone, a few, and all: batch sizes that the functions were not traced with.
        for rows in (slice(0, 1), slice(0, 5), slice(None)):
            computed = {}
            if self.takes_embeddings:
                computed["from_embedding"] = self._embedding_outputs(golden["embedding"][rows])
            if self.max_length is not None:
                ids, mask = golden["token_ids"][rows], golden["attention_mask"][rows]
                length = int(mask.sum(axis=1).max())  # and lengths, without the padding of longer prompts
                computed["from_token_ids"] = self._token_outputs(ids[:, :length], mask[:, :length])
                computed["from_text"] = self._text_outputs(self.description["golden_prompts"][rows])
            for name, outputs in computed.items():
                kind = "win_prob" if "win_prob" in outputs else "scores"
                scale = max(1.0, float(np.abs(golden[kind]).max()))
                difference = float(np.abs(outputs[kind] - golden[kind][rows]).max()) / scale
                largest[name] = max(difference, largest.get(name, 0.0))
                if not difference <= self.description["tolerance"][name]:
                    raise BundleError(
                        f"{name} differs from the golden scores by {difference:.2e}, "
                        f"more than {self.description['tolerance'][name]:.0e}"
                    )
                # -1: rounding decides between two models.
                if (
                    "model" in outputs
                    and ((golden["model"][rows] != outputs["model"]) & (golden["model"][rows] >= 0)).any()
                ):
                    raise BundleError(f"{name} chooses other models than the router did")
        return largest


def _description(path):
    """Content of bundle.json, whose hash is that of all its other keys: sorted, without white space, in ASCII."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        text = {name: value for name, value in content.items() if name != "content_sha256"}
        canonical = json.dumps(text, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (AttributeError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}") from error
    if content.get("format") != FORMAT:
        raise BundleError(f"{path}: expected format {FORMAT!r}, got {content.get('format')!r:.40}: export it again")
    if content.get("content_sha256") != hashlib.sha256(canonical.encode("ascii")).hexdigest():
        raise BundleError(
            f"{path} was changed after routerjax wrote it, so its answers may be others: change the router (a "
            "threshold, or --strong and --weak, by routerjax calibrate) and export it again (routerjax export)"
        )
    return content


def _version(text):
    return tuple(int(part) for part in text.split(".")[:2])


def _numbers(name, values, kinds):
    """Array of real numbers, of the kinds that numpy calls f, i, u and b: nothing else is read as some number."""
    array = np.asarray(values)
    if array.dtype.kind not in kinds and array.size:
        raise BundleError(f"{name} must hold {'numbers' if 'f' in kinds else 'integers'}, got {array.dtype}")
    return array


def main():
    """Verify the bundle in this file's folder, or score the prompts on the command line."""
    parser = argparse.ArgumentParser(description="Score prompts with an exported router.")
    parser.add_argument("prompts", nargs="*")
    parser.add_argument("--verify", action="store_true", help="compare with the scores the bundle was written with")
    arguments = parser.parse_args()
    if arguments.verify and arguments.prompts:
        parser.error("--verify takes no prompts: it has its own")
    try:
        _run(arguments)
    except (BundleError, OSError) as error:
        # Of a bundle that somebody else made, too: nothing in it reaches the terminal as a control character.
        sys.exit("".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(error)))


def _run(arguments):
    # In Hugging Face's cache this file is a link, which is not followed to where no other file of the bundle is.
    bundle = Bundle(Path(__file__).absolute().parent)
    if arguments.verify or not arguments.prompts:
        print(json.dumps({"largest_difference": bundle.verify()}))
        return
    outputs = bundle._text_outputs(arguments.prompts)
    for row, prompt in enumerate(arguments.prompts):
        row = {"prompt": prompt, **{name: output[row].tolist() for name, output in outputs.items()}}
        if "model" in row:
            row["model"] = bundle.description["models"][row["model"]]
        print(json.dumps(row))  # in ASCII: no text of others reaches the terminal as a control character


if __name__ == "__main__":
    main()
