"""Test samples as a client would send them: files as they are, arrays as PNG, texts."""

import io


def sample(service, index: int) -> tuple[bytes, str, str]:
    """(bytes, media type, true answer in words or "") of the service's test sample `index`, counted round."""
    found = service.image_set
    if hasattr(found, "test_texts"):
        index %= len(found.test_texts)
        return found.test_texts[index].encode(), "text/plain", found.classes[int(found.test_labels[index])]
    index %= len(found.test_labels)
    label = found.test_labels[index]
    truth = found.classes[int(label)] if getattr(label, "ndim", 0) == 0 else ""
    if hasattr(found, "read"):
        return found.read(found.test_images[index]), "image/jpeg", truth
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.asarray(found.test_images[index])).save(file, "PNG", compress_level=1)
    return file.getvalue(), "image/png", truth


def count(service) -> int:
    """How many test samples there are."""
    return len(service.image_set.test_labels)
