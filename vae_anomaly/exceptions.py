"""Every error this project raises on purpose, in one tree.

::

    VaeAnomalyError
    |-- SchemaError (ValueError)             a sample does not fit what the model knows
    |-- DataError (ValueError)               training data or a file cannot be used
    |-- ConfigError (ValueError)             a setting is unknown or out of range
    |-- CalibrationError (ValueError)        too few calibration rows for the promise asked
    |-- NotFittedError (ValueError, AttributeError)   an estimator is used before `fit`
    |-- UnsupportedError (TypeError)         this kind of model has no such answer
    |-- BundleError (ValueError)             a bundle cannot be opened
    |   `-- TamperedBundleError              its files are not the ones that were sealed
    |-- ParityError (ArithmeticError)        exported graph and torch module disagree
    |-- DivergedError (ArithmeticError)      training lost its way
    |-- DeviceError (RuntimeError)           the device asked for cannot run
    |-- MissingPackageError (ImportError)    an optional dependency is not installed
    `-- TrackingError (ConnectionError)      the MLflow server or registry did not answer
"""


class VaeAnomalyError(Exception):
    """Root of the tree: catch it to catch whatever this project raises on purpose."""


class SchemaError(VaeAnomalyError, ValueError):
    """A sample does not fit the columns, shape or type that the model was trained on."""


class DataError(VaeAnomalyError, ValueError):
    """Training data, or a file of samples, cannot be used as it is."""


class ConfigError(VaeAnomalyError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class CalibrationError(VaeAnomalyError, ValueError):
    """The calibration set is too small for the rate asked."""


class NotFittedError(VaeAnomalyError, ValueError, AttributeError):
    """An estimator was used before `fit`."""


class UnsupportedError(VaeAnomalyError, TypeError):
    """This kind of model cannot give the answer asked for."""


class BundleError(VaeAnomalyError, ValueError):
    """A bundle cannot be opened: absent, incomplete, of an unknown format, or hostile."""


class TamperedBundleError(BundleError):
    """The files of a bundle are not the ones that were sealed."""


class ParityError(VaeAnomalyError, ArithmeticError):
    """The exported graph and the torch module disagree beyond tolerance."""


class DivergedError(VaeAnomalyError, ArithmeticError):
    """The training loss became NaN, infinite or grew without bound."""


class DeviceError(VaeAnomalyError, RuntimeError):
    """The device asked for is absent or cannot run this model."""


class MissingPackageError(VaeAnomalyError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class TrackingError(VaeAnomalyError, ConnectionError):
    """The tracking server or the model registry did not answer."""
