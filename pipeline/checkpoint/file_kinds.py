"""What the files are that lie beside weights, and weights in formats that are not read.

A table of names, as data: whatever is in it is named by `plan` for what it is; what is not, and is no
weight file either, is said not to be understood.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class FileKind(NamedTuple):
    """What a file is that is not read as weights."""

    what: str
    advice: str = ""
    """Of weights in a format that is not read: what to do."""


NOT_UNDERSTOOD = FileKind("not understood")
TRAINER_STATE = FileKind("trainer state")
UNREAD_WEIGHTS = FileKind("weights that are not read", "--weights GLOB says which are")
"""A second network's, or the same ones in another format."""
_LONGEST = 255
"""Characters of a file's name, where there are file systems."""
PARTS_OF_DISTRIBUTED = "part of a torch distributed checkpoint"
_SAFETENSORS = "convert the checkpoints to safetensors"

# The first pattern that matches the whole name, without folders, is taken. Sources: what transformers,
# accelerate, DeepSpeed, OLMo, OpenRLHF, verl, NeMo, Lightning and orbax write.
_KINDS: tuple[tuple[re.Pattern[str], FileKind], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), FileKind(*kind))
    for pattern, *kind in (
        (r".*optim_states\.pt|optimizer.*|(?!model_optim)(?:.*[-_])?optim(?:izer)?s?(?:[-_.].*)?", "optimizer"),
        (r"(?:lr_?)?sched(?:uler)?s?(?:[-_.].*)?", "scheduler"),
        (r"(?:grad_?)?scaler(?:[-_.].*)?", "gradient scaler"),
        (r"rng(?:[-_].*)?\.(?:pt|pth|pkl|bin|json)|.*rng_states?.*|random_states?.*", "RNG"),
        (r"sampler.*", "sampler"),
        (r"(?:train_)?data(?:loader|set|_state)?(?:[-_.]\d.*)?\.(?:pt|pth|pkl|bin|json)"
         r"|.*dataloader.*", "dataloader state"),
        (r"train(?:er|ing)?(?:_state|_args|_info|_metadata)?\.(?:pt|bin|json|pth|pkl)|extra_states?.*"
         r"|client_state.*|custom_checkpoint_\d+\.pkl|\.?meta(?:data|_\d+)?\.(?:json|pt|pkl)"
         r"|latest(?:_checkpoint.*)?(?:\.txt)?|zero_to_fp32\.py|common\.pt", *TRAINER_STATE),
        (r"ema(?:_state)?(?:[-_.].*)?\.json", *TRAINER_STATE),
        (r"tokenizer.*|vocab.*|merges\.txt|special_tokens_map\.json|added_tokens\.json|.*\.tiktoken"
         r"|s(?:entence)?piece.*\.model|chat_template\..*", "tokenizer"),
        (r".*preprocessor_config\.json|processor_config\.json|image_processor.*", "tokenizer"),
        (r".*config.*\.(?:json|ya?ml|toml)|.*\.(?:ya?ml|toml)|hparams.*|model_index\.json"
         r"|params\.json|modules\.json", "configuration"),
        (r".*\.index\.json", "index"),
        (r"readme.*|licen[cs]e.*|notice.*|use_policy.*|\.git.*|.*\.(?:md|txt|py|pdf|png|jpe?g|svg|html?)",
         "text or code"),
        (r"events\.out.*|.*\.(?:log|csv|tsv|jsonl|wandb|parquet|out|err)|(?:.*_)?(?:results?|metrics|stats"
         r"|history)\.json", "log"),
        (r".*\.(?:lock|sha\d+|md5|tmp|part|incomplete)|\.ds_store|.*\.done|_success|commit_success.*",
         "marker"),
        (r".*\.(?:gguf|ggml|ggjt)", "GGUF",
         "analyze the checkpoints that it was made from: llama.cpp quantises"),
        (r".*\.msgpack", "Flax msgpack", f"{_SAFETENSORS}: from_pretrained(…, from_flax=True)"),
        (r".*\.(?:h5|keras|hdf5)", "Keras HDF5", _SAFETENSORS),
        (r".*\.(?:npz|npy)", "NumPy", f"{_SAFETENSORS}: safetensors.numpy.save_file"),
        (r".*\.data-\d{5}-of-\d{5}|.*\.ckpt\.(?:index|meta)|saved_model\.pb|.*\.pb|.*\.pbtxt|checkpoint",
         "TensorFlow", f"{_SAFETENSORS}: tf.train.load_checkpoint reads it"),
        (r".*\.onnx(?:_data|\.data)?", "ONNX", "analyze the checkpoints that it was exported from"),
        (r".*\.ocdbt|_METADATA|_CHECKPOINT_METADATA|_sharding|\.zarray|array_metadatas",
         "orbax", f"{_SAFETENSORS}: orbax.checkpoint restores it"),
        (r".*\.(?:tflite|mlmodel|mlpackage|engine|plan|xml|pte|torchscript|ort)", "an exported network",
         "analyze the checkpoints that it was exported from"),
        (r".*\.nemo", "a NeMo archive", "unpack it: it is a tar file that holds the weights"),
        (r".*(?<!\.pth)\.(?:tar|tgz|gz|zip|zst|xz|bz2|7z)", "an archive", "unpack it"),
        (r".*\.distcp|\.metadata", PARTS_OF_DISTRIBUTED,
         "its .metadata, written last, or its .distcp files are absent: save or copy it again"),
    )
)  # fmt: skip


_FOLDERS = {"train": TRAINER_STATE}
"""What is not known by its name, by its folder's: OLMo-core's `train/rank0.pt`."""


def file_kind(path: str) -> FileKind | None:
    """Return what a file is, by its name; None: weights, perhaps, or something not understood."""
    folder, _, name = path.rpartition("/")
    if len(name) > _LONGEST:  # a listing may state any: patterns take their time with each
        return None
    kind = next((kind for pattern, kind in _KINDS if pattern.fullmatch(name)), None)
    return kind or _FOLDERS.get(folder.rpartition("/")[2])
