"""What the server of measured children imports once, so that each fresh process starts in milliseconds."""

import contextlib
import warnings

warnings.filterwarnings("ignore", category=DeprecationWarning)  # of libraries among themselves; our own calls are tested for them
with contextlib.suppress(ImportError):
    import numpy  # noqa: F401
    import torch  # noqa: F401
    import torchvision  # noqa: F401
