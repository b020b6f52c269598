"""The layers of every network: convolution, normalisation, activation, and the settings that they share."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from deeplab_jax.checks import check_fields
from deeplab_jax.errors import UserError
from deeplab_jax.ops.atrous import Lowering, Padding, conv2d
from deeplab_jax.ops.batch_norm import batch_norm, normalise

NormKind = Literal["batch", "frozen", "group", "none"]
# For networks that can be built with or without padding.
PADDINGS: dict[str, Padding] = {"same": None, "valid": "VALID"}
Activation = Literal["relu", "relu6", "hard_swish", "none"]
# What a backbone returns: for each stage, in order, its name with its map [N, h, w, C] and stride.
Features = dict[str, tuple[jax.Array, int]]

ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "hard_swish": jax.nn.hard_swish,
    "none": lambda x: x,
}
GROUP_NORM_GROUPS = 32
# Rematerialisation keeps the convolutions' results, which have this name.
CONVOLUTION = "convolution"
# For layers whose results should be near zero at first.
SMALL_NORMAL = nn.initializers.normal(0.01)


@dataclass(frozen=True)
class LayerSettings:
    """What the layers of one part of a network share.

    Attributes:
      norm: "batch" normalises with the statistics of the batch in training and with running ones otherwise. "frozen"
        always uses the running ones (the second stage of the papers' protocol; freeze the scales and offsets too, by
        the optimizer's pattern). "group" is group normalisation (arXiv 1803.08494), with the groups of `norm_groups`.
        "none" gives the convolution a bias instead.
      norm_epsilon: added to the variance; above 0, up to 1.
      norm_momentum: decay of the running statistics, from 0 to below 1; the papers use 0.9997, which suits tens of
        thousands of steps.
      dtype: dtype of the activations, "float32" or "bfloat16"; parameters and statistics stay float32.
      lowering: how `conv2d` computes a convolution.
      align_corners: corner alignment of every bilinear resize: of features, logits and the views of an image pyramid.

    Raises:
      UserError: an unknown value.
    """

    norm: NormKind = "batch"
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.9997
    dtype: Literal["float32", "bfloat16"] = "float32"
    lowering: Lowering = "auto"
    align_corners: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.norm_epsilon <= 1:
            raise UserError(f"norm_epsilon={self.norm_epsilon!r:.100}: give a number above 0 and up to 1, such as 1e-5")
        if not 0 <= self.norm_momentum < 1:
            raise UserError(
                f"norm_momentum={self.norm_momentum!r:.100}: give a share from 0 to below 1, such as 0.9997"
            )


class Dropout(nn.Dropout):
    """flax's dropout, which raises a UserError for a rate that is no share."""

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise UserError(f"dropout={self.rate!r:.100}: give a share from 0 to below 1")
        super().__post_init__()


def change_settings(module: nn.Module, change: Callable[[LayerSettings], LayerSettings]) -> Any:
    """Return a copy of a module with changed settings in all parts."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if isinstance(value, LayerSettings):
            changes[field.name] = change(value)
        elif isinstance(value, nn.Module) and field.name != "parent":
            changes[field.name] = change_settings(value, change)
    return module.clone(**changes)


def parameter(module: nn.Module, name: str, init: Callable[..., Any], shape: tuple[int, ...]) -> jax.Array:
    """Return a float32 parameter of a module, as `module.param` does.

    `module.param` traces the initialiser at every use, to compare shapes. For a network's kernels that takes a third of
    the time to trace it. So this function calls it only for a parameter that is missing or has another shape.
    """
    found: jax.Array | None = module.get_variable("params", name)
    if found is not None and found.shape == shape:
        return found
    return module.param(name, init, shape, jnp.float32)


class Conv(nn.Module):
    """A convolution over `[N, H, W, C]`. `padding=None` is symmetric and keeps the size at stride 1. "SAME" is
    TensorFlow's, which differs where a stride meets an even side.

    Parameters: `kernel` (HWIO, He-normal by fan-in) and, with `use_bias`, `bias`.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    rate: int = 1
    depthwise: bool = False
    use_bias: bool = False
    padding: Padding = None
    settings: LayerSettings = LayerSettings()
    kernel_init: Callable[..., Any] = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.settings.dtype)
        inputs = 1 if self.depthwise else x.shape[-1]
        kernel = parameter(
            self, "kernel", self.kernel_init, (self.kernel_size, self.kernel_size, inputs, self.features)
        )
        x = conv2d(
            x.astype(dtype),
            kernel.astype(dtype),
            rate=self.rate,
            stride=self.stride,
            padding=self.padding,
            feature_group_count=x.shape[-1] if self.depthwise else 1,
            lowering=self.settings.lowering,
        )
        x = checkpoint_name(x, CONVOLUTION)
        if self.use_bias:
            bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
            x = x + bias.astype(dtype)[None, None, None]
        return x


def classifier(
    classes: int, kernel_size: int = 1, *, rate: int = 1, settings: LayerSettings, name: str | None = None
) -> Conv:
    """Return the layer that ends in logits. It has a bias, and its kernel is small at first, so that the first loss is
    that of a uniform guess. As of any convolution, the result is of the dtype of the settings: in bfloat16, logits are
    rounded to it.
    """
    return Conv(classes, kernel_size, rate=rate, use_bias=True, settings=settings, kernel_init=SMALL_NORMAL, name=name)


class BatchNorm(nn.Module):
    """Normalise `[N, H, W, C]` by the statistics of the batch, which also update the running ones, or by the running
    ones (arXiv 1502.03167).

    Parameters: `scale`, `bias`. In `batch_stats`: `mean` and the biased variance `var`, as in flax's own layer.
    """

    settings: LayerSettings
    batch_statistics: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        s, channels = self.settings, x.shape[-1:]
        scale = parameter(self, "scale", nn.initializers.ones, channels)
        bias = parameter(self, "bias", nn.initializers.zeros, channels)
        running = [
            self.variable("batch_stats", name, start, channels, jnp.float32)
            for name, start in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        x = x.astype(s.dtype)
        if not self.batch_statistics:
            mean, var = (statistic.value for statistic in running)
            return normalise(x, mean, var, scale, bias, s.norm_epsilon)
        y, batch = batch_norm(x, scale, bias, s.norm_epsilon)
        if not self.is_initializing():
            for statistic, new in zip(running, batch, strict=True):
                statistic.value = s.norm_momentum * statistic.value + (1 - s.norm_momentum) * new
        return y


def norm_groups(height: int, width: int, channels: int) -> int:
    """Return the number of groups of group normalisation on a map: 32, or the largest divisor of 32 that divides the
    channels and leaves two of them in a group.

    A group of one channel would take away what is constant over the map, such as image-level features. On a map of one
    sample there is a single group, since small groups would leave nothing of it.
    """
    if height * width == 1:
        return 1
    groups = gcd(GROUP_NORM_GROUPS, channels)
    return groups if groups < channels else max(1, channels // 2)


class Norm(nn.Module):
    """The normalisation that the settings name; batch statistics are in the collection `batch_stats`."""

    settings: LayerSettings

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        s = self.settings
        dtype = jnp.dtype(s.dtype)
        if s.norm == "group":
            groups = norm_groups(*x.shape[1:])
            return nn.GroupNorm(groups, epsilon=s.norm_epsilon, dtype=dtype, name="group")(x)
        batch_statistics = train and s.norm == "batch"
        if batch_statistics and x.size == x.shape[-1] and not self.is_initializing():
            raise UserError(
                f"batch normalisation of {self.scope.path_text if self.scope else 'a layer'} would see one value per "
                "channel, whose variance is 0: "
                "train with at least 2 images per batch, or with norm='group' or norm='frozen'"
            )
        return BatchNorm(s, batch_statistics=batch_statistics, name="batch")(x)


@contextmanager
def running_statistics(is_frozen: Callable[[str], bool]) -> Iterator[None]:
    """Within this context, a batch norm layer whose scale and offset are frozen runs as in inference: it normalises by
    its running statistics and keeps them.

    Args:
      is_frozen: takes a parameter's path, such as "backbone/stem/norm/batch/scale".
    """

    def call(
        method: Callable[..., Any], args: Any, options: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        layer = context.module
        if isinstance(layer, Norm) and context.method_name == "__call__":
            frozen = all(is_frozen("/".join((*layer.path, "batch", name))) for name in ("scale", "bias"))
            options = {**options, "train": options["train"] and not frozen}
        return method(*args, **options)

    with nn.intercept_methods(call):
        yield


class ConvNorm(nn.Module):
    """Convolution (submodule `conv`), normalisation (`norm`), activation. Without normalisation the convolution has a
    bias.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    rate: int = 1
    depthwise: bool = False
    activation: Activation = "relu"
    padding: Padding = None
    settings: LayerSettings = LayerSettings()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        bare = self.settings.norm == "none"
        x = Conv(
            self.features,
            self.kernel_size,
            stride=self.stride,
            rate=self.rate,
            depthwise=self.depthwise,
            use_bias=bare,
            padding=self.padding,
            settings=self.settings,
            name="conv",
        )(x)
        if not bare:
            x = Norm(self.settings, name="norm")(x, train=train)
        return ACTIVATIONS[self.activation](x)


class SeparableConvNorm(nn.Module):
    """Depthwise convolution, with the stride and rate, then a pointwise one, each with its normalisation and activation
    (DeepLabv3+, sec. 3.2, as in the authors' code).
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    rate: int = 1
    depthwise_activation: Activation = "relu"
    pointwise_activation: Activation = "relu"
    settings: LayerSettings = LayerSettings()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.depthwise(x, train=train)
        return ConvNorm(self.features, activation=self.pointwise_activation, settings=self.settings, name="pointwise")(
            x, train=train
        )

    def depthwise(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Apply the depthwise convolution and what follows it; within a compact method."""
        return ConvNorm(
            x.shape[-1],
            self.kernel_size,
            stride=self.stride,
            rate=self.rate,
            depthwise=True,
            activation=self.depthwise_activation,
            settings=self.settings,
            name="depthwise",
        )(x, train=train)


def spatial_conv(
    features: int,
    kernel_size: int,
    *,
    rate: int = 1,
    separable: bool,
    settings: LayerSettings,
    name: str,
    form: type[SeparableConvNorm] = SeparableConvNorm,
) -> nn.Module:
    """Return a `ConvNorm`, or its separable `form` if the layer is separable and its kernel larger than 1x1."""
    kind = form if separable and kernel_size > 1 else ConvNorm
    return kind(features, kernel_size, rate=rate, settings=settings, name=name)
