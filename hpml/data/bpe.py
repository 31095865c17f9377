"""CLIP's byte-pair encoding: the published vocabulary where it is on disk, else one trained on the captions.

Both have CLIP's rules (lower case, its splitting of words, bytes as the alphabet) by transformers' CLIPTokenizer. The last id is the end
of a text, whose state becomes the text's embedding; what is padded behind it is never looked at.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpml.data.tokens import keep
from hpml.env import HpmlError, cache_dir, data_dir

if TYPE_CHECKING:
    import numpy as np

    from hpml.data.images import ImageSet

FILE = "clip/bpe_simple_vocab_16e6.txt.gz"
SIZE = 49_408  # pieces of the published vocabulary: 2 x 256 bytes, the merges, start and end
MERGES = SIZE - 2 * 256 - 2
START, END = "<|startoftext|>", "<|endoftext|>"
TRAINED_PIECES = 1_000


def published() -> Path | None:
    """The published merges in $HPML_WEIGHTS or in the data folder's `tokenizers`, or None. Nothing is downloaded."""
    places = [Path(folder).expanduser() for folder in filter(None, [os.environ.get("HPML_WEIGHTS")])] + [data_dir() / "tokenizers"]
    return next((place / FILE for place in places if (place / FILE).is_file()), None)


def with_tokenizer(frames: ImageSet, texts: Sequence[str]) -> ImageSet:
    """The frames with the tokenizer that reads their captions, named: the published one, else one trained on `texts`."""
    path = published()
    if path:
        return replace(frames, tokenizer=f"CLIP's byte-pair encoding ({path.name}), published", tokenizer_file=str(path))
    digest = hashlib.sha256(f"bpe {TRAINED_PIECES} {texts}".encode()).hexdigest()
    path = cache_dir() / f"bpe-{digest[:12]}.json"
    if not path.is_file():
        keep(path, _trained(texts))
    return replace(frames, tokenizer=f"byte-pair encoding of at most {TRAINED_PIECES:,} pieces, trained on the captions",
                   tokenizer_file=str(path))


def open_tokenizer(path: str | Path, length: int):
    """A tokenizers.Tokenizer of <|startoftext|> text <|endoftext|>, cut and padded on the right to `length` ids.

    Raises HpmlError with the file's name for a damaged one.
    """
    from tokenizers import Tokenizer

    path = Path(path)
    try:
        tokenizer = _of_merges(path) if path.suffix == ".gz" else Tokenizer.from_file(str(path))
    except Exception as error:  # whatever a damaged file provokes; the library raises plain Exception
        raise HpmlError(f"{path}: not CLIP's tokenizer ({str(error).splitlines()[0][:100]})") from None
    last = tokenizer.get_vocab_size() - 1
    if (tokenizer.token_to_id(START), tokenizer.token_to_id(END)) != (last - 1, last):
        raise HpmlError(f"{path}: not CLIP's tokenizer: start and end of a text are not its last two ids")
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(direction="right", pad_id=last, pad_token=END, length=length)
    return tokenizer


def encode(tokenizer, texts: Sequence[str]) -> np.ndarray:
    """ids int64 [N, length]."""
    import numpy as np

    return np.array([one.ids for one in tokenizer.encode_batch_fast(list(texts))], np.int64)


def _of_merges(path: Path):
    """The published file: one merge a line behind a line with its version. Ids: the bytes, the bytes at a word's end, the merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : MERGES + 1]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"damaged: {error}") from None
    merges = [tuple(line.split()) for line in lines]
    if len(merges) != MERGES or any(len(merge) != 2 for merge in merges):
        raise ValueError(f"{MERGES:,} merges are expected")
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = [chr(code) for code in printable] + sorted(set(ByteLevel.alphabet()) - {chr(code) for code in printable})
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(merge) for merge in merges)]
    return _clip({piece: number for number, piece in enumerate(pieces)}, merges)


def _clip(vocabulary: dict[str, int], merges: list[tuple[str, str]]):
    """transformers' CLIPTokenizer of these pieces, with start and end behind them."""
    import warnings

    with warnings.catch_warnings():  # in a notebook tqdm warns that its bars stay plain, which is what is wanted there
        warnings.filterwarnings("ignore", message="IProgress not found")
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

    vocabulary = {**vocabulary, START: len(vocabulary), END: len(vocabulary) + 1}
    return CLIPTokenizer(vocab=vocabulary, merges=merges).backend_tokenizer


def _trained(texts: Sequence[str]):
    """Byte-pair encoding of the texts under CLIP's rules. Equal texts give an equal tokenizer."""
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel

    rules, plain = _clip({}, []), Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    plain.normalizer, plain.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    plain.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=TRAINED_PIECES, initial_alphabet=sorted(ByteLevel.alphabet()),
                                                         end_of_word_suffix="</w>", show_progress=False))
    made = json.loads(plain.to_str())["model"]
    # Every byte also at a word's end: else a word that was never seen would lose its last letter.
    for letter in sorted(ByteLevel.alphabet()):
        made["vocab"].setdefault(letter + "</w>", len(made["vocab"]))
    return _clip(made["vocab"], [tuple(merge) for merge in made["merges"]])
