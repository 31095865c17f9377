"""CLIP (Radford et al., 2021, arXiv:2103.00020), ViT-B/32, on driving frames with captions: BDD100K, CamVid, a stand-in.

Two towers embed a frame and a caption into one space; training pulls the right pairs together. Captions are made from attributes and
repeat, so the right answer to a query is every item with the same attributes, in the loss and in the figures alike. Inference engines
run the image tower, as an index of pictures does; the captions are embedded once by the FP32 text tower of the same weights.
"""

from hpml.workloads import _towers

NAME = "clip"
TITLE = "CLIP ViT-B/32"
TASK = "frames and captions"
METRIC = "recall@1, image to text"
MARGIN = 0.02
MARGIN_REASON = "two points: with 500 test frames the standard error of a recall near 85 % is 1.6 points"
PARAMETERS = 151_277_313  # both towers, both projections and the temperature, at 224 pixels (transformers' CLIPModel)
# The published weights as transformers reads them; they fit frames of 224 pixels. Positions are no weights any more.
PRETRAINED = {"url": "https://huggingface.co/openai/clip-vit-base-patch32/resolve/main/pytorch_model.bin",
              "file": "clip-vit-base-patch32/pytorch_model.bin", "beside": (".position_ids",),
              "sha256": "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f"}
LEARNING_RATE = {"sgd": 0.02, "adam": 0.001}
INPUT_NAMES, OUTPUT_NAMES = ("images",), ("embeddings",)
PARTS = {"text": {"TITLE": f"{TITLE}, text tower", "INPUT_NAMES": ("input_ids",), "of": _towers.text_tower,
                  "example_inputs": _towers.example_inputs, "dataset": _towers.dataset}}  # the whole, in inference, is the image tower
SOURCES = ("bdd100k", "camvid")
WITHOUT = ("stem",)
CONTEXT = 77  # positions of the text tower
START_SCALE, MOST_SCALE = 1 / 0.07, 100.0  # 1 / temperature: where it starts, and the most that it may become (section 2.5)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's own training images
PATCH = {"base": 32, "small": 16}
# The published architecture, and one that a CPU trains in a minute. Both take the published 49,408 pieces.
VARIANTS = {
    "base": {"projection": 512, "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                                           "num_attention_heads": 12},
             "text": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}},
    "small": {"projection": 128, "vision": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
                                            "num_attention_heads": 2},
              "text": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2}},
}
# Embeddings have the length 1, so their 512 numbers are near 0.04 and a bound for each says little: what decides is the direction (the
# lowest cosine of a sample) and the ranking (`agreement`). FP32: the order of additions. BF16 keeps 8 bits of mantissa through 12
# layers, FP16 11. INT8: the direction and most of the ranking must stay; published INT8 embeddings are noticeably worse.
PARITY = {
    "fp32": {"atol": 1e-3, "rtol": 1e-2, "top1_agreement": 0.99, "cosine": 0.9999},
    "fp16": {"atol": 1e-2, "rtol": 5e-2, "top1_agreement": 0.98, "cosine": 0.999},
    "bf16": {"atol": 3e-2, "rtol": 2e-1, "top1_agreement": 0.95, "cosine": 0.99},
    "int8": {"range_share": 0.8, "rtol": 0.0, "top1_agreement": 0.85, "cosine": 0.9},
}
INT8_OPS = ("MatMul", "Gemm")  # attention: an additive mask would take the whole range of its sum
# Sizes by tier and phase: only here. Speed rows carry the published architecture; the quality rows of a CPU carry the small variant.
_SMALL = {"variant": "small", "image": 64, "length": 24}
SIZES = {
    "smoke": {
        "train": {"batch": 2, "image": 64, "length": 24, "train_samples": 36, "test_samples": 36, "optimizer": "adam"},
        "fit": {**_SMALL, "batch": 36, "epochs": 2, "train_samples": 360, "test_samples": 108, "schedule": "onecycle", "optimizer": "adam"},
        "infer": {"batch": 1, "image": 64, "length": 24, "train_samples": 72, "test_samples": 36},
        "quality": {**_SMALL, "batch": 36, "test_samples": 108},
        "data": {"batch": 16, "image": 224, "length": 24, "train_samples": 108, "test_samples": 36, "storage": "jpeg"},
        "protocol": {"warmup": 1, "min_iters": 3, "min_seconds": 0.0, "rounds": 1},
    },
    "cpu": {
        "train": {"batch": 4, "image": 160, "length": 24, "train_samples": 360, "test_samples": 108, "optimizer": "adam",
                  "storage": "jpeg"},
        "fit": {**_SMALL, "batch": 72, "epochs": 8, "train_samples": 3_600, "test_samples": 500, "schedule": "onecycle",
                "optimizer": "adam"},
        "infer": {"batch": 1, "image": 224, "length": 24, "train_samples": 360, "test_samples": 500},
        "quality": {**_SMALL, "batch": 36, "test_samples": 500},
        "data": {"batch": 16, "image": 224, "length": 24, "train_samples": 720, "test_samples": 108, "storage": "jpeg"},
        "protocol": {"warmup": 2, "min_iters": 4, "min_seconds": 1.0, "rounds": 3},
    },
    "gpu": {
        "train": {"batch": 64, "image": 224, "length": CONTEXT, "train_samples": 20_000, "optimizer": "adam", "workers": 8,
                  "storage": "jpeg"},
        "fit": {"batch": 128, "image": 224, "length": 32, "epochs": 10, "train_samples": 20_000, "test_samples": 5_000,
                "schedule": "onecycle", "optimizer": "adam", "lr": 1e-4, "workers": 8, "storage": "jpeg"},
        "infer": {"batch": 1, "image": 224, "length": CONTEXT, "test_samples": 5_000},
        "quality": {"batch": 64, "image": 224, "length": 32, "test_samples": 5_000},
        "data": {"batch": 64, "image": 224, "length": CONTEXT, "train_samples": 20_000, "storage": "jpeg"},
        "protocol": {"warmup": 10, "min_iters": 20, "min_seconds": 2.0, "rounds": 3},
    },
    # The paper's pre-training of 32 epochs with a cosine from 5e-4 for ViT-B/32 (tables 18 and 19), over BDD100K's frames; its batch
    # of 32,768 is out of one machine's reach.
    "full": {
        "train": {"batch": 256, "image": 224, "length": CONTEXT, "optimizer": "adam", "workers": 8, "storage": "jpeg"},
        "fit": {"batch": 256, "image": 224, "length": CONTEXT, "epochs": 32, "schedule": "cosine", "optimizer": "adam", "lr": 5e-4,
                "workers": 8, "storage": "jpeg"},
        "infer": {"batch": 1, "image": 224, "length": CONTEXT},
        "quality": {"batch": 256, "image": 224, "length": CONTEXT},
        "data": {"batch": 256, "image": 224, "length": CONTEXT, "storage": "jpeg"},
        "protocol": {"warmup": 10, "min_iters": 50, "min_seconds": 5.0, "rounds": 6},
    },
}


def _place(knobs: dict):
    """(module, folder) of the real frames that the knobs mean; None for the stand-in.

    `auto` takes BDD100K where it is. Its folders of a few frames without a split serve steady steps and the loader as far as they fill a
    batch; what needs a quality (whole trainings, and inference with what they left) then takes the stand-in: so few cannot test.
    """
    from hpml.data import bdd100k, camvid
    from hpml.env import HpmlError

    source = knobs["data"]
    if source not in ("auto", "real", "standin", *SOURCES):
        raise HpmlError(f"data source {source!r} is unknown; choose one of: auto, real, standin, {', '.join(SOURCES)}")
    if source == "camvid":
        return camvid, camvid.find()
    path = None if source == "standin" else bdd100k.find()
    judged = bool(knobs.get("epochs")) or "workers" not in knobs
    few = path and source == "auto" and bdd100k.layout(path) == "single" and (
        judged or knobs.get("batch", 1) > sum(1 for _ in (path / "images").iterdir()))
    return (bdd100k, path) if source in ("real", "bdd100k") or path and not few else None


def data(knobs: dict):
    """The frames that the knobs ask for with their tokenizer, cut to train_samples and test_samples (combinations take turns, seed 0)."""
    from hpml.data import bpe, captions, road
    from hpml.data.images import subset

    place = _place(knobs)
    frames = place[0].load(path=place[1]) if place else road.load()
    return subset(bpe.with_tokenizer(frames, captions.every()), knobs["train_samples"], knobs["test_samples"], 0)


def identity(knobs: dict) -> str:
    """What the knob `data` stands for on this machine: files, sizes and change times of the frames and of the published tokenizer."""
    from hpml.data import bpe

    place, tokenizer = _place(knobs), bpe.published()
    return f"{knobs['data']} {place[0].identity(place[1]) if place and place[1] else ''} {tokenizer and tokenizer.stat().st_mtime_ns}"


def dataset(knobs: dict, frames, *, train: bool):
    """Map-style data set of (float32 [3, image, image], int64 ids [length] of a caption, class index)."""
    from hpml.data import jpegfiles
    from hpml.data.captions import CaptionDataset
    from hpml.data.images import ImageDataset

    storage, look = knobs.get("storage", "array"), {"image": knobs["image"], "mean": MEAN, "std": STD}
    if isinstance(frames, jpegfiles.FileSet):
        pictures = jpegfiles.dataset(frames, train=train, storage=storage, tall=True, **look)
    else:
        images, labels = (frames.train_images, frames.train_labels) if train else (frames.test_images, frames.test_labels)
        pictures = ImageDataset(images, labels, train=train, storage=storage, flip=frames.mirror_ok, **look)
    return CaptionDataset(pictures, frames.classes, frames.tokenizer_file, knobs["length"], train=train)


def model(knobs: dict, classes: int):
    """transformers' CLIPModel with random weights. Given frames and captions, (float [N, 3, image, image], ids [N, length]): their scaled
    similarities [N, N]; with `pairs`, what these are made of: embeddings of frames and of captions [N, 512] and the scale. Given frames
    alone, as in inference: embeddings of length 1. `classes` says nothing here.

    The text's embedding is read at its last id, which is the highest one, as in the published code. Raises HpmlError for a text longer
    than 77 tokens or a frame smaller than one patch.
    """
    import math
    import warnings

    import torch

    from hpml.env import HpmlError

    with warnings.catch_warnings():  # in a notebook tqdm warns that its bars stay plain, which is what is wanted there
        warnings.filterwarnings("ignore", message="IProgress not found")
        from transformers import CLIPConfig, CLIPModel

    variant, image = knobs.get("variant", "base"), knobs.get("image", 224)
    if knobs.get("length", CONTEXT) > CONTEXT:
        raise HpmlError(f"length={knobs['length']}: {TITLE} has {CONTEXT} positions for a text")
    if image < PATCH[variant]:
        raise HpmlError(f"image={image}: {TITLE} cuts a frame into patches of {PATCH[variant]} pixels")

    class Towers(CLIPModel):
        def embed_text(self, input_ids):
            return torch.nn.functional.normalize(self.get_text_features(input_ids=input_ids).pooler_output, dim=-1)

        def forward(self, images, input_ids=None, pairs=False):
            frames = torch.nn.functional.normalize(self.get_image_features(pixel_values=images).pooler_output, dim=-1)
            if input_ids is None:
                return frames
            texts, scale = self.embed_text(input_ids), self.logit_scale.clamp(max=math.log(MOST_SCALE)).exp()
            return (frames, texts, scale) if pairs else scale * frames @ texts.T

    sizes = VARIANTS[variant]
    return Towers(CLIPConfig(projection_dim=sizes["projection"], logit_scale_init_value=math.log(START_SCALE),
                             text_config={**sizes["text"], "projection_dim": sizes["projection"], "eos_token_id": 2},  # 2: the highest id
                             vision_config={**sizes["vision"], "projection_dim": sizes["projection"], "image_size": image,
                                            "patch_size": PATCH[variant]}))


def loss(outputs, targets):
    """CLIP's symmetric cross-entropy of the similarities, summed over the micro-batch: the caller divides by the true count.

    outputs [N, N]: row = frame, column = caption; targets [N]: classes. Where a class stands in the batch more than once its items share
    the target (UniCL, Yang et al., 2022, arXiv:2204.03610); without repeats it is the paper's loss. Of replicas [N, n]: n pairs each,
    which are contrasted among themselves.
    """
    import torch

    logits = outputs.float().view(-1, outputs.shape[1], outputs.shape[1])
    groups = targets.view(len(logits), -1)
    same = (groups[:, :, None] == groups[:, None, :]).float()
    wanted = same / same.sum(2, keepdim=True)  # symmetric: rows and columns have the same counts
    rows, columns = (torch.log_softmax(way, dim=2) for way in (logits, logits.transpose(1, 2)))
    return -(wanted * (rows + columns)).sum() / 2


def contrast(frames, texts, scale, targets, all_frames, all_texts, all_targets):
    """The same loss of some pairs, [n, dim] and targets [n], among all: each of their frames over all captions [N, dim], each of their
    captions over all frames; summed over the n. The sum over all parts is `loss` of the whole."""
    import torch

    same = (targets[:, None] == all_targets).float()
    rows, columns = torch.log_softmax(scale * frames @ all_texts.T, dim=1), torch.log_softmax(scale * texts @ all_frames.T, dim=1)
    return -(same / same.sum(1, keepdim=True) * (rows + columns)).sum() / 2


def split(batch) -> tuple[tuple, object]:
    """A collated batch as (inputs of the model, targets)."""
    return (batch[0], batch[1]), batch[2]


def example_inputs(knobs: dict, batch: int) -> tuple:
    """Seeded inputs: frames [batch, 3, image, image]; for a training, whose knobs hold an optimizer, with captions [batch, length]."""
    import torch

    random = torch.Generator().manual_seed(0)
    frames = torch.randn(batch, 3, knobs["image"], knobs["image"], generator=random)
    if "optimizer" not in knobs:
        return (frames,)
    ids = torch.randint(1, 500, (batch, knobs["length"]), generator=random)
    ids[:, -1] = 49_407
    return frames, ids


def agreement(wanted, got) -> float:
    """Share of comparisons "sample a is nearer to the query than b", over all samples [N, dim] as queries, that come out alike."""
    import numpy as np

    if len(wanted) < 3:
        return 1.0
    orders = []
    for embeddings in (wanted, got):
        near = embeddings @ embeddings.T
        orders.append(np.sign(near[:, :, None] - near[:, None, :]))
    n = np.arange(len(wanted))
    query, a, b = np.meshgrid(n, n, n, indexing="ij")
    other = (query != a) & (query != b) & (a < b)
    return float((orders[0] == orders[1])[other].mean())


def likeness(wanted, got) -> dict[str, float]:
    """How alike two lists of embeddings [N, dim] are, in the words of a search: the lowest cosine, and neighbours in the same order."""
    import numpy as np

    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(got, axis=1)
    return {"lowest cosine": float(((wanted * got).sum(1) / lengths).min()), "neighbours in the same order": agreement(wanted, got)}


def lines_embedded(model, knobs: dict, frames, lines: list[str]):
    """Embeddings [N, dim] of length 1 of texts, by the model's own text tower as it is and the frames' tokenizer."""
    import torch

    from hpml.data import bpe

    tokenizer, device = bpe.open_tokenizer(frames.tokenizer_file, knobs["length"]), next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        return model.embed_text(torch.as_tensor(bpe.encode(tokenizer, lines), device=device)).float().cpu().numpy()


def prompts(model, knobs: dict, frames) -> dict:
    """What zero-shot compares a frame with: {"weather", "scene", "timeofday": (values, embeddings [values, templates, dim])}, of sentences
    that say this attribute alone, each by itself. Attributes of which no frame has a known value are left out."""
    from hpml.data.captions import ATTRIBUTES, UNKNOWN, attributes
    from hpml.data.captions import prompts as sentences

    found = {}
    for key in ATTRIBUTES:
        values = sorted({attributes(one)[key] for one in frames.classes} - {UNKNOWN})
        if values:
            rows = lines_embedded(model, knobs, frames, [line for value in values for line in sentences(key, value)])
            found[key] = values, rows.reshape(len(values), -1, rows.shape[1])
    return found


def texts(model, knobs: dict, frames) -> dict:
    """Embeddings of length 1 by the model's own text tower, as it is: {"captions": [classes, dim], one for each combination, by its first
    template; "weather", "scene", "timeofday": (values, [values, dim]), the mean over the templates of prompts that say that alone}."""
    import numpy as np

    from hpml.data.captions import captions

    found = {"captions": lines_embedded(model, knobs, frames, [captions(one)[0] for one in frames.classes])}
    for key, (values, each) in prompts(model, knobs, frames).items():
        means = each.mean(1)
        found[key] = values, means / np.linalg.norm(means, axis=1, keepdims=True)
    return found


def frames_embedded(predict, knobs: dict, frames) -> tuple:
    """(embeddings [N, dim] of the test frames that can be read, their classes [N]); `predict`: a tuple of arrays -> embeddings."""
    import numpy as np

    from hpml.data.loader import loader

    samples = dataset({**knobs, "storage": "array"}, frames, train=False)
    batches = loader(samples, {}, batch=max(knobs["batch"], 32), shuffle=False, seed=0)
    seen = np.concatenate([np.asarray(predict((images.numpy(),)), np.float32) for images, *_ in batches])
    labels = np.asarray(frames.test_labels)
    if hasattr(samples.frames, "bad"):
        read = samples.frames.bad.numpy() == 0
        seen, labels = seen[read], labels[read]
    return seen, labels


def evaluate(predict, knobs: dict, frames, texts: dict | None = None) -> dict:
    """How often a test frame's nearest caption says its attributes, all of them; `predict` embeds frames, `texts` are the captions'.

    Returns metric, value, right (bool [n]), n, chance, details (further figures, each with its chance), predictions and
    labels (classes), confidence: see `_retrieval.scores`. Frames that cannot be read do not count. Raises HpmlError without `texts`.
    """
    from hpml.env import HpmlError
    from hpml.workloads import _retrieval

    if texts is None:
        raise HpmlError(f"{NAME}: a frame's embedding alone has no score: give evaluate the captions' (workload.texts)")
    seen, labels = frames_embedded(predict, knobs, frames)
    return {"metric": METRIC, "informative": getattr(frames, "informative", True), **_retrieval.scores(seen, labels, frames.classes, texts)}
