"""bpgpu: backpropagation for dense neural networks, the same gradients on every backend.

Importing it touches NumPy only; a backend's libraries load when the backend is asked for.
"""

from typing import TYPE_CHECKING

from bpgpu._version import __version__
from bpgpu.backends import BackendInfo, get_backend
from bpgpu.backends.base import Backend
from bpgpu.backends.plan import Plan
from bpgpu.errors import (
    BackendUnavailableError,
    FormulaError,
    GradientError,
    ModelFileError,
    NonFiniteError,
)
from bpgpu.logs import configure as _configure_log
from bpgpu.mlp import MLP
from bpgpu.model.activations import Activation
from bpgpu.model.costs import Cost
from bpgpu.model.optimizers import SGD, Adam, AdamW, CosineDecay, ExponentialDecay, Optimizer, RMSprop, StepDecay
from bpgpu.moved import install as _allow_earlier_names
from bpgpu.proof.gradcheck import GradientReport, check_gradients
from bpgpu.training.callbacks import Callback, Checkpoint, EarlyStopping, LearningRateSchedule, ProgressBar
from bpgpu.training.history import History

if TYPE_CHECKING:
    from bpgpu.backends import backends  # at run time it is the package, which is this function as well

__all__ = [
    "MLP",
    "SGD",
    "Activation",
    "Adam",
    "AdamW",
    "Backend",
    "BackendInfo",
    "BackendUnavailableError",
    "Callback",
    "Checkpoint",
    "CosineDecay",
    "Cost",
    "EarlyStopping",
    "ExponentialDecay",
    "FormulaError",
    "GradientError",
    "GradientReport",
    "History",
    "LearningRateSchedule",
    "ModelFileError",
    "NonFiniteError",
    "Optimizer",
    "Plan",
    "ProgressBar",
    "RMSprop",
    "StepDecay",
    "__version__",
    "backends",
    "check_gradients",
    "get_backend",
]

_configure_log()
_allow_earlier_names()
