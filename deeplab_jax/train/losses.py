"""The loss that a configuration names: one, or a weighted sum, with their options."""

import inspect
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from deeplab_jax.config_keys import LossOptions, Objective, defaults
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.extensions import own_errors, own_table
from deeplab_jax.models.segmenter import Segmenter
from deeplab_jax.ops.losses import LOSSES, OF_REGIONS, RANKED, Loss, weighted_sum

KEY = "config.train.loss"
GIVEN = "the loss that was given"


def find_loss(
    text: str,
    model: Segmenter,
    *,
    options: Mapping[str, Any] | None = None,
    module: str = "",
    given: Loss | None = None,
) -> Loss:
    """Return the loss that a text names: an entry of `ops.losses.LOSSES` or of the table `LOSSES` of a user's own file,
    or a weighted sum of several, such as `cross_entropy + 0.5*dice`.

    A user's own loss sees the one logit of a model as two, 0 and the logit. Their softmax is the logit's sigmoid, so a
    loss that was written for classes holds for it, too.

    Args:
      text: value of `config.train.loss`.
      model: the network whose logits the loss gets.
      options: values of `config.train.loss_options`; each loss takes those that it has as arguments.
      module: path of the user's own file, or "".
      given: a loss of the user's own, which takes the place of the named one.

    Raises:
      UserError: there is none of that name, or the sum cannot be read.
    """
    weights, losses, own = _chosen(text, module, given)
    options = {**defaults(LossOptions), **(options or {})}
    terms = []
    for name, weight in weights.items():
        taken = _arguments(losses[name])
        loss = partial(losses[name], **{key: value for key, value in options.items() if key in taken})
        if name in own:
            what = name if given is not None else f"{module}: LOSSES[{name!r}]"
            loss = partial(_checked, loss, what, "" if given is not None else module, model.num_classes == 1)
        terms.append((weight, loss))
    alone = given is not None or text in losses
    return terms[0][1] if alone else partial(weighted_sum, terms)


def loss_names(text: str, *, module: str = "") -> set[str]:
    """Return the names of the losses that a text adds; see `find_loss`."""
    return set(_chosen(text, module, None)[0])


def check_loss(train: ConfigDict, model: Segmenter, *, module: str = "", given: Loss | None = None) -> None:
    """Raise a UserError where the section `train` sets something about the loss that the chosen one, or the model,
    has no use for; see `find_loss`.
    """
    weights, losses, own = _chosen(train.loss, module, given)
    text, options = train.loss if given is None else GIVEN, train.loss_options
    _check_options(text, options, losses, used=set().union(*(_arguments(losses[name]) for name in weights)))
    if train.top_k != 1 and not any(name in own or name in RANKED for name in weights):
        raise UserError(f"config.train.top_k={train.top_k}: {text} ranks no pixels by their loss; set it to 1.0")
    if model.num_classes == 1 and train.class_weights and set(weights) <= set(OF_REGIONS):
        raise UserError(
            f"config.train.class_weights={tuple(train.class_weights)}: {text} of one logit is of the object alone, so "
            "they change nothing; set it to (), or add cross_entropy to the loss"
        )
    if options.focal_alpha and model.num_classes > 1 and not model.multilabel:
        raise UserError(
            f"{KEY}_options.focal_alpha={options.focal_alpha}: it weights label 1 against label 0 of a sigmoid, and "
            "the model has a softmax; set it to 0, and weight the classes by config.train.class_weights"
        )
    if (count := len(train.class_weights)) not in (0, model.label_classes):
        raise UserError(
            f"config.train.class_weights has {count} values, the data has {model.label_classes} classes; give one for "
            "each"
        )
    usual = Objective().aux_weight
    if train.aux_weight != usual and model.aux_features is None:
        raise UserError(
            f"config.train.aux_weight={train.aux_weight}: the model has no auxiliary head; leave it at {usual}, or set "
            "config.model.options.aux_head=True too"
        )


def _chosen(text: str, module: str, given: Loss | None) -> tuple[dict[str, float], dict[str, Loss], set[str]]:
    """Return the names and weights of the chosen losses, all losses by name, and which names are the user's own."""
    if given is not None:
        return {GIVEN: 1.0}, {**LOSSES, GIVEN: given}, {GIVEN}
    own = own_table(module, "LOSSES")
    losses = {**LOSSES, **own}
    return {text: 1.0} if text in losses else read_sum(text, losses), losses, set(own)


def read_sum(text: str, losses: Mapping[str, Any]) -> dict[str, float]:
    """Return the names and weights of a sum such as `cross_entropy + 0.5*dice`; a name alone has the weight 1.

    Raises:
      UserError: an unknown name, a weight that is no number above 0, or a name that is there twice.
    """
    weights: dict[str, float] = {}
    for term in text.split("+"):
        factor, star, name = term.rpartition("*")
        name = name.strip()
        if name not in losses:
            where = "" if name == text else f"{name!r:.50} is no loss; "
            if factor.strip() in losses:
                raise UserError(f"{KEY}={text!r:.200}: write the weight first, as in '{name or 0.5}*{factor.strip()}'")
            raise UserError(f"{KEY}={text!r:.200}: {where}{did_you_mean(name, losses)}")
        try:
            weight = float(factor) if star else 1.0
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise UserError(
                f"{KEY}={text!r:.200}: the weight {factor.strip()!r:.50} of {name} is no number above 0; write it as "
                f"in '0.5*{name}'"
            )
        if name in weights:
            raise UserError(f"{KEY}={text!r:.200}: {name} is there twice; give it once, with one weight")
        weights[name] = weight
    return weights


def _check_options(text: str, options: Mapping[str, Any], losses: Mapping[str, Loss], *, used: set[str]) -> None:
    """Raise a UserError for an option that has another value than its default, and that no chosen loss takes."""
    for name, default in defaults(LossOptions).items():
        if options[name] != default and name not in used:
            fitting = [other for other, loss in losses.items() if name in _arguments(loss)]
            raise UserError(
                f"{KEY}_options.{name}={options[name]}: {text} does not take it; set it to {default}, or choose a loss "
                f"that does: {', '.join(fitting)}"
            )


def _arguments(loss: Loss) -> set[str]:
    """Return the names of a loss's arguments; none of what is no function, which a call tells."""
    try:
        return set(inspect.signature(loss).parameters)
    except (TypeError, ValueError):
        return set()


def _checked(
    loss: Loss, what: str, module: str, one_logit: bool, logits: jax.Array, labels: jax.Array, **options: Any
) -> Any:
    """Return what a user's own loss returns; a UserError says where it is not what `LOSSES` asks for."""
    if one_logit:
        logits = jax.numpy.concatenate([jax.numpy.zeros_like(logits), logits], axis=-1)
    try:
        inspect.signature(loss).bind(logits, labels, **options)
    except TypeError as error:
        raise UserError(
            f"{what}: {error}; it is called with {', '.join(options)}, so end its arguments with **_"
        ) from None
    with own_errors(module):
        results = loss(logits, labels, **options)
    shapes = [jax.numpy.shape(part) for part in results] if isinstance(results, tuple) else results
    if shapes != [(), (), labels.shape]:
        raise UserError(
            f"{what} returns {f'arrays of shapes {shapes}' if isinstance(results, tuple) else type(results).__name__}; "
            f"return (sum, count, right), of shapes (), () and that of the labels, {labels.shape}"
        )
    return results
