"""Drop-in for ``sklearn.neural_network``: the same estimators, trained by a backend of bpgpu."""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError('bpgpu.sklearn needs scikit-learn: pip install "bpgpu[sklearn]"') from error

from bpgpu.sklearn import converters
from bpgpu.sklearn.estimators import MLPClassifier, MLPRegressor
from bpgpu.sklearn.report import FitReport

__all__ = ["FitReport", "MLPClassifier", "MLPRegressor"]

converters.registered.start()
