"""The loss that a configuration names: one, or a weighted sum, with their options."""

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax

from deeplab_jax.config_keys import LossOptions, defaults
from deeplab_jax.errors import UserError, did_you_mean
from deeplab_jax.extensions import own_errors, own_table
from deeplab_jax.ops.losses import LOSSES, OF_REGIONS, RANKED, Loss, weighted_sum

KEY = "config.train.loss"


def find_loss(
    text: str,
    *,
    options: Mapping[str, Any] | None = None,
    top_k: float = 1.0,
    class_weights: Sequence[float] = (),
    module: str = "",
    one_logit: bool = False,
    softmax: bool = True,
    given: Loss | None = None,
) -> Loss:
    """Return the loss that a text names: an entry of `ops.losses.LOSSES` or of the table `LOSSES` of a user's own file,
    or a weighted sum of several, such as `cross_entropy + 0.5*dice`.

    A user's own loss sees one logit (`one_logit`) as two, 0 and the logit. Their softmax is the logit's sigmoid, so a
    loss that was written for classes holds for it, too.

    Args:
      text: value of `config.train.loss`.
      options: values of `config.train.loss_options`; each loss takes those that it has as arguments.
      top_k, class_weights: the values of `config.train`, which the loss gets later; here they are only checked.
      module: path of the user's own file, or "".
      one_logit: whether the network has one logit.
      softmax: whether the classes of a pixel exclude each other, with a logit for each.
      given: a loss of the user's own, which takes the place of the named one.

    Raises:
      UserError: there is none of that name, the sum cannot be read, or an option is set that no loss takes or that
        would change nothing.
    """
    own = own_table(module, "LOSSES")
    if given is not None:
        text, module, own = "the loss that was given", "", {"the loss that was given": given}
    losses = {**LOSSES, **own}
    weights = {text: 1.0} if text in losses else read_sum(text, losses)
    options = {**defaults(LossOptions), **(options or {})}
    taken = {name: _arguments(losses[name]) for name in weights}
    _check_options(text, options, losses, used=set().union(*taken.values()))
    if top_k != 1 and not any(name in own or name in RANKED for name in weights):
        raise UserError(f"config.train.top_k={top_k}: {text} ranks no pixels by their loss; set it to 1.0")
    if one_logit and len(class_weights) and set(weights) <= set(OF_REGIONS):
        raise UserError(
            f"config.train.class_weights={tuple(class_weights)}: {text} of one logit is of the object alone, so they "
            "change nothing; set it to (), or add cross_entropy to the loss"
        )
    if softmax and options["focal_alpha"]:
        raise UserError(
            f"{KEY}_options.focal_alpha={options['focal_alpha']}: it weights label 1 against label 0 of a sigmoid, and "
            "the model has a softmax; set it to 0, and weight the classes by config.train.class_weights"
        )
    terms = []
    for name, weight in weights.items():
        loss = partial(losses[name], **{key: value for key, value in options.items() if key in taken[name]})
        if name in own:
            loss = partial(_checked, loss, f"{module}: LOSSES[{name!r}]" if module else name, module, one_logit)
        terms.append((weight, loss))
    return terms[0][1] if text in losses else partial(weighted_sum, terms)


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
