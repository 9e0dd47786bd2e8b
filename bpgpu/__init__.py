"""bpgpu: backpropagation for dense neural networks, the same gradients on every backend.

Importing it touches NumPy only; a backend's libraries load when the backend is asked for.
"""

from bpgpu._version import __version__
from bpgpu.backends import BackendInfo, backends, get_backend  # from here on bpgpu.backends is the function
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
from bpgpu.model.activations import Activation
from bpgpu.model.costs import Cost
from bpgpu.model.optimizers import SGD, Adam, AdamW, CosineDecay, ExponentialDecay, Optimizer, RMSprop, StepDecay
from bpgpu.network import MLP
from bpgpu.proof.gradcheck import GradientReport, check_gradients
from bpgpu.training.callbacks import Callback, Checkpoint, EarlyStopping, LearningRateSchedule, ProgressBar
from bpgpu.training.history import History

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
