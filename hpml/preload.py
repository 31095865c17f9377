"""What the server of measured children imports once, so that each fresh process starts in milliseconds."""

import contextlib
import signal
import threading
import warnings

# Ctrl-C goes to every process of the terminal. The server ends with the process that started it; a traceback from here would only hide
# what that one says. Afterwards multiprocessing does the same by itself, and gives the children the handler that it finds. What came
# while hpml.forkserver held the signal back is dropped.
_before = signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
warnings.filterwarnings("ignore", category=DeprecationWarning)  # of libraries among themselves; our own calls are tested for them
with contextlib.suppress(ImportError):
    import numpy  # noqa: F401
    import torch  # noqa: F401
    import torchvision  # noqa: F401
with contextlib.suppress(ImportError):
    import tqdm

    # Its own lock is a named semaphore, which a child that ends without clean-up leaves behind with a warning; torch.compile makes one.
    tqdm.tqdm.set_lock(threading.RLock())
signal.signal(signal.SIGINT, _before)
