"""DeepLabV3-ResNet101 (Chen et al., 2017, arXiv:1706.05587) as a segmenter of cats and dogs: Oxford-IIIT Pet, a stand-in.

Three classes: pet, background and boundary, the seam that the trimaps leave "not classified". The boundary is a class of its own:
it is trained and scored like the others, and the mean IoU is over all three. What pet and background reach where the
boundary's pixels are left out stands beside it in the record. Every figure belongs to its resolution: masks are scored at the
side of the input, where they were resized to by the nearest pixel.
"""

NAME = "deeplabv3"
TITLE = "DeepLabV3-ResNet101"
TASK = "segmentation"
METRIC = "mean IoU"
MARGIN = 0.01
MARGIN_REASON = "one point: MLPerf Inference lets its segmentation model (3D U-Net) lose 1 % of what FP32 reaches"
PARAMETERS = 60_996_202  # with 21 classes and the auxiliary head (torchvision)
# torchvision's weights, trained on COCO train2017 with VOC's 21 classes; the last layer of both heads is replaced.
PRETRAINED = {"torchvision": "DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1", "heads": ("classifier.4.", "aux_classifier.4.")}
LEARNING_RATE = {"sgd": 0.02, "adam": 0.001}
INPUT_NAMES, OUTPUT_NAMES = ("images",), ("logits",)
SOURCES = ("pets",)
WITHOUT = ("length", "stem")
AUXILIARY_WEIGHT = 0.5  # of the auxiliary head's loss, as in torchvision's reference training
LEAST_BATCH = 2  # the pooled branch of the ASPP has one value for each sample, which BatchNorm cannot normalise alone
# Outputs of the same weights in another engine, over every pixel's logits. FP32: only the order of additions differs, 104 layers deep.
# BF16 keeps 8 bits of mantissa, FP16 11: logits move in the second or third digit, and the answers decide: the share of pixels with the
# same class. A pixel on an outline lies between two classes and flips at a small change, so a few in a hundred may differ. INT8 has 256
# steps for the whole range of a tensor, an error that the layers add up: its direction and nine answers in ten must stay; whether
# the IoU is kept is the quality pass's to say.
PARITY = {
    "fp32": {"atol": 1e-3, "rtol": 1e-2, "top1_agreement": 0.999},
    "fp16": {"atol": 1e-1, "rtol": 5e-2, "top1_agreement": 0.99},
    "bf16": {"atol": 5e-1, "rtol": 2e-1, "top1_agreement": 0.98},
    "int8": {"range_share": 0.5, "rtol": 0.0, "top1_agreement": 0.9, "cosine": 0.9},
}
# Inputs shrink at the small tiers, never the architecture of a speed row: one step takes seconds on two cores at 224 pixels.
_SMOKE = {"batch": 2, "image": 64, "train_samples": 16, "test_samples": 8, "optimizer": "adam"}
SIZES = {
    "smoke": {
        "train": _SMOKE,
        "fit": {**_SMOKE, "epochs": 1, "train_samples": 8, "schedule": "onecycle"},
        "infer": {"batch": 1, "image": 32, "train_samples": 16, "test_samples": 8},
        "quality": {"batch": 8, "image": 64},
        "data": {"batch": 4, "image": 64, "train_samples": 64, "test_samples": 8},
        "protocol": {"warmup": 1, "min_iters": 2, "min_seconds": 0.0, "rounds": 1},
    },
    "cpu": {
        "train": {"batch": 2, "image": 96, "train_samples": 100, "test_samples": 40, "optimizer": "adam"},
        "fit": {"batch": 4, "image": 64, "epochs": 4, "train_samples": 100, "test_samples": 100, "schedule": "onecycle",
                "optimizer": "adam"},
        "infer": {"batch": 1, "image": 128, "train_samples": 100, "test_samples": 100},
        "quality": {"batch": 8, "image": 64},
        "data": {"batch": 16, "image": 128, "train_samples": 100, "test_samples": 40},
        "protocol": {"warmup": 2, "min_iters": 3, "min_seconds": 1.0, "rounds": 3},
    },
    "gpu": {
        "train": {"batch": 16, "image": 256},
        "fit": {"batch": 16, "image": 256, "epochs": 20, "schedule": "onecycle", "optimizer": "adam"},
        "infer": {"batch": 1, "image": 256},
        "quality": {"batch": 16, "image": 256},
        "data": {"batch": 16, "image": 256},
        "protocol": {"warmup": 10, "min_iters": 20, "min_seconds": 2.0, "rounds": 3},
    },
    # The paper's recipe: 513-pixel crops in batches of 16 (section 4; here 512, the side of the cached pictures), about 30,000 steps.
    "full": {
        "train": {"batch": 16, "image": 512},
        "fit": {"batch": 16, "image": 512, "epochs": 130, "schedule": "cosine"},
        "infer": {"batch": 1, "image": 512},
        "quality": {"batch": 16, "image": 512},
        "data": {"batch": 16, "image": 512},
        "protocol": {"warmup": 10, "min_iters": 50, "min_seconds": 5.0, "rounds": 6},
    },
}


def data(knobs: dict):
    """The PetSet that the knobs ask for, cut to train_samples and test_samples (breeds take turns, seeded by 0: all cases share it)."""
    from hpml.data import pets

    return pets.subset(pets.open_pets(knobs["data"], knobs["image"]), knobs["train_samples"], knobs["test_samples"], 0)


def identity(knobs: dict) -> str:
    """What the knob `data` stands for on this machine: sizes and change times of the files."""
    from hpml.data import pets

    return pets.identity(knobs["data"])


def dataset(knobs: dict, pet_set, *, train: bool):
    """Map-style data set of (float32 [3, image, image], uint8 [image, image] of class numbers).

    Raises Unavailable for a training whose micro-batch is smaller than BatchNorm can be trained with here.
    """
    from hpml.data.masks import MaskDataset
    from hpml.env import Unavailable

    micro = knobs["batch"] // knobs.get("accum_steps", 1)  # a rank's knobs hold its own share of the batch
    if train and "accum_steps" in knobs and micro < LEAST_BATCH:
        raise Unavailable(f"{TITLE}: a micro-batch of {micro} cannot be trained: the ASPP pools a sample to one value for each channel, "
                          f"and BatchNorm needs at least {LEAST_BATCH} of them")
    images, masks = (pet_set.train_images, pet_set.train_labels) if train else (pet_set.test_images, pet_set.test_labels)
    return MaskDataset(images, masks, train=train, image=knobs["image"], storage=knobs.get("storage", "array"))


def model(knobs: dict, classes: int):
    """torchvision's deeplabv3_resnet101 with both heads for `classes` classes, random weights, under torchvision's own names.

    It takes [N, 3, H, W] and gives a tensor instead of a dictionary: logits [N, classes, H, W]; in training those of both heads
    [N, 2, classes, H, W]. Outside training the auxiliary head is not computed. The last BatchNorm of each block starts at zero (Goyal et
    al., 2017, section 5.1), which lets short trainings start. knobs["variant"] = "small": one block a stage instead of 3, 4, 23 and 3.
    """
    import torch
    from torchvision.models.resnet import Bottleneck, ResNet
    from torchvision.models.segmentation.deeplabv3 import DeepLabV3, _deeplabv3_resnet

    class Segmenter(DeepLabV3):
        def forward(self, x):
            height, width = x.shape[-2:]
            features = self.backbone(x)
            logits = torch.nn.functional.interpolate(self.classifier(features["out"]), size=(height, width), mode="bilinear",
                                                     align_corners=False)
            if not self.training:
                return logits
            auxiliary = torch.nn.functional.interpolate(self.aux_classifier(features["aux"]), size=(height, width), mode="bilinear",
                                                        align_corners=False)
            return torch.stack((logits, auxiliary), dim=1)

    blocks = [1, 1, 1, 1] if knobs.get("variant") == "small" else [3, 4, 23, 3]
    backbone = ResNet(Bottleneck, blocks, zero_init_residual=True, replace_stride_with_dilation=[False, True, True])
    parts = _deeplabv3_resnet(backbone, classes, aux=True)
    return Segmenter(parts.backbone, parts.classifier, parts.aux_classifier)


def loss(outputs, targets):
    """Cross-entropy, the mean over a sample's pixels and summed over the micro-batch: the caller divides by the true count of samples.

    outputs [N, classes, H, W], or [N, 2, classes, H, W] with the auxiliary head's behind the main one's; targets [N, H, W].
    """
    import torch

    outputs, targets = outputs.float(), targets.long()
    heads = outputs.unbind(1) if outputs.dim() == 5 else (outputs,)
    pixels = targets[0].numel()
    sums = [torch.nn.functional.cross_entropy(head, targets, reduction="sum") / pixels for head in heads]
    return sums[0] + AUXILIARY_WEIGHT * sum(sums[1:])


def split(batch) -> tuple[tuple, object]:
    """A collated batch as (inputs of the model, targets)."""
    return (batch[0],), batch[1]


def example_inputs(knobs: dict, batch: int) -> tuple:
    """Seeded inputs of the right shape and scale for export: ([batch, 3, image, image],)."""
    import torch

    return (torch.randn(batch, 3, knobs["image"], knobs["image"], generator=torch.Generator().manual_seed(0)),)


def agreement(wanted, got) -> float:
    """Share of pixels to which two outputs [N, classes, H, W] give the same class."""
    return float((wanted.argmax(1) == got.argmax(1)).mean())


def likeness(wanted, got) -> dict[str, float]:
    """Two masks beside each other: their mean IoU over the classes that stand in either, and the pixels with the same class."""
    import numpy as np

    ours, theirs, classes = wanted.argmax(1).ravel(), got.argmax(1).ravel(), wanted.shape[1]
    counts = np.bincount(classes * ours + theirs, minlength=classes**2).reshape(classes, classes)
    there = counts.sum(0) + counts.sum(1) > 0
    return {"mean IoU between the masks": float(iou(counts)[there].mean()), "pixels with the same class": float((ours == theirs).mean())}


def evaluate(predict, knobs: dict, pet_set) -> dict:
    """Mean IoU of `predict` (tuple of arrays -> logits [N, classes, H, W]) over the test images, by one loader for all engines.

    Counts are summed over all pixels of all images before a ratio is taken. Returns metric, value, n (images), chance (the best that one
    class everywhere reaches), details (IoU by class, pixel accuracy, mean IoU of pet and background without the boundary's
    pixels), predictions and labels uint8 [N, H, W], confidence [N] (mean probability of the answer over an image's pixels).
    """
    import numpy as np
    import torch
    from torchmetrics.classification import MulticlassConfusionMatrix

    from hpml.data.loader import loader

    classes = pet_set.classes
    matrix = MulticlassConfusionMatrix(len(classes))
    batches = loader(dataset({**knobs, "storage": "array"}, pet_set, train=False), {}, batch=max(knobs["batch"], 8), shuffle=False, seed=0)
    answers, truths, certain = [], [], []
    for images, masks in batches:
        logits = torch.as_tensor(np.asarray(predict((images.numpy(),)), dtype=np.float32))
        certain.append(logits.softmax(1).amax(1).mean((1, 2)).numpy())
        answers.append(logits.argmax(1).to(torch.uint8))
        truths.append(masks)
        matrix.update(answers[-1].long(), masks.long())
    counts = matrix.compute().double().numpy()  # rows: the true class
    scores = iou(counts)
    known = counts[:2].copy()  # without the boundary's own pixels; what is called boundary there still counts as missed
    union = known.sum(1) + np.array([known[1, 0], known[0, 1]])
    details = {f"IoU {name}": float(score) for name, score in zip(classes, scores, strict=True)}
    details |= {"pixel accuracy": float(np.trace(counts) / counts.sum()),
                "mean IoU without boundary pixels": float(np.mean([known[0, 0], known[1, 1]] / np.maximum(union, 1)))}
    return {"metric": METRIC, "value": float(scores.mean()), "n": len(pet_set.test_labels),
            "chance": float((counts.sum(1) / counts.sum()).max() / len(classes)), "details": details,
            "predictions": torch.cat(answers).numpy(), "labels": torch.cat(truths).numpy(), "confidence": np.concatenate(certain)}


def iou(counts):
    """Intersection over union of each class from a confusion matrix [classes, classes]; 0 for a class that is nowhere."""
    import numpy as np

    inside = np.diag(counts)
    return inside / np.maximum(counts.sum(0) + counts.sum(1) - inside, 1)
