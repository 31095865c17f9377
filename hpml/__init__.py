"""hpml: what makes deep learning faster, measured. A benchmark study of six workloads as notebooks; this package measures."""

from hpml.cases import case, use
from hpml.env import HpmlError, Unavailable
from hpml.results import load, show
from hpml.study import keep, measure_limits, noise_floor, run, trained

__version__ = "0.1.0"
__all__ = ["HpmlError", "Unavailable", "case", "keep", "load", "measure_limits", "noise_floor", "run", "show", "trained", "use"]
