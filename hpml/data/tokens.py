"""Texts as token ids: the published XLNet tokenizer where it is on disk, else one trained on the training texts; ids are cached."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpml.data.images import made_once
from hpml.data.mapped import PickledByPath
from hpml.env import HpmlError, cache_dir, data_dir

if TYPE_CHECKING:
    import numpy as np

    from hpml.data.texts import ReviewSet

FOLDER = "xlnet-base-cased"
SPECIAL = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>")  # with XLNet's own ids, 0 to 6
PAD = SPECIAL.index("<pad>")
TRAINED_PIECES = 4000
TRAINED_ON = 20_000  # texts at most
CHUNK = 4096


def published() -> Path | None:
    """tokenizer.json or spiece.model of XLNet in $HPML_WEIGHTS or in the data folder's `tokenizers`, or None. Nothing is downloaded."""
    places = [Path(folder).expanduser() for folder in filter(None, [os.environ.get("HPML_WEIGHTS")])] + [data_dir() / "tokenizers"]
    files = (place / FOLDER / name for place in places for name in ("tokenizer.json", "spiece.model"))
    return next((file for file in files if file.is_file()), None)


def with_tokenizer(reviews: ReviewSet) -> ReviewSet:
    """The reviews with the tokenizer that reads them, named: the published one, else one trained on all training texts of this set."""
    path = published()
    if path:
        return replace(reviews, tokenizer=f"{FOLDER} ({path.name}), published", tokenizer_file=str(path))
    identity = f"{reviews.checksum} {len(reviews.train_texts)} {TRAINED_PIECES} {TRAINED_ON} {SPECIAL}"
    path = cache_dir() / f"tokenizer-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.json"
    if not path.is_file():
        keep(path, _trained(reviews.train_texts[:TRAINED_ON]))
    return replace(reviews, tokenizer=f"byte-pair encoding of at most {TRAINED_PIECES:,} pieces, trained on the training texts",
                   tokenizer_file=str(path))


def open_tokenizer(path: str | Path, length: int):
    """A tokenizers.Tokenizer that ends with <sep> <cls>, cuts a text at its end and pads on the left to `length`, as XLNet does.

    Raises HpmlError with the file's name for a damaged one.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = _of_pieces(Path(path)) if Path(path).name == "spiece.model" else Tokenizer.from_file(str(path))
    except Exception as error:  # whatever a damaged file provokes; the library raises plain Exception
        raise HpmlError(f"{path}: not a tokenizer ({str(error).splitlines()[0][:100]})") from None
    if [tokenizer.token_to_id(token) for token in SPECIAL] != list(range(len(SPECIAL))):
        raise HpmlError(f"{path}: not XLNet's tokenizer: its special tokens have other ids")
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(direction="left", pad_id=PAD, pad_type_id=3, pad_token="<pad>", length=length)
    return tokenizer


def encode(tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [N, length], mask uint8 [N, length], 1 = a token of the text)."""
    import numpy as np

    found = tokenizer.encode_batch_fast(list(texts))
    return np.array([one.ids for one in found], np.int32), np.array([one.attention_mask for one in found], np.uint8)


def encoded(texts: Sequence[str], tokenizer_file: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """As `encode`, made once for each content, tokenizer and length, and memory-mapped afterwards."""
    import numpy as np

    digest = hashlib.sha256(f"{length} ".encode() + Path(tokenizer_file).read_bytes())
    for text in texts:
        digest.update(text.encode() + b"\0")
    folder = cache_dir() / f"tokens{length}-{digest.hexdigest()[:12]}"

    def make() -> tuple[dict, dict]:
        began, tokenizer = time.perf_counter(), open_tokenizer(tokenizer_file, length)
        parts = [encode(tokenizer, texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK)]
        ids, mask = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return {"ids": ids, "mask": mask}, {"texts": len(texts), "seconds": time.perf_counter() - began}

    _, arrays = made_once(folder, make, f"tokenizing {len(texts):,} texts")
    return arrays["ids"], arrays["mask"]


class TokenDataset(PickledByPath):
    """Map-style: index -> (int64 ids [length], float32 mask [length], int label), from the cached ids or, `fresh`, from the text itself:
    what one request costs. Memory maps are pickled by path."""

    def __init__(self, texts: Sequence[str], labels: np.ndarray, tokenizer_file: str, length: int, *, fresh: bool = False) -> None:
        self.labels, self.fresh = labels, fresh
        if fresh:
            self.texts, self.tokenizer = texts, open_tokenizer(tokenizer_file, length)
        else:
            self.ids, self.mask = encoded(texts, tokenizer_file, length)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple:
        import numpy as np
        import torch

        if self.fresh:
            ids, mask = (array[0] for array in encode(self.tokenizer, [self.texts[index]]))
        else:
            ids, mask = self.ids[index], self.mask[index]
        return torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(mask.astype(np.float32)), int(self.labels[index])


def _of_pieces(path: Path):
    """XLNet's sentencepiece model as a tokenizers.Tokenizer: pieces, scores, and the normalisation of tokenizer.json."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    tokenizer = Tokenizer(models.Unigram([(piece.piece, piece.score) for piece in model.pieces], unk_id=0))
    charsmap = model.normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(), normalizers.StripAccents(),
        *([normalizers.Precompiled(charsmap)] if charsmap else [])])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return _ending(tokenizer)


def _ending(tokenizer):
    """The tokenizer with <sep> <cls> after each text."""
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(single="$A:0 <sep>:0 <cls>:2", special_tokens=[("<sep>", 4), ("<cls>", 3)])
    return tokenizer


def _trained(texts: Sequence[str]):
    """Byte-pair encoding with XLNet's special tokens and its '<text> <sep> <cls>'. Equal texts give an equal tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=TRAINED_PIECES, min_frequency=2, special_tokens=list(SPECIAL),
                                                             show_progress=False))
    return _ending(tokenizer)


def keep(path: Path, tokenizer) -> None:
    """Write a tokenizer into the cache, whole or not at all. Raises HpmlError where it cannot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
            file.write(tokenizer.to_str())
        os.replace(file.name, path)
    except OSError as error:
        raise HpmlError(f"cannot write the cache {path}: {error.strerror or error}") from None
