"""XLNet (Yang et al., 2019, arXiv:1906.08237) as a classifier of Amazon reviews by polarity; a stand-in where those are absent."""

NAME = "xlnet"
TITLE = "XLNet"
TASK = "polarity of reviews"
METRIC = "accuracy"
MARGIN = 0.02
MARGIN_REASON = "two points: with 1,000 test reviews the standard error of an accuracy near 85 % is 1.1 points"
PARAMETERS = 117_310_466  # base, two classes: transformers' XLNetForSequenceClassification
LEARNING_RATE = {"sgd": 0.02, "adam": 0.001}
INPUT_NAMES, OUTPUT_NAMES = ("input_ids", "attention_mask"), ("logits",)
SOURCES = ("amazon",)
WITHOUT = ("image", "storage", "stem", "memory_format")  # a text has no pixels, and its ids are cached in one way
CLS = 3  # the last token of every text; what is read off it becomes the answer
# The published architecture, and one that a CPU trains in a minute. Both take the published tokenizer's 32,000 pieces. A small width
# needs larger first weights (about 1 / sqrt(width)), and a few hundred steps learn without dropout.
VARIANTS = {"base": {"n_layer": 12, "d_model": 768, "n_head": 12, "d_inner": 3072},
            "small": {"n_layer": 2, "d_model": 256, "n_head": 4, "d_inner": 1024, "initializer_range": 0.05, "dropout": 0.0}}
# Outputs of the same weights in another engine. FP32: only the order of additions differs, and LayerNorm keeps every layer's output
# at one scale; BF16 keeps 8 bits of mantissa through 12 layers, so logits move in the second digit. INT8: a product's error is a
# 256th of its range and 12 layers add it up, so a logit may move by a good share of their range; what counts is the answer. Two logits
# have no direction to speak of (their cosine turns over at every near tie): none is asked for.
PARITY = {
    "fp32": {"atol": 1e-3, "rtol": 1e-2, "top1_agreement": 0.99},
    "fp16": {"atol": 2e-2, "rtol": 5e-2, "top1_agreement": 0.98},
    "bf16": {"atol": 2e-1, "rtol": 2e-1, "top1_agreement": 0.95},
    "int8": {"range_share": 0.5, "rtol": 0.0, "top1_agreement": 0.85},
}
INT8_OPS = ("MatMul", "Gemm")  # attention: an additive mask would take the whole range of its sum
# Sizes by tier and phase: only here. Speed rows carry the base variant. On a CPU the quality rows carry the small one: base would need
# an hour where small needs a minute; from the gpu tier on, the published architecture is trained.
SIZES = {
    "smoke": {
        "train": {"batch": 2, "length": 16, "train_samples": 32, "test_samples": 40, "optimizer": "adam"},
        "fit": {"batch": 32, "length": 32, "variant": "small", "epochs": 1, "train_samples": 256, "test_samples": 100,
                "schedule": "onecycle", "optimizer": "adam"},
        "infer": {"batch": 1, "length": 16, "train_samples": 64, "test_samples": 40},
        "quality": {"batch": 32, "length": 32, "variant": "small", "test_samples": 100},
        "data": {"batch": 16, "length": 32, "train_samples": 256, "test_samples": 40},
        "protocol": {"warmup": 1, "min_iters": 3, "min_seconds": 0.0, "rounds": 1},
    },
    "cpu": {
        "train": {"batch": 4, "length": 32, "train_samples": 1_000, "test_samples": 400, "optimizer": "adam"},
        "fit": {"batch": 32, "length": 32, "variant": "small", "epochs": 3, "train_samples": 2_000, "test_samples": 1_000,
                "schedule": "onecycle", "optimizer": "adam"},
        "infer": {"batch": 1, "length": 64, "train_samples": 1_000, "test_samples": 1_000},
        "quality": {"batch": 32, "length": 32, "variant": "small", "test_samples": 1_000},
        "data": {"batch": 32, "length": 32, "train_samples": 2_000, "test_samples": 400},
        "protocol": {"warmup": 3, "min_iters": 4, "min_seconds": 1.0, "rounds": 3},
    },
    "gpu": {
        "train": {"batch": 32, "length": 128, "train_samples": 20_000, "test_samples": 10_000, "optimizer": "adam"},
        "fit": {"batch": 32, "length": 128, "epochs": 3, "train_samples": 100_000, "test_samples": 10_000, "schedule": "onecycle",
                "optimizer": "adam", "lr": 5e-5},
        "infer": {"batch": 1, "length": 128, "train_samples": 20_000, "test_samples": 10_000},
        "quality": {"batch": 64, "length": 128, "test_samples": 10_000},
        "data": {"batch": 32, "length": 128, "train_samples": 20_000},
        "protocol": {"warmup": 10, "min_iters": 20, "min_seconds": 2.0, "rounds": 3},
    },
    # The paper's fine-tuning of text classification (512 tokens, batch 32, Adam), on all 3,600,000 reviews.
    "full": {
        "train": {"batch": 32, "length": 512, "optimizer": "adam"},
        "fit": {"batch": 32, "length": 512, "epochs": 1, "schedule": "onecycle", "optimizer": "adam", "lr": 2e-5},
        "infer": {"batch": 1, "length": 512},
        "quality": {"batch": 32, "length": 512},
        "data": {"batch": 32, "length": 512},
        "protocol": {"warmup": 10, "min_iters": 50, "min_seconds": 5.0, "rounds": 6},
    },
}


def data(knobs: dict):
    """The ReviewSet that the knobs ask for, with its tokenizer, cut to train_samples and test_samples (class-balanced, seeded by 0)."""
    from hpml.data import reviews, tokens

    whole = tokens.with_tokenizer(reviews.open_reviews(knobs["data"]))
    return reviews.subset(whole, knobs["train_samples"], knobs["test_samples"], 0)


def identity(knobs: dict) -> str:
    """What the knob `data` stands for on this machine: files, sizes and change times of the reviews and of the published tokenizer."""
    from hpml.data import reviews, tokens

    here = reviews.find() if knobs["data"] != "standin" else None
    files = [*(sorted(here.glob("*.csv")) if here and here.is_dir() else [here]), tokens.published()]
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file]
    return f"{knobs['data']} {facts}"


def dataset(knobs: dict, reviews, *, train: bool):
    """Map-style data set of (int64 ids [length], float32 mask [length], class index). Test texts are tokenized when they are asked for:
    that is the preprocessing of a request; training takes ids that were made once."""
    from hpml.data.tokens import TokenDataset

    texts, labels = (reviews.train_texts, reviews.train_labels) if train else (reviews.test_texts, reviews.test_labels)
    return TokenDataset(texts, labels, reviews.tokenizer_file, knobs["length"], fresh=not train)


def model(knobs: dict, classes: int):
    """transformers' XLNet with a classification head, random weights: (ids [N, length], float mask [N, length]) -> logits [N, classes].

    One stream, no memory of earlier segments. The mask is a float input, so the graph exports with a free batch. As in the paper's
    fine-tuning, <cls> (the last token) is a segment of its own. The embedding of masked words belongs to pre-training: no gradient.
    """
    import warnings

    with warnings.catch_warnings():  # in a notebook tqdm warns that its bars stay plain, which is what is wanted there
        warnings.filterwarnings("ignore", message="IProgress not found")
        from transformers import XLNetConfig, XLNetForSequenceClassification

    class Classifier(XLNetForSequenceClassification):
        def forward(self, input_ids, attention_mask):
            segments = 2 * (input_ids == CLS).long()
            return super().forward(input_ids, attention_mask=attention_mask, token_type_ids=segments, use_mems=False, return_dict=False)[0]

    net = Classifier(XLNetConfig(vocab_size=32_000, num_labels=classes, use_mems_eval=False, use_mems_train=False,
                                 **VARIANTS[knobs.get("variant", "base")]))
    net.transformer.mask_emb.requires_grad_(False)
    return net


def loss(outputs, targets):
    """Summed cross-entropy over the micro-batch: the caller divides by the true count. outputs [N, classes], targets [N]."""
    import torch

    return torch.nn.functional.cross_entropy(outputs.float(), targets, reduction="sum")


def split(batch) -> tuple[tuple, object]:
    """A collated batch as (inputs of the model, targets)."""
    return (batch[0], batch[1]), batch[2]


def example_inputs(knobs: dict, batch: int) -> tuple:
    """Seeded inputs for export: ids [batch, length] and a mask that leaves the first quarter out, as padding does."""
    import torch

    ids = torch.randint(7, 32_000, (batch, knobs["length"]), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(batch, knobs["length"])
    mask[:, : knobs["length"] // 4] = 0
    return ids, mask


def evaluate(predict, knobs: dict, reviews) -> dict:
    """Accuracy of `predict` (ids, mask -> logits [N, 2]) over the test reviews, by one loader for all engines.

    Returns metric, value, right (bool [n]), n, chance (the larger class) and the predictions with their probabilities.
    """
    import numpy as np

    from hpml.data.tokens import encoded

    ids, mask = encoded(reviews.test_texts, reviews.tokenizer_file, knobs["length"])
    batch, labels = max(knobs["batch"], 32), np.asarray(reviews.test_labels)
    logits = np.concatenate([np.asarray(predict((ids[i:i + batch].astype(np.int64), mask[i:i + batch].astype(np.float32))), np.float32)
                             for i in range(0, len(labels), batch)])
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    right = logits.argmax(axis=1) == labels
    return {"metric": METRIC, "value": float(right.mean()), "right": right, "n": len(labels),
            "chance": float(np.bincount(labels).max() / len(labels)), "predictions": logits.argmax(axis=1), "labels": labels,
            "confidence": (exponent / exponent.sum(1, keepdims=True)).max(axis=1)}
