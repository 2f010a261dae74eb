"""The entry points of a bundle as torch modules: raw in, raw out.

Estimators run these modules, export turns these very modules into graphs. Each names its inputs
and outputs; all take and return tuples of tensors.
"""

from __future__ import annotations

from torch import Tensor, nn

from vae_anomaly import metropolis
from vae_anomaly.encoding import Encoded, Encoding
from vae_anomaly.imputation import Noise, State, effective_sample_size, update
from vae_anomaly.metropolis import Chains, Ratio, StepNoise
from vae_anomaly.scores import Evidence, Score
from vae_anomaly.scores.quantiles import count_below
from vae_anomaly.vae import VAE, Autoencoder

STATE = State._fields
# Standard deviations to both sides of the mean that hold 95 % of a Gaussian.
RANGE = 1.96


class EntryPoint(nn.Module):
    """A graph of the bundle.

    Attributes
    ----------
    inputs, outputs : tuple of str
        Names, in order.
    """

    inputs: tuple[str, ...] = ("x", "observed")
    outputs: tuple[str, ...] = ()

    def __init__(self, model: Autoencoder, encoding: Encoding) -> None:
        super().__init__()
        self.model = model
        self.encoding = encoding

    def encoded(self, x: Tensor, observed: Tensor) -> Encoded:
        """Raw samples in model space."""
        encoded: Encoded = self.encoding(x, observed)
        return encoded


class PValue(nn.Module):
    """Conformal p-value (1 + #{calibration score >= s}) / (n + 1), by binary search.

    Parameters
    ----------
    table : float32 Tensor, shape (n,)
        Sorted calibration scores.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", table)

    def forward(self, score: Tensor) -> Tensor:
        """Float64 p-value of each score, shape (B,)."""
        n = len(self.table)
        return (1 + n - count_below(self.table, score)).double() / (n + 1)


class ScoreGraph(EntryPoint):
    """x, observed -> each score, the default as `score`, its p-value, clipped cells.

    Parameters
    ----------
    scores : dict of Score
        Fitted, in output order.
    default : str
        The score that decides.
    noise : Tensor, shape (K, L)
    table : Tensor, shape (n,)
        Sorted calibration values of the default score.
    """

    def __init__(
        self,
        model: Autoencoder,
        encoding: Encoding,
        scores: dict[str, Score],
        default: str,
        noise: Tensor,
        table: Tensor,
    ) -> None:
        super().__init__(model, encoding)
        self.scores = nn.ModuleDict(scores)
        self.default = default
        self.p_value = PValue(table)
        self.noise: Tensor
        self.register_buffer("noise", noise)
        self.outputs = (*scores, "score", "p_value", "clipped")

    def forward(self, x: Tensor, observed: Tensor) -> tuple[Tensor, ...]:
        """One tensor of shape (B,) per output."""
        encoded = self.encoded(x, observed)
        evidence = Evidence(self.model, encoded, self.noise)
        values = {name: evidence.answer(score) for name, score in self.scores.items()}
        score = values[self.default]
        # An output of its own: two names for one tensor do not survive export.
        return (*values.values(), score + 0.0, self.p_value(score), encoded.clipped)


class ExplainGraph(EntryPoint):
    """x, observed -> reconstruction in raw units, contribution of each element to `recon`, expected range.

    The range is 1.96 standard deviations of p(x | z = mu) to both sides of the mean, in raw units: the
    central 95 % of a Gaussian. Of a positive column all three are exp of those of its logarithm: the
    reconstruction is the median.
    """

    outputs = ("reconstruction", "contributions", "low", "high")

    def __init__(self, model: Autoencoder, encoding: Encoding, noise: Tensor) -> None:
        super().__init__(model, encoding)
        self.noise: Tensor
        self.register_buffer("noise", noise)

    def forward(self, x: Tensor, observed: Tensor) -> tuple[Tensor, ...]:
        """Four tensors of the samples' shape."""
        evidence = Evidence(self.model, self.encoded(x, observed), self.noise)
        likelihood = self.model.likelihood
        mean = likelihood.mean(evidence.reconstruction)
        reach = RANGE * likelihood.variance(evidence.reconstruction).clamp_min(0.0).sqrt()
        low, high = self.encoding.decode(mean - reach), self.encoding.decode(mean + reach)
        contributions = evidence.contributions.unflatten(-1, tuple(x.shape[1:]))
        return self.encoding.decode(mean), contributions, low, high


class EncodeGraph(EntryPoint):
    """x, observed -> latent mean and, for a VAE, log-variance."""

    def __init__(self, model: Autoencoder, encoding: Encoding) -> None:
        super().__init__(model, encoding)
        self.outputs = ("mean", "log_variance") if model.variational else ("mean",)

    def forward(self, x: Tensor, observed: Tensor) -> tuple[Tensor, ...]:
        """Tensors of shape (B, L)."""
        encoded = self.encoded(x, observed)
        posterior = self.model.encode(encoded.x, encoded.observed)
        return tuple(part for part in posterior if part is not None)


class DecodeGraph(EntryPoint):
    """z -> reconstruction in raw units."""

    inputs = ("z",)
    outputs = ("reconstruction",)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        """Latents (B, L) to samples."""
        return (self.encoding.decode(self.model.likelihood.mean(self.model.decode(z))),)


class ImputeGraph(EntryPoint):
    """x, observed, one chunk of noise, running state -> running state, and it in raw units."""

    inputs = ("x", "observed", *Noise._fields, *STATE)
    outputs = (*(f"next_{name}" for name in STATE), "mean_raw", "std_raw", "draws_raw", "ess")
    model: VAE

    def forward(self, x: Tensor, observed: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """See `imputation.update`; ``rest`` is the fields of `Noise`, then those of `State`."""
        noise, state = Noise(*rest[:3]), State(*rest[3:])
        after = update(self.model, self.encoded(x, observed), noise, state, self.encoding.logs)
        mean, drawn = self.encoding.decode(after.mean), self.encoding.decode(after.drawn)
        std = self.encoding.decode_scale(after.variance.clamp_min(0.0).sqrt(), after.mean)
        return (*after, mean, std, drawn, effective_sample_size(after))


class StepGraph(EntryPoint):
    """x, observed, noise, chains -> the chains one step later, their averages in raw units."""

    inputs = ("x", "observed", *StepNoise._fields, *Chains._fields)
    outputs = (
        *(f"next_{name}" for name in Chains._fields),
        "mean_raw",
        "std_raw",
        "draws_raw",
        "ess",
        *Ratio._fields,
    )
    model: VAE

    def forward(self, x: Tensor, observed: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """See `metropolis.step`; ``rest`` is the fields of `StepNoise`, then those of `Chains`."""
        encoded = self.encoded(x, observed)
        noise, chains = StepNoise(*rest[:3]), Chains(*rest[3:])
        after, ratio = metropolis.step(self.model, encoded, noise, chains, self.encoding.logs)
        mean, drawn = self.encoding.decode(after.mean), self.encoding.decode(after.completed)
        std = self.encoding.decode_scale(after.variance.clamp_min(0.0).sqrt(), after.mean)
        size = metropolis.effective_sample_size(after, self.model.likelihood.widened(encoded.observed))
        return (*after, mean, std, drawn, size, *ratio)
