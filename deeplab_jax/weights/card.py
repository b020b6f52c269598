"""The model card that `push` writes: front matter for the Hugging Face hub, then what a reader wants to know."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from deeplab_jax.errors import UserError
from deeplab_jax.files import read_json
from deeplab_jax.labels import PUBLISHED_SETS
from deeplab_jax.models.catalog import describe
from deeplab_jax.models.segmenter import Segmenter, Variables
from deeplab_jax.terminal import percent
from deeplab_jax.weights.folder import INITIALISED
from deeplab_jax.weights.hub import load_hub, parse
from deeplab_jax.weights.published import UNKNOWN

LIBRARY, TASK = "deeplab_jax", "image-segmentation"
# The metrics of `metrics.json`, their names on the hub and for readers.
METRICS = (
    ("miou", "mean_iou", "mean IoU"),
    ("pixel_accuracy", "accuracy", "pixel accuracy"),
    ("mean_accuracy", "mean_accuracy", "mean accuracy of the classes"),
)
PER_CLASS = ("iou", "precision", "recall")
OF_PROTOCOL = ("data", "split", "images")
"""Parts of the protocol that stand in the heading of the results."""


def read_metrics(file: Path, model: Segmenter, *, step: int | None = None) -> dict[str, Any]:
    """Return the content of a `metrics.json`.

    Raises:
      UserError: it cannot be read, or is of another network, or of another checkpoint than that of `step`.
    """
    try:
        content = read_json(file)
        network = content["model"]["name"], content["model"]["num_classes"]
        numbers = [content[key] for key, _, _ in METRICS]
        numbers += [row[key] for row in content["per_class"] for key in PER_CLASS]
        if not all(number is None or isinstance(number, int | float) for number in numbers):
            raise ValueError("a metric is no number")
        if not all(isinstance(row["name"], str) for row in content["per_class"]):
            raise ValueError("a class has no name")
        dict(content["protocol"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: no metrics of an evaluation ({type(error).__name__}: {error}); write it with the verb evaluate"
        ) from None
    ours = describe(model)["name"], model.num_classes
    if network != ours:
        raise UserError(
            f"{file}: of {network[0]} with {network[1]} classes, and the model is {ours[0]} with {ours[1]}; give "
            "--metrics the file of this model"
        )
    evaluated = content.get("checkpoint")
    if evaluated != step and None not in (evaluated, step):
        raise UserError(
            f"{file}: of the checkpoint of step {evaluated}, and the model is that of step {step}; evaluate it again, "
            f"or give --checkpoint {evaluated}"
        )
    return dict(content)


def model_card(
    target: str,
    model: Segmenter,
    variables: Variables,
    info: Mapping[str, Any],
    *,
    metrics: Mapping[str, Any] | None = None,
    licence: str = "",
) -> str:
    """Return the text of a model card.

    Args:
      target: `hf://owner/repo`, which the commands in it use.
      model, variables, info: from `load`.
      metrics: from `read_metrics`.
      licence: of the weights, as the hub writes it, such as "apache-2.0"; "" is that of their provenance.

    Raises:
      UserError: huggingface_hub is missing, or the target is no address of a repository.
    """
    licence = (licence or info.get("provenance", {}).get("licence") or UNKNOWN).lower()
    title = parse(target).repository.partition("/")[2]
    sections = [
        f"# {title}",
        _summary(model, variables),
        _use(target, model),
        _classes(info, model.label_classes),
        _results(info, metrics),
        _network(model),
        _origin(info, licence),
    ]
    return f"---\n{_front_matter(title, info, metrics, licence)}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _front_matter(title: str, info: Mapping[str, Any], metrics: Mapping[str, Any] | None, licence: str) -> str:
    hub = load_hub("a model card")
    known = [(key, theirs, name) for key, theirs, name in METRICS if metrics and metrics[key] is not None]
    results = [
        hub.EvalResult(
            task_type=TASK,
            dataset_type=str(metrics["protocol"].get("data", UNKNOWN)),
            dataset_name=str(metrics["protocol"].get("data", UNKNOWN)),
            dataset_split=str(metrics["protocol"].get("split", UNKNOWN)),
            metric_type=theirs,
            metric_name=name,
            metric_value=round(float(metrics[key]), 4),
        )
        for key, theirs, name in known
        if metrics
    ]
    data = hub.ModelCardData(
        license=None if licence == UNKNOWN else licence if licence.isascii() and " " not in licence else "other",
        library_name=LIBRARY,
        pipeline_tag=TASK,
        tags=["semantic-segmentation", "deeplab", "jax", "flax"],
        datasets=[info["data"]] if info.get("data") in PUBLISHED_SETS else None,
        metrics=[theirs for _, theirs, _ in known] or None,
        model_name=title,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _summary(model: Segmenter, variables: Variables) -> str:
    count = sum(value.size for value in jax.tree.leaves(variables["params"]))
    return (
        f"`{describe(model)['name']}` for semantic segmentation into {model.label_classes} "
        f"{'labels, of which a pixel can have several' if model.multilabel else 'classes'}, at output stride "
        f"{model.output_stride}, with {count / 1e6:.2f} million parameters. {LIBRARY} (JAX and Flax) made it."
    )


def _use(target: str, model: Segmenter) -> str:
    own = describe(model).get("module", "")
    flag, argument = (" --module FILE.py", ', module="FILE.py"') if own else ("", "")
    returned = "int32 [H, W, K], 0 or 1 for each label" if model.multilabel else "int32 [H, W]"
    more = "\n\nIt needs its author's file with own parts, FILE.py, which is not here." if own else ""
    return f"""## Use

It needs the packages {LIBRARY} and huggingface_hub.

```sh
python -m deeplab_jax predict --model {target}{flag} --out predictions photos/
```

```python
import deeplab_jax

model, variables, info = deeplab_jax.load("{target}"{argument})
classes = deeplab_jax.segment(model, variables, photo)  # photo: uint8 [H, W, {model.in_channels}]; {returned}
```{more}"""


def _classes(info: Mapping[str, Any], count: int) -> str:
    names = info.get("class_names")
    if not names:
        return f"## Classes\n\n{count}, whose names are not known."
    return "## Classes\n\n" + ", ".join(f"{index} {_cell(name)}" for index, name in enumerate(names))


def _results(info: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        kept = info.get("metrics", {}).items()
        lines = [f"- {key}: {value:.4f}" for key, value in kept if isinstance(value, int | float)]
        step = f" at step {info['step']}" if "step" in info else ""
        return f"## Results\n\nOf the evaluation during training{step}:\n\n" + "\n".join(lines) if lines else ""
    protocol = dict(metrics["protocol"])
    data, split, images = (_cell(protocol.pop(key, UNKNOWN)) for key in OF_PROTOCOL)
    table = [("", "%"), *((name, percent(metrics[key])) for key, _, name in METRICS)]
    rows = [(row["name"], *(percent(row[key]) for key in PER_CLASS)) for row in metrics["per_class"]]
    settings = ", ".join(
        f"`{key}` {json.dumps(value)}" for key, value in protocol.items() if value not in (None, [], False)
    )
    return (
        f"## Results\n\nOn {images} images of {data}, {split}:\n\n{_table(table)}\n\n"
        f"{_table([('class', 'IoU, %', 'precision, %', 'recall, %'), *rows])}\n\nThe protocol: {settings}."
    )


def _network(model: Segmenter) -> str:
    options = describe(model)["options"]
    stated = ", ".join(f"`{key}={value!r}`" for key, value in options.items()) or "those of the name"
    preprocessing = ", ".join(f"`{key}` {value}" for key, value in vars(model.preprocessing).items() if value != ())
    return f"## Network\n\nOptions: {stated}.\n\nPreprocessing, which the model carries: {preprocessing}."


def _origin(info: Mapping[str, Any], licence: str) -> str:
    provenance, source, start = (info.get(key, {}) for key in ("provenance", "source", INITIALISED))
    lines = [f"- {key}: {_cell(value)}" for key, value in provenance.items() if key != "licence"]
    if source:
        lines.append(f"- converted from: {_cell(source.get('kind'))}, {_cell(source.get('file'))}")
        lines += [f"- {_cell(note)}" for note in source.get("notes", ())]
    if start:
        known = ", ".join(f"{key} {start[key]}" for key in ("licence", "address") if key in start)
        lines.append(
            _cell(f"- its training started from the weights {start.get('name')}{f' ({known})' if known else ''}")
        )
    if info.get("data") in PUBLISHED_SETS:
        lines.append(f"- trained on: {_cell(info['data'])}")
    lines.append(f"- licence: {_cell('not stated' if licence == UNKNOWN else licence)}")
    return "## Where the weights come from\n\n" + "\n".join(lines)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    first, *rest = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join([first, "|" + "---|" * len(rows[0]), *rest])


def _cell(value: Any) -> str:
    """Return a text that neither ends a line nor a cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")
