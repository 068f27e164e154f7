"""Tokenizers: CLIP's own, which comes with open_clip, or a Hugging Face one that a checkpoint carries along."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer
from torch import Tensor

from medpclip.errors import MedpclipError
from medpclip.files import dump_json
from medpclip.models.tensors import first_line

FOLDER = "tokenizer"  # in a checkpoint
_SETTINGS = "tokenizer_config.json"
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_FILES = (*_VOCABULARIES, _SETTINGS, "special_tokens_map.json", "added_tokens.json", "merges.txt")
# Where it was made, and code that would be run.
_NOT_KEPT = ("name_or_path", "_name_or_path", "auto_map", "local_files_only", "is_local")

Tokenizer = Callable[[Sequence[str]], Tensor]


class FolderTokenizer:
    """A Hugging Face tokenizer with the files that it was made of, so that it can be written again.

    Args:
        folder: has the vocabulary and the settings; read once.
        text: open_clip's `text_cfg`.
    """

    def __init__(self, folder: Path, text: Mapping[str, Any]) -> None:
        if not any((folder / name).is_file() for name in _VOCABULARIES):
            raise MedpclipError(
                f"{folder}: no vocabulary ({', '.join(_VOCABULARIES[:4])}); copy the text tower's tokenizer files there"
            )
        try:
            self._tokenizer = _hugging_face(str(folder), text)
            self.files = {name: (folder / name).read_bytes() for name in _FILES if (folder / name).is_file()}
            settings = json.loads(self.files.get(_SETTINGS, b"{}"))
            settings = {key: value for key, value in settings.items() if key not in _NOT_KEPT}
        except Exception as error:  # transformers', tokenizers' and sentencepiece's own
            raise MedpclipError(f"{folder}: its tokenizer can't be read ({first_line(error)}); copy it again") from None
        # Other files beside it may have said which kind it is.
        settings.setdefault("tokenizer_class", type(self._tokenizer.tokenizer).__name__)
        self.files[_SETTINGS] = dump_json(settings)

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        """int64 (T, context), padded; the model's own context where none is given."""
        return self._tokenizer(list(texts), context_length)

    def save(self, folder: Path) -> None:
        """Write the files; nothing in them tells of this machine."""
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def make_tokenizer(text: Mapping[str, Any], folder: Path | None, where: str) -> Tokenizer:
    """The tokenizer that `text_cfg` asks for.

    Args:
        text: open_clip's `text_cfg`.
        folder: has the files of a Hugging Face tokenizer; None for the hub's cache, or the hub.
        where: how messages name the architecture.

    Raises:
        MedpclipError: it can't be had.
    """
    name = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    if not name:
        context = text.get("context_length", open_clip.CLIPTextCfg.context_length)
        clip = open_clip.SimpleTokenizer(context_length=context, **(text.get("tokenizer_kwargs") or {}))
        words = text.get("vocab_size", open_clip.CLIPTextCfg.vocab_size)
        if words < clip.vocab_size:
            raise MedpclipError(
                f"{where}: text_cfg.vocab_size is {words}, and CLIP's tokenizer has {clip.vocab_size} tokens; name the "
                "tokenizer in text_cfg.hf_tokenizer_name, or leave vocab_size out"
            )
        tokenizer: Tokenizer = clip
        return tokenizer
    if folder is None and Path(name).is_dir():
        folder = Path(name)
    if folder is not None:
        return FolderTokenizer(folder, text)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            _hugging_face(name, text).save_pretrained(temporary)
        except Exception as error:  # transformers missing, or the hub's own errors
            raise MedpclipError(
                f"{where}: its tokenizer {name!r} can't be had ({first_line(error)}); "
                "give model.pretrained a folder that has it, or choose a trunk with CLIP's own"
            ) from None
        return FolderTokenizer(Path(temporary), text)


def save_tokenizer(tokenizer: Tokenizer, checkpoint: Path) -> None:
    """Write a model's tokenizer into a checkpoint's folder, unless it is CLIP's own, which needs no file.

    Args:
        tokenizer: of a RegionCLIP.
        checkpoint: its folder, while it is being written.
    """
    if isinstance(tokenizer, FolderTokenizer):
        tokenizer.save(checkpoint / FOLDER)


def tokenizer_hashes(tokenizer: Tokenizer) -> dict[str, str]:
    """File -> SHA-256 of what a tokenizer is made of; empty for CLIP's own, which comes with open_clip."""
    files = tokenizer.files if isinstance(tokenizer, FolderTokenizer) else {}
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}


def _hugging_face(name: str, text: Mapping[str, Any]) -> HFTokenizer:
    return HFTokenizer(
        name,
        context_length=text.get("context_length", open_clip.CLIPTextCfg.context_length),
        tokenizer_mode=text.get("tokenizer_mode"),
        **(text.get("tokenizer_kwargs") or {}),
    )
