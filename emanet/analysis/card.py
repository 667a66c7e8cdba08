"""The model card: README.md of a model on the hub, and its .eval_results, from what the model file and its run hold.

    (folder / "README.md").write_text(card(about))

Nothing is made up: what is not recorded is called so.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import EM_HEADS, EvalConfig, Experiment
from ..errors import InputError, printable, some
from ..loading import stored_spec
from ..metrics import MEANS, percent
from ..show.tables import Grid

TASK = "image-segmentation"  # the hub's name of the task; semantic segmentation has none of its own
METRICS = {"mIoU": "mean_iou", "pAcc": "pixel_accuracy", "mAcc": "mean_accuracy", "fIoU": "frequency_weighted_iou"}
WEAK = 0.5  # the card names the classes whose IoU is below it
PAPER = "https://arxiv.org/abs/1907.13426"


@dataclass(frozen=True, kw_only=True)
class About:
    """What a card is written from."""

    repository: str
    """owner/name, with @branch unless it is the default one."""
    experiment: Experiment
    """Without paths."""
    header: dict[str, Any]
    """What else the model file holds."""
    metrics: dict[str, Any]
    """A report of metrics.ConfusionMatrix on the validation split; empty: not measured."""
    parameters: int
    license: str = ""
    datasets: Sequence[str] = ()
    """Of the training data, on the hub."""
    pictures: Sequence[str] = ()
    """Paths in the repository."""
    caption: str = ""
    """What the pictures show."""

    @property
    def name(self) -> str:
        return self.repository.partition("@")[0].partition("/")[2]

    @property
    def dataset(self) -> str:
        return self.experiment.data.dataset or "the data set of its run"


def card(about: About) -> str:
    """README.md: the metadata that the hub reads as YAML, then the text."""
    return f"---\n{_metadata(about)}\n---\n\n" + "\n".join(_text(about))


def _metadata(about: About) -> str:
    # https://huggingface.co/docs/hub/model-cards; model-index: github.com/huggingface/hub-docs, modelcard.md
    from huggingface_hub import EvalResult, ModelCardData

    spec, config = about.experiment.data, about.experiment.model
    results = [
        EvalResult(
            task_type=TASK,
            task_name="Semantic segmentation",
            dataset_type=about.datasets[0] if len(about.datasets) == 1 else re.sub(r"[^\w.-]+", "-", about.dataset),
            dataset_name=about.dataset,
            dataset_split=spec.val_split,
            metric_type=METRICS[name],
            metric_name=name,
            metric_value=round(about.metrics[name], 6),
        )
        for name in MEANS
        if is_share(about.metrics.get(name))
    ]
    data = ModelCardData(
        library_name="emanet",
        pipeline_tag=TASK,
        license=about.license or None,
        datasets=[*about.datasets] or None,
        tags=["semantic-segmentation", "emanet", "pytorch", config.head.name, config.backbone.name],
        metrics=["mean_iou"] if results else None,
        model_name=about.name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def eval_results(about: About, benchmark: str) -> str:
    """A file of .eval_results: the mIoU on a data set of the hub, `owner/name:task`. Raises InputError.

    Its id must be that of a benchmark there, and the task one of its eval.yaml: huggingface.co/docs/hub/eval-results
    """
    from huggingface_hub.utils import yaml_dump

    match = re.fullmatch(r"([\w.-]+/[\w.-]+):([\w.-]+)", benchmark, re.ASCII)
    if not match:
        raise InputError(f"--benchmark is {benchmark}, but must be OWNER/NAME:TASK, a data set of the hub and its task")
    if not is_share(about.metrics.get("mIoU")):
        raise InputError("--benchmark needs a model with an mIoU, which this one does not hold: leave it out")
    notes = f"mIoU in percent on the split {about.experiment.data.val_split}; {_how(about.experiment.eval)}"
    entry = {
        "dataset": {"id": match[1], "task_id": match[2]},
        "value": round(100 * about.metrics["mIoU"], 2),
        "notes": notes,
    }
    return yaml_dump([entry], sort_keys=False)


def _text(about: About) -> Iterator[str]:
    config, data = about.experiment.model, about.experiment.data
    classes = stored_spec(about.experiment).classes
    em = config.head.name in EM_HEADS
    network = f"[EM attention]({PAPER}), head `{config.head.name}`" if em else f"head `{config.head.name}`"
    yield f"# {about.name}\n"
    yield f"This model labels every pixel of an image as one of {len(classes)} classes (semantic segmentation)."
    yield f"It has {network}, on the backbone `{config.backbone.name}`, and {about.parameters:,} parameters.\n"

    yield "## How to use\n"
    yield "```python\nimport emanet\n"
    yield f'predictor = emanet.Predictor("hf:{about.repository}")'
    yield 'labels = predictor("photo.jpg")  # (H, W) uint8: indices into predictor.classes'
    yield 'overlay = predictor.overlay("photo.jpg", labels)  # (H, W, 3) uint8\n```\n'
    yield f"```text\npython -m emanet predict hf:{about.repository} photos --out labelled\n```\n"
    channels = config.backbone.in_channels
    kind = "RGB images" if channels == 3 else f"images of {channels} channel{'s' * (channels > 1)}"
    yield f"It takes {kind} of any size, and normalises them itself.\n"

    yield "## Figures\n"
    if about.metrics:
        means = ", ".join(f"{name} {_cell(about.metrics.get(name))}" for name in MEANS)
        pixels = about.metrics.get("pixels")
        counted = f", over {pixels:,} labelled pixels" if isinstance(pixels, int) else ""
        yield f"In percent, on the split `{data.val_split}` of {_plain(about.dataset)}{counted}: {means}."
        yield f"These are of {_how(about.experiment.eval)}.\n"
    else:
        yield "Not measured: the model file holds no scores.\n"
    yield _table(about)

    if about.pictures:
        yield f"## Samples\n\n{about.caption}\n"
        yield from (f"![{about.caption}]({path})\n" for path in about.pictures)

    yield "## Training\n"
    yield from (f"- {line}" for line in _training(about))
    yield "\n## Limits\n"
    yield from (f"- {line}" for line in _limits(about))
    yield "\n## Licence\n"
    yield f"Of the weights: {about.license or 'not stated'}. The terms of the training data may restrict their use too."
    yield "The code of emanet is under Apache-2.0.\n"


def _table(about: About) -> str:
    """The classes with their colours, and their scores if there are any."""
    spec = stored_spec(about.experiment)
    columns = {"IoU": "IoU", "accuracy": "accuracy", "share": "share of pixels"} if about.metrics else {}
    rows = []
    for name, colour in zip(spec.classes, spec.colours, strict=True):
        values = (_values(about.metrics, key).get(name) for key in columns)
        rows.append([_plain(name), "#{:02x}{:02x}{:02x}".format(*colour), *map(_cell, values)])
    return Grid("Classes", ["class", "colour", *columns.values()], rows).markdown()


def _training(about: About) -> Iterator[str]:
    config, header = about.experiment, about.header
    if "converted_from" in header:
        yield f"Converted from another program's {_plain(header['converted_from'])}; its training is not recorded here."
        return
    yield f"Data: {_plain(header.get('data') or f'{about.dataset}, split `{config.data.train_split}`')}."
    if "backbone" in header:
        yield f"The backbone began with these weights: {_plain(header['backbone'])}."
    elif config.model.backbone.pretrained:
        weights = config.model.backbone.pretrained
        yield f"The backbone began with {'the weights of timm' if weights is True else f'`{_plain(weights)}`'}."
    for name, text in (("init_from", "It began with the weights of"), ("distill", "It also learned from the model")):
        if getattr(config, name):
            yield f"{text} `{_plain(getattr(config, name))}`."
    step, size = header.get("step"), "x".join(map(str, config.data.crop))
    done = f"{step:,} of {config.steps:,} steps" if isinstance(step, int) else "an unrecorded number of steps"
    yield f"Trained for {done} of {config.batch_size} crops of {size} pixels, with the seed {config.seed}."
    yield "`config.json` holds every setting."
    if "commit" in header:
        yield f"Commit of the code: {_plain(header['commit'])}."


def _limits(about: About) -> Iterator[str]:
    classes = stored_spec(about.experiment).classes
    yield f"Whatever an image shows is labelled as one of the {len(classes)} classes."
    weak = {name: iou for name, iou in _values(about.metrics, "IoU").items() if is_share(iou) and iou < WEAK}
    if weak:
        named = some((f"{_plain(name)} ({percent(iou)})" for name, iou in sorted(weak.items(), key=_second)), 12)
        yield f"Classes with an IoU below {100 * WEAK:.0f}: {named}."
    absent = [name for name in about.metrics.get("absent", ()) if isinstance(name, str)]
    if absent:
        yield f"Classes that the validation images do not show, so that nothing is known of them: {some(absent, 12)}."
    if about.metrics:
        yield "The figures are of the validation images alone. Other places, cameras and light were not measured."
    else:
        yield "How well it does was not measured."


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def _values(metrics: dict[str, Any], key: str) -> dict[str, Any]:
    """A table of a report by class; a file from elsewhere may hold anything."""
    return values if isinstance(values := metrics.get(key), dict) else {}


def is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _cell(value: Any) -> str:
    return percent(value) if is_share(value) else "-"


def _plain(text: object) -> str:
    """On one line, and without what Markdown takes for HTML."""
    return printable(str(text)).replace("<", "&lt;")


def _how(config: EvalConfig) -> str:
    """How images are predicted, as in `whole images at one scale, not flipped`."""
    slide = f"windows of {config.window[0]}x{config.window[1]} pixels"
    scales = "one scale" if config.scales == (1.0,) else f"the scales {some(config.scales, 20)}"
    side = f", those above {config.longest_side} pixels shrunk to that" if config.longest_side else ""
    flipped = "also flipped" if config.flip else "not flipped"
    return f"{slide if config.mode == 'slide' else 'whole images'} at {scales}, {flipped}{side}"
