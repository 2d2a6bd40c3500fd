"""Runtime of exported routers: one file, in each bundle as ``routerjax_runtime.py``, which needs no routerjax.

    python routerjax_runtime.py --verify             check the files, and compare with the scores of the export
    python routerjax_runtime.py "A prompt" ...       print win probabilities and the models that are chosen

From code::

    bundle = load("path/of/bundle")
    bundle.route("A prompt")                         # name of a model; of a list of texts, a list of names
    bundle.win_prob(["A prompt", "Another"])         # float32 [batch], P(the strong model is better than the weak one)
    bundle.scores(embedding=embedding)               # float32 [batch, models], from embeddings float32 [batch, embed]

A bundle is computed by jax (``stablehlo``), onnxruntime (``onnx``, ``triton``) or numpy (``vector``), from any thread.
"""

import argparse
import hashlib
import importlib
import json
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = 8  # layout of the folder and of bundle.json; other ones are refused
DESCRIPTION, GOLDEN, TOKENIZER, RUNTIME = "bundle.json", "golden.npz", "tokenizer.json", "routerjax_runtime.py"
# Requests of any size are computed in parts of so many rows. Of a format that compiles each shape, parts are padded to
# powers of two of rows, and to the lengths that the bundle names.
LARGEST_BATCH = 64
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")  # of a file
SMALLEST_PROB = np.finfo(np.float32).eps

Outputs = dict[str, np.ndarray]
Functions = Mapping[str, Callable[[Outputs], Outputs]]


class BundleError(ValueError):
    """The bundle cannot do what is asked: it is changed or damaged, gives other scores, or takes another input."""


class NoScoreError(BundleError):
    """The router gives no finite probability or score of a prompt: its weights are damaged."""


class Bundle:
    """Exported router: ``description`` is that of bundle.json. A call of onnxruntime uses all cores, or ``threads``.

    Raises:
        BundleError: a file is changed, missing, damaged or of another schema; the library of its format is, or too old.
    """

    def __init__(self, folder: Any, *, threads: int | None = None) -> None:
        self.folder, self.threads = Path(folder), threads
        self.description = _description(self.file(DESCRIPTION))
        for name, expected in self.description["sha256"].items():
            if hashlib.sha256(self.file(name).read_bytes()).hexdigest() != expected:
                raise BundleError(f"{self.folder / name} is damaged: its sha256 is not that in {DESCRIPTION}")
        self.text: Any = self.description["text"]
        self._lock, self._loaded_tokenizer = threading.Lock(), None
        engine = ENGINES[self.description["format"]]
        self.compiles, self._functions = engine is _stablehlo, engine(self)

    def route(self, prompts: Any = None, *, threshold: float | None = None, **query: Any) -> Any:
        """Name the model that the router's policy chooses for a text, or for each of several.

        Args:
            prompts: a text, or a list of them.
            threshold: in place of the policy's own: the strong model from this win probability on; inf is never.
            query: in place of texts; ``embedding`` float32 [batch, embed], or ``token_ids`` and ``attention_mask``.
        """
        models, policy = self.description["models"], self.description["policy"]
        if threshold is None:
            names = [models[column] for column in self._output("model", prompts, query)]
        elif not (isinstance(threshold, (int, float, np.floating)) and (0 <= threshold <= 1 or threshold == np.inf)):
            raise BundleError(f"threshold must be a number in [0, 1], or inf, got {threshold!r:.40}")
        else:  # in float64, in which no threshold is rounded to a win probability
            win_prob = self._output("win_prob", prompts, query).astype(np.float64)
            names = [policy["strong" if strong else "weak"] for strong in win_prob >= float(threshold)]
        return names[0] if isinstance(prompts, str) else names

    def win_prob(self, prompts: Any = None, **query: Any) -> Any:
        """P(the strong model is better than the weak one), float32 [batch]; of one text, a number."""
        win_prob = self._output("win_prob", prompts, query)
        return float(win_prob[0]) if isinstance(prompts, str) else win_prob

    def scores(self, prompts: Any = None, **query: Any) -> np.ndarray:
        """Score every model, float32 [batch, models]; [models] for one text. See :meth:`route`."""
        scores = self._output("scores", prompts, query)
        return scores[0] if isinstance(prompts, str) else scores

    def outputs(self, prompts: Any = None, **query: Any) -> Outputs:
        """All outputs of the router's function by name: ``scores``, ``win_prob`` and ``model``, a column of models."""
        if not query:
            return self._of_texts([prompts] if isinstance(prompts, str) else prompts)
        if prompts is None and set(query) == {"embedding"}:
            return self._of_embeddings(query["embedding"])
        if prompts is None and set(query) == {"token_ids", "attention_mask"}:
            return self._of_tokens(**query)
        raise BundleError("give prompts, or embedding=..., or token_ids=... and attention_mask=..., one of these")

    def verify(self) -> dict[str, float]:
        """Compare with the outputs that the bundle was written with.

        Returns:
            By function, the largest difference of win probabilities, and of scores over the largest, if above 1.

        Raises:
            BundleError: a difference above the bundle's tolerance, other tokens, or another model.
        """
        with np.load(self.file(GOLDEN), allow_pickle=False) as stored:
            golden = {name: stored[name] for name in stored.files}
        one, five, whole = slice(0, 1), slice(0, 5), slice(None)  # batch sizes that were not traced
        cases, largest = [], {}
        if "from_embedding" in self._functions:
            for rows in (one, five, whole):
                cases.append(("from_embedding", rows, self._of_embeddings(golden["embedding"][rows])))
        if self.text is not None:
            ids, mask, prompts = golden["token_ids"], golden["attention_mask"], self.description["golden_prompts"]
            if self.tokenize(prompts) != [row[keep == 1].tolist() for row, keep in zip(ids, mask, strict=True)]:
                raise BundleError("from_text reads other tokens than the router did")
            length = int(mask[five].sum(axis=1).max())  # without the padding of longer prompts
            cases.append(("from_token_ids", five, self._of_tokens(ids[five, :length], mask[five, :length])))
            cases += [("from_text", rows, self._of_texts(prompts[rows])) for rows in (one, whole)]
        for name, rows, outputs in cases:
            largest[name] = max(self._compare(name, outputs, golden, rows), largest.get(name, 0.0))
        return largest

    def summary(self, largest: Mapping[str, float]) -> str:
        """Tell in one line what :meth:`verify` compared."""
        about, outputs = self.description, self.description["outputs"]
        kinds = " and ".join(name for name in outputs if name != "model")
        queries = f"{len(about['golden_prompts'])} prompts" if about["golden_prompts"] else "embeddings"
        parts = ", ".join(f"{name} within {value:.1e}" for name, value in largest.items())
        same, files = ", and the same models" if "model" in outputs else "", len(about["sha256"])
        return f"verified: {about['format']}, sha256 of {files} files, {kinds} of {queries} {parts}{same}"

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, of a long one without its beginning, middle or end, as the router leaves them out."""
        text = self._require_text()
        before, after = text["special_tokens"]
        prompts = [text["prefix"] + (prompt.strip() if text["strips"] else prompt) for prompt in prompts]
        characters, count = text["characters_per_token"] * text["max_length"], text["max_length"] - len(before + after)
        # Of how many tokens the beginning and the end are, and of how many characters of a text that is not read whole.
        sides = {"right": (count, 0), "left": (0, count), "middle": ((count + 1) // 2, count // 2)}
        first, last = sides[text["truncation"]]
        half = characters // 2 if first and last else characters

        def encode(texts: list[str]) -> list[list[int]]:
            # Half of a broken emoji is no text that a tokenizer takes.
            valid = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
            return [encoding.ids for encoding in self._tokenizer().encode_batch(valid, add_special_tokens=False)]

        token_ids = encode([text if len(text) <= characters else text[:half] for text in prompts])
        cut = [row for row, text in enumerate(prompts) if len(text) > characters or len(token_ids[row]) > count]
        tails = encode([prompts[row] if len(prompts[row]) <= characters else prompts[row][-half:] for row in cut])
        for row, tail in zip(cut, tails, strict=True):
            token_ids[row] = token_ids[row][:first] + tail[max(0, len(tail) - last) :]
        return [before + ids + after for ids in token_ids]

    def _compare(self, name: str, outputs: Outputs, golden: Outputs, rows: slice) -> float:
        """Largest difference of a function's outputs from the golden ones."""
        tolerance, kinds = self.description["tolerance"][name], [kind for kind in outputs if kind != "model"]
        scale = {kind: max(1.0, np.abs(golden[kind]).max()) for kind in kinds}
        largest = max(float(np.abs(outputs[kind] - golden[kind][rows]).max() / scale[kind]) for kind in kinds)
        if not largest <= tolerance:
            raise BundleError(f"{name} differs from the golden scores by {largest:.2e}, more than {tolerance:.0e}")
        expected = golden["model"][rows] if "model" in outputs else np.zeros(0)  # -1: rounding decides between two
        if ((expected != outputs.get("model", expected)) & (expected >= 0)).any():
            raise BundleError(f"{name} chooses other models than the router did")
        return largest

    def file(self, name: str) -> Path:
        """Path of a regular file that bundle.json names; links lead out of the folder in Hugging Face's cache alone."""
        if name != DESCRIPTION and not (PLAIN_NAME.fullmatch(name) and name in self.description["sha256"]):
            raise BundleError(f"{name!r} is no file of this bundle")
        path, root, hint = self.folder / name, self.folder.resolve(), "; export makes it" * (name == DESCRIPTION)
        if not path.is_file():
            raise BundleError(f"{path} is missing, or no regular file{hint}")
        real = path.resolve()
        blobs = [place.parents[1] / "blobs" for place in (root, *root.parents) if place.parent.name == "snapshots"]
        if not real.is_relative_to(root) and real.parent not in blobs:
            raise BundleError(f"{path} is a link to a file outside of the bundle: put a copy of the file there")
        return path

    def _output(self, name: str, prompts: Any, query: Mapping[str, Any]) -> np.ndarray:
        if name not in self.description["outputs"]:
            why = {
                "model": "the policy of this router has no threshold: it gives win_prob",
                "win_prob": "the policy of this router is of no pair of models: it gives scores",
                "scores": "this bundle holds the win probability of one pair alone",
            }
            raise BundleError(why[name])
        return self.outputs(prompts, **query)[name]

    def _of_embeddings(self, embedding: Any) -> Outputs:
        if "from_embedding" not in self._functions:
            raise BundleError("this router reads text, not embeddings: give prompts, or token_ids and attention_mask")
        embedding = _numbers("embedding", embedding, "fiu").astype(np.float32)
        width = self.description["functions"]["from_embedding"]["inputs"]["embedding"]["shape"][1]
        if embedding.ndim != 2 or embedding.shape[1] != width or not np.isfinite(embedding).all():
            raise BundleError(f"embedding must be finite and of shape [batch, {width}], got shape {embedding.shape}")
        return self._in_batches("from_embedding", embedding=embedding)

    def _of_tokens(self, token_ids: Any, attention_mask: Any) -> Outputs:
        text = self._require_text()
        ids, mask = _numbers("token_ids", token_ids, "iu"), _numbers("attention_mask", attention_mask, "iub")
        if ids.ndim != 2 or ids.shape != mask.shape or 0 in ids.shape[1:]:
            raise BundleError(f"token_ids and attention_mask must be [batch, length], got {ids.shape} and {mask.shape}")
        if ids.shape[1] > text["max_length"]:
            raise BundleError(f"at most {text['max_length']} tokens a prompt, got {ids.shape[1]}: truncate them")
        largest = text["largest_id"]
        if ((ids < 0) | (ids > largest)).any() or ((mask != 0) & (mask != 1)).any():
            raise BundleError(f"token_ids must lie in [0, {largest}], and attention_mask be of 0 and 1")
        return self._in_batches("from_token_ids", token_ids=ids.astype(np.int32), attention_mask=mask.astype(np.int32))

    def _of_texts(self, prompts: Any) -> Outputs:
        text = self._require_text()
        if not hasattr(prompts, "__len__") or isinstance(prompts, (set, frozenset, dict, bytes)):
            raise BundleError(f"prompts must be a text or a list of texts, got {type(prompts).__name__}")
        for row, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise BundleError(f"row {row}: a prompt must be text, got {prompt!r:.40}")
        token_ids = self.tokenize(prompts)
        length = max([1, *map(len, token_ids)])
        if self.compiles:
            length = next(each for each in text["lengths"] if each >= length)
        padded, mask = np.zeros((2, len(token_ids), length), np.int32)
        for row, ids in enumerate(token_ids):
            padded[row, : len(ids)], mask[row, : len(ids)] = ids, 1
        return self._of_tokens(padded, mask)

    def _require_text(self) -> Any:
        if self.text is None:
            raise BundleError("this router takes embeddings, not text: give embedding=...")
        return self.text

    def _tokenizer(self) -> Any:
        with self._lock:
            if self._loaded_tokenizer is None:
                self._loaded_tokenizer = _library("tokenizers").Tokenizer.from_file(str(self.file(TOKENIZER)))
                self._loaded_tokenizer.no_padding()
                self._loaded_tokenizer.no_truncation()
            return self._loaded_tokenizer

    def _in_batches(self, name: str, **columns: np.ndarray) -> Outputs:
        """Outputs by name, in parts of bounded size; of no rows, what a row of zeros gives is left out."""
        total, parts = len(next(iter(columns.values()))), []
        if not total:
            columns = {key: np.zeros((1, *column.shape[1:]), column.dtype) for key, column in columns.items()}
        for start in range(0, max(total, 1), LARGEST_BATCH):
            count = min(max(total, 1) - start, LARGEST_BATCH)
            size = 1 << (count - 1).bit_length() if self.compiles else count
            rows = start + np.minimum(np.arange(size), count - 1)
            part = self._functions[name]({key: column[rows] for key, column in columns.items()})
            parts.append({key: output[: min(count, total)] for key, output in part.items()})
        outputs = {key: np.concatenate([part[key] for part in parts]) for key in self.description["outputs"]}
        for key, output in outputs.items():
            wrong = (output < 0) if key == "model" else (~np.isfinite(output)).any(axis=tuple(range(1, output.ndim)))
            if wrong.any():
                raise NoScoreError(f"row {np.flatnonzero(wrong)[0]}: the router gives no finite probability or score")
        return outputs


load = Bundle


def _stablehlo(bundle: Bundle) -> Functions:
    """Functions of a bundle by name, compiled by jax; their weights are arguments."""
    jax, safetensors, file = _library("jax"), _library("safetensors.numpy"), bundle.file
    needed, got = bundle.description["needs"]["jax"], jax.__version__
    if [int(part) for part in got.split(".")[:2]] < [int(part) for part in needed.split(".")[:2]]:
        raise BundleError(f"this bundle needs jax {needed} or newer, got jax {got}: pip install 'jax>={needed}'")
    deserialize, weights = _library("jax.export").deserialize, {}

    def function(parts: Any) -> Callable[[Outputs], Outputs]:
        call = jax.jit(deserialize(bytearray(file(parts["file"]).read_bytes())).call)
        for name in parts["weights"]:
            # On the device once, or each call would copy all of them there.
            weights[name] = weights.get(name) or jax.device_put(safetensors.load_file(file(name)) if name else {})
        given, names = [weights[name] for name in parts["weights"]], list(parts["inputs"])
        return lambda query: jax.tree.map(np.asarray, call(*given, *(query[name] for name in names)))

    return {name: function(parts) for name, parts in bundle.description["functions"].items()}


def _onnx(bundle: Bundle) -> Functions:
    """Functions of a bundle by name, see :func:`onnx_function`."""
    parts = bundle.description["functions"]
    return {name: onnx_function(str(bundle.file(parts[name]["file"])), bundle.threads) for name in parts}


def onnx_function(model: str | bytes, threads: int | None = None) -> Callable[[Outputs], Outputs]:
    """Outputs by name of a model, which is a file or its content, by onnxruntime on the CPU."""
    onnxruntime = _library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads or 0  # errors alone; 0 is the default
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # int8 becomes float32 once
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's have no other class in common
        raise BundleError(f"onnxruntime {onnxruntime.__version__} does not load the model: {error!s:.200}") from error
    names = [output.name for output in session.get_outputs()]
    return lambda query: dict(zip(names, session.run(names, query), strict=True))


def _vector(bundle: Bundle) -> Functions:
    """The function of a bundle that is one vector and a bias, by numpy."""
    description = bundle.description
    vector = np.load(bundle.file(description["functions"]["from_embedding"]["file"]), allow_pickle=False)
    bias, tie, calibration = np.float32(description["bias"]), description["tie_threshold"], description["calibration"]
    policy, models = description["policy"], description["models"]

    def function(query: Outputs) -> Outputs:
        margin = query["embedding"] @ vector + bias
        win_prob = 0.5 + 0.5 * (_sigmoid(margin - tie) - _sigmoid(-margin - tie))
        if calibration is not None and "knots" in calibration:
            win_prob = np.interp(win_prob, calibration["knots"], calibration["values"]).astype(np.float32)
        elif calibration is not None:
            clipped = np.clip(win_prob, SMALLEST_PROB, 1 - SMALLEST_PROB)
            logit = np.log(clipped) - np.log1p(-clipped)
            win_prob = _sigmoid(np.float32(calibration["slope"]) * logit + np.float32(calibration["intercept"]))
        if "model" not in description["outputs"]:
            return {"win_prob": win_prob}
        is_strong = win_prob.astype(np.float64) >= float(policy["threshold"])
        model = np.where(is_strong, models.index(policy["strong"]), models.index(policy["weak"])).astype(np.int32)
        return {"win_prob": win_prob, "model": model}

    return {"from_embedding": function}


ENGINES = {"stablehlo": _stablehlo, "onnx": _onnx, "triton": _onnx, "vector": _vector}


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return (0.5 + 0.5 * np.tanh(0.5 * logit)).astype(np.float32)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BundleError(f"this bundle needs {name}: pip install {name.partition('.')[0]}") from error


def _description(path: Path) -> Any:
    """Content of bundle.json, whose hash is that of all its other keys: sorted, without white space, in ASCII."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        text = {name: value for name, value in content.items() if name != "content_sha256"}
        canonical = json.dumps(text, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (AttributeError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}") from error
    schema, format = content.get("schema"), content.get("format")
    if type(schema) is int and schema > SCHEMA:
        raise BundleError(f"{path} has the schema {schema}, newer than {SCHEMA}, which this routerjax reads: update it")
    if type(schema) is not int or schema != SCHEMA or format not in list(ENGINES):
        got = f"schema {schema!r:.40} of {format!r:.40}"
        raise BundleError(f"{path}: expected schema {SCHEMA} of {', '.join(ENGINES)}, got {got}: export it again")
    if content.get("content_sha256") != hashlib.sha256(canonical.encode("ascii")).hexdigest():
        raise BundleError(f"{path} was changed after routerjax wrote it: change the router, then routerjax export")
    return content


def _numbers(name: str, values: Any, kinds: str) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in kinds and array.size:
        raise BundleError(f"{name} must hold {'numbers' if 'f' in kinds else 'integers'}, got {array.dtype}")
    return array


def main() -> None:
    """Verify the bundle in this file's folder, or score prompts."""
    parser = argparse.ArgumentParser(description="Score prompts with an exported router.")
    parser.add_argument("prompts", nargs="*")
    parser.add_argument("--verify", action="store_true", help="compare with the scores the bundle was written with")
    arguments = parser.parse_args()
    if arguments.verify == bool(arguments.prompts):
        parser.error("give prompts, or --verify, which has its own")
    try:
        # In Hugging Face's cache this file is a link, which is not followed to where no other file of the bundle is.
        bundle = Bundle(Path(__file__).absolute().parent)
        if arguments.verify:
            largest = bundle.verify()
            print(json.dumps({"largest_difference": largest, "summary": bundle.summary(largest)}))
            return
        models, columns = bundle.description["models"], bundle.outputs(arguments.prompts)
        columns = {name: columns[name].tolist() for name in columns if name != "scores" or "win_prob" not in columns}
        columns |= {"model": [models[column] for column in columns["model"]]} if "model" in columns else {}
        for row, prompt in enumerate(arguments.prompts):  # in ASCII, without control characters of others
            print(json.dumps({"prompt": prompt, **{name: column[row] for name, column in columns.items()}}))
    except (BundleError, OSError) as error:
        sys.exit("".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(error)))


if __name__ == "__main__":
    main()
