"""Pretrained models on disk: where they are, what they are, and their tensors under our names."""

from routerjax.pretrained import routellm
from routerjax.pretrained.bert import (
    BertConfig,
    bert_names,
    labels_json,
    read_bert_config,
    read_bert_encoder,
    read_labels,
)
from routerjax.pretrained.chat_template import NO_TEMPLATE, ChatTemplate, parse_template, read_chat_template
from routerjax.pretrained.decoder import (
    DECODER_TYPES,
    TARGET_MODULES,
    adapter_names,
    decoder_class,
    decoder_json,
    decoder_names,
    read_decoder,
)
from routerjax.pretrained.encoder import encoder_names, read_encoder
from routerjax.pretrained.files import file_sha256, find_file, parse_json, read_bytes, read_json, read_text_file
from routerjax.pretrained.identity import encoder_sha256
from routerjax.pretrained.locate import MINILM, locate
from routerjax.pretrained.sentence import (
    LAYER_TENSORS,
    SentenceModules,
    read_sentence_modules,
    transformer_folder,
)
from routerjax.pretrained.stored import StoredTensor
from routerjax.pretrained.tokenizer_files import (
    RESOLVED_FILE,
    TOKENIZER_CONFIG,
    TOKENIZER_FILE,
    TOKENIZER_FILES,
    parse_tokenizer,
    read_tokenizer,
    resolved_tokenizer,
    tokenizer_config,
)
from routerjax.pretrained.weights import (
    INDEX_FILE,
    TensorNames,
    count_numbers,
    publish_weights,
    read_weights,
    require_sizes,
    stored_weights,
    tensor_bytes,
    tensor_shapes,
    weights_files,
    weights_sha256,
)

__all__ = [
    "DECODER_TYPES",
    "INDEX_FILE",
    "LAYER_TENSORS",
    "MINILM",
    "NO_TEMPLATE",
    "RESOLVED_FILE",
    "TARGET_MODULES",
    "TOKENIZER_CONFIG",
    "TOKENIZER_FILE",
    "TOKENIZER_FILES",
    "BertConfig",
    "ChatTemplate",
    "SentenceModules",
    "StoredTensor",
    "TensorNames",
    "adapter_names",
    "bert_names",
    "count_numbers",
    "decoder_class",
    "decoder_json",
    "decoder_names",
    "encoder_names",
    "encoder_sha256",
    "file_sha256",
    "find_file",
    "labels_json",
    "locate",
    "parse_json",
    "parse_template",
    "parse_tokenizer",
    "publish_weights",
    "read_bert_config",
    "read_bert_encoder",
    "read_bytes",
    "read_chat_template",
    "read_decoder",
    "read_encoder",
    "read_json",
    "read_labels",
    "read_sentence_modules",
    "read_text_file",
    "read_tokenizer",
    "read_weights",
    "require_sizes",
    "resolved_tokenizer",
    "routellm",
    "stored_weights",
    "tensor_bytes",
    "tensor_shapes",
    "tokenizer_config",
    "transformer_folder",
    "weights_files",
    "weights_sha256",
]
