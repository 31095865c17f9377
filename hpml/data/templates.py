"""A stand-in of the Amazon reviews: texts made from templates, for machines without the real ones.

Made to be learnable and not easy: an opinion can be negated ("far from useless"), a review can praise one thing and complain of
another before it comes to its verdict, and one in twelve gives its reader nothing to go by. It says nothing about how well a model
reads what people really write.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from hpml.data.images import read_stored, say, store
from hpml.env import HpmlError, cache_dir

if TYPE_CHECKING:
    import numpy as np

    from hpml.data.texts import ReviewSet

RECIPE = 2  # raised whenever other texts come out, so that old caches and records are not taken for new ones
SILENT = 0.08  # share of reviews without an opinion: their label cannot be known
MIXED = 0.2  # share that says the opposite first
NEGATED = 0.15  # share of opinions that negate a word of the other side
THINGS = ("blender", "novel", "soundtrack", "headset", "camera", "tent", "kettle", "puzzle", "lamp", "backpack", "toaster", "keyboard",
          "guitar", "jacket", "printer", "movie", "cookbook", "speaker", "watch", "drill", "stroller", "chair", "router", "game")
PARTS = ("battery", "cover", "sound", "handle", "manual", "screen", "plot", "price", "size", "packaging", "colour", "cable", "zipper",
         "service", "ending", "motor", "design", "fabric", "setup", "voice")
GOOD = ("excellent", "wonderful", "superb", "reliable", "delightful", "brilliant", "solid", "lovely", "impressive",
        "charming", "sturdy", "perfect")
BAD = ("awful", "useless", "flimsy", "horrible", "defective", "dreadful", "cheap", "boring", "disappointing",
       "shoddy", "clumsy", "broken")
NEGATIONS = ("not {}", "far from {}", "never {}", "anything but {}", "hardly {}")
OPINIONS = ("The {part} is {word}.", "I found the {part} {word}.", "Its {part} turned out to be {word}.", "{word} {part} if you ask me.",
            "My {person} called the {part} {word}.")
VERDICTS = ("In the end the {thing} is {word}.", "All in all {word}.", "Still, as a whole it is {word}.", "My verdict is {word}.")
FACTS = ("I bought this {thing} {days} days ago.", "It came in a box with a spare {part}.", "My {person} has the same {thing}.",
         "We used it {days} times on the trip.", "The order number ended in {days}.", "I read {days} other reviews first.",
         "It replaces a {thing} from {year}.", "The {part} weighs about {days} ounces.", "It sits next to the {thing} now.")
PEOPLE = ("sister", "neighbour", "father", "boss", "daughter", "friend", "teacher", "cousin")


def load(n_train: int = 4000, n_test: int = 1000, seed: int = 0) -> ReviewSet:
    """`n_train` + `n_test` reviews, equal for equal arguments; the classes take turns and no text stands twice. Made once, then mapped."""
    from hpml.data.texts import ReviewSet, Texts

    checksum = hashlib.sha256(f"reviews recipe {RECIPE}, {n_train} + {n_test}, seed {seed}".encode()).hexdigest()
    folder = cache_dir() / f"reviews-{checksum[:12]}"
    if read_stored(folder) is None:
        began, arrays = time.perf_counter(), {}
        texts, labels = written(n_train + n_test, seed=seed)
        for part, cut in (("train", slice(0, n_train)), ("test", slice(n_train, None))):
            packed = Texts.of(texts[cut])
            arrays |= {f"{part}_bytes": packed.data, f"{part}_offsets": packed.offsets, f"{part}_labels": labels[cut]}
        store(folder, arrays, {"checksum": checksum})
        say(f"writing the stand-in reviews once: {time.perf_counter() - began:.1f} s")
    stored = read_stored(folder)
    if stored is None:
        raise HpmlError(f"the cache {folder} cannot be read back; delete it and try again")
    return ReviewSet(name="standin", title="templated reviews", origin="stand-in", checksum=checksum,
                     note="generated, not written by people",
                     **{f"{part}_texts": Texts(stored[1][f"{part}_bytes"], stored[1][f"{part}_offsets"]) for part in ("train", "test")},
                     **{f"{part}_labels": stored[1][f"{part}_labels"] for part in ("train", "test")})


def written(n: int, *, seed: int) -> tuple[list[str], np.ndarray]:
    """`n` different reviews and their labels, 0 negative and 1 positive in turn."""
    import numpy as np

    rng = np.random.default_rng([seed, RECIPE])
    texts: dict[str, None] = {}
    while len(texts) < n:  # a text that was there is written anew
        texts.setdefault(_review(rng, positive=len(texts) % 2 == 1))
    return list(texts), np.arange(n, dtype=np.int64) % 2


def _review(rng: np.random.Generator, *, positive: bool) -> str:
    def pick(options):
        return options[int(rng.integers(len(options)))]

    def filled(template: str, word: str = "") -> str:
        text = template.format(word=word, thing=thing if rng.random() < 0.7 else pick(THINGS), part=pick(PARTS), person=pick(PEOPLE),
                               days=int(rng.integers(2, 99)), year=int(rng.integers(1990, 2012)))
        return text[0].upper() + text[1:]

    def word(good: bool) -> str:
        return pick(NEGATIONS).format(pick(BAD if good else GOOD)) if rng.random() < NEGATED else pick(GOOD if good else BAD)

    thing, kind = pick(THINGS), rng.random()
    facts = [filled(pick(FACTS)) for _ in range(int(rng.integers(1 if kind < SILENT else 0, 3)))]
    if kind < SILENT:
        said = []
    elif kind < SILENT + MIXED:
        said = [filled(pick(OPINIONS), word(not positive)), filled(pick(VERDICTS), word(positive))]
    else:
        said = [filled(pick(OPINIONS), word(positive)) for _ in range(int(rng.integers(1, 3)))]
    for fact in facts:  # somewhere between the opinions, whose order stays
        said.insert(int(rng.integers(len(said) + 1)), fact)
    return f"{pick(('A', 'This', 'My new', 'Another'))} {thing}: {' '.join(said)}"
