"""Convert other people's checkpoints into ours. Every key of the file is used, or the conversion fails and names it.

    convert("EMANet_R101.pth", "emanet101.safetensors")     # then emanet.load("emanet101.safetensors")

Weights of the same shapes can compute different functions: dilations, align_corners, eps and normalisation differ
between the original and other implementations, and no tensor holds them. Each layout (layouts.py) has its own defaults.
The config in the file overrides them, the arguments override both, and every setting is printed with its reason.
"""

import contextlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from .. import backbones
from ..atomic import require_writable, write_whole
from ..config import IGNORE, BackboneConfig, DataConfig, DatasetSpec, EvalConfig, Experiment, HeadConfig, ModelConfig
from ..data.datasets import SPECS, resolve
from ..errors import InputError, some, suggest
from ..experiments import override, read_json
from ..model import build_model
from ..weights import foreign, hub, zoo
from ..weights.model_file import save_model
from .layouts import LAYOUTS, NET, Layout, Shapes, recognise, resnet_name, stem_of
from .mmconfig import Stated, mmseg_classes, mmseg_settings

# Cityscapes, VOC, ADE20K, COCO-Stuff. Not PASCAL Context: each code base orders its classes differently.
PUBLISHED_COUNTS = (19, 21, 150, 171)
COUNTER = "num_batches_tracked"  # of BatchNorm; older files lack it, and nothing here reads it


@dataclass
class Decisions:
    """Settings of ModelConfig by dotted name, each with its reason. A later value replaces an earlier one."""

    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def take(self, values: Mapping[str, Any], reason: str) -> None:
        for name, value in values.items():
            if value is not None:
                self.values[name], self.reasons[name] = value, reason

    def config(self) -> ModelConfig:
        parts: dict[str, dict[str, Any]] = {"backbone": {"pretrained": False}, "head": {}, "": {}}
        for name, value in self.values.items():
            part, _, last = name.rpartition(".")
            parts[part][last] = value
        return ModelConfig(backbone=BackboneConfig(**parts["backbone"]), head=HeadConfig(**parts["head"]), **parts[""])


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    layout: str = "",
    entry: str = "",
    prefix: str = "",
    dataset: str = "",
    backbone: str = "",
    output_stride: int | None = None,
    multi_grid: Sequence[int] | None = None,
    dilation: Literal["contract", "uniform"] | None = None,
    align_corners: bool | None = None,
    eps: float | None = None,
    em_steps: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    force: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Experiment:
    """Write another program's checkpoint as a file of ours. Returns the experiment stored in the model file.

    A segmentation model becomes a model file for emanet.load. A backbone becomes a .safetensors file with timm's keys,
    for model.backbone.pretrained; the returned experiment has that setting.

    source: .pth, .pdparams or .safetensors, or `hf:owner/name`; nothing in it is run, and it is never written to.
    layout: a name of LAYOUTS; empty: recognised by the keys. entry: which table of the file holds the weights. prefix:
    take only the keys that begin with it, as in `encoder.`; default: what wrappers put before all keys is removed.
    dataset: names and colours of the classes, as in DataConfig.dataset. backbone: timm's name. force: overwrite
    destination. The others are settings of ModelConfig; None: from the layout and the file. tell receives lines of
    text: each setting, its value and its reason.

    Raises InputError; keys are named as the file names them.
    """
    source, destination = Path(hub.local(str(source), tell)), Path(destination)
    if str(source) in zoo.names() and not source.exists():
        source = zoo.path_of(str(source))
    _require_place(source, destination, force)
    content = foreign.read(source)
    entry, state = foreign.weights(content, entry, source)
    stated_name, stated_pixels = _stated(content, source)
    known = backbone or stated_name
    reason = "given" if layout else "recognised by its keys"
    state = foreign.part(state, prefix, source) if prefix else state
    layout, removed, state = _recognised(state, layout, known, source)
    if layout not in LAYOUTS:
        raise InputError(f"no layout {layout!r}{suggest(layout, LAYOUTS)}")
    given = {
        "backbone.name": backbone or None,
        "backbone.output_stride": output_stride,
        "backbone.multi_grid": None if multi_grid is None else tuple(multi_grid),
        "backbone.dilation": dilation,
        "align_corners": align_corners,
        "head.eps": eps,
        "head.em_steps": em_steps,
        "mean": None if mean is None else tuple(mean),
        "std": None if std is None else tuple(std),
    }
    whole = LAYOUTS[layout].whole
    unused = [name for name in given if name not in ("backbone.name", "mean", "std") and given[name] is not None]
    unused = [name.rpartition(".")[2] for name in unused] + ["dataset"] * bool(dataset)
    if unused and not whole:
        raise InputError(f"{source} is a backbone (layout {layout}), which has no {some(unused)}; set these in train")
    found = translate(state, LAYOUTS[layout], source)
    decisions, stated = Decisions(), Stated()
    decisions.take(LAYOUTS[layout].settings, f"layout {layout}")
    if whole:
        decisions.take(read_shapes(found), "from the weights")
        if layout == "mmseg":
            stated = mmseg_settings(content, multi_grid_given=multi_grid is not None)
        decisions.take(stated.settings, "the config in the file")
        decisions.reasons |= {ours: f"default: {theirs} unreadable" for ours, theirs in stated.unread.items()}
    else:
        decisions.take({"backbone.name": known or _resnet(found)}, "stated" if known else "from the weights")
        decisions.take(backbone_statistics(decisions.values.get("backbone.name", "")), "as timm has it")
        decisions.take(stated_pixels, "stated in config.json")
    decisions.take(given, "given")
    if "backbone.name" not in decisions.values:
        raise InputError(f"the backbone of {source} is not a plain ResNet; name it with --backbone")
    config, data = decisions.config(), None
    try:
        if whole:
            data, decisions.reasons["classes"] = pick_classes(found, content, dataset)
            experiment = _write_model(found, destination, Experiment(model=config, data=data, eval=stated.evaluation))
        else:
            experiment = _write_backbone(found, destination, config)
    except OSError as error:
        raise InputError(f"cannot write {destination}: {error.strerror}") from error
    rows = [("layout", layout, reason), *describe(config, data, decisions.reasons)]
    if experiment.eval != EvalConfig():
        window = "x".join(map(str, experiment.eval.window))
        value = f"slide, {window}, overlap {experiment.eval.overlap:.2f}"
        rows.append(("evaluation", value, "the config in the file"))
    if stated.unread:
        rows.append(("not read", some(stated.unread.values(), 1), "unreadable: defaults are used"))
    rows += foreign.tables(content, entry)
    if prefix or removed:
        rows.append(("prefix", f"{prefix}{removed}", "removed from every key" if removed else "given"))
    for name, value, why in rows:
        tell(f"{name:14}{value:30}  {why}")
    for line in [] if data else use_of_backbone(experiment.model):
        tell(line)
    return experiment


def _recognised(state: dict[str, Any], layout: str, backbone: str, source: Path) -> tuple[str, str, dict[str, Any]]:
    """The layout of the keys, the wrappers' prefix that had to be removed for it, and the table without that prefix."""
    first: InputError | None = None
    for removed, inner in foreign.unwrapped(state):
        try:
            found = layout or recognise({key: _shape(value) for key, value in inner.items()}, backbone, str(source))
            if found != "timm" and found in LAYOUTS and not any(LAYOUTS[found].ours(key) for key in inner):
                raise InputError(f"no key of {source} fits layout {found}")
            if found == "timm" and backbone and not _shares_keys(inner, backbone):
                raise InputError(f"no key of {source} is one of timm's {backbone}")
            if not layout and LAYOUTS[found].whole and all(key.startswith(("backbone.", "encoder.")) for key in inner):
                raise InputError(f"{source} has no head of layout {found}")  # a backbone, under the name of that part
            return found, removed, inner
        except InputError as error:
            first = first or error
    assert first is not None  # at least the table as it is was tried
    starts = {
        key[: dot + 1] for key in state for dot in range(len(key)) if key[dot] == "." and key.count(".", 0, dot) < 3
    }
    shapes = {start: {k: _shape(v) for k, v in foreign.part(state, start, source).items()} for start in starts}
    known: dict[str, str] = {}
    for start in starts:
        with contextlib.suppress(InputError):
            known[start] = recognise(shapes[start], "", str(source))
    if models := sorted(start for start, found in known.items() if LAYOUTS[found].whole):
        text = f"the keys that begin with {models[0]} are a model of layout {known[models[0]]}"
        raise InputError(f"{first}; {text}: take them with --prefix {models[0]}")
    parts = sorted(start for start in starts if resnet_name(shapes[start], stem_of(shapes[start])))
    if parts:
        raise InputError(
            f"{first}; the keys that begin with {parts[0]} are a ResNet's: take them with --prefix {parts[0]}"
        )
    raise first


def _shares_keys(state: Mapping[str, Any], name: str) -> bool:
    if not timm.is_model(name):
        return True  # an unknown name is reported later
    with torch.device("meta"):
        net: Any = timm.create_model(name)
    return not net.state_dict().keys().isdisjoint(state)


@dataclass(frozen=True)
class Translated:
    """A file's weights under our names."""

    layout: Layout
    path: Path
    values: dict[str, Tensor]
    names: dict[str, str]
    """Our key -> the file's."""

    @property
    def shapes(self) -> Shapes:
        return {key: tuple(value.shape) for key, value in self.values.items()}

    @property
    def backbone(self) -> Shapes:
        """The shapes of the backbone's weights, by timm's names."""
        start = NET if self.layout.whole else ""
        return {key.removeprefix(start): shape for key, shape in self.shapes.items() if key.startswith(start)}

    def size(self, key: str, axis: int, default: int) -> int:
        """The size of a weight along an axis, or the default; `fitted` reports a missing weight or axis."""
        shape = self.shapes.get(key, ())
        return shape[axis] if axis < len(shape) else default

    def has(self, start: str) -> bool:
        return any(key.startswith(start) for key in self.values)

    def fitted(self, own: Mapping[str, Tensor], optional: Sequence[str] = ()) -> dict[str, Tensor]:
        """The values for the keys of `own`, in its dtypes, biases folded. InputError names keys that do not fit."""
        counters = [key for key in own if key.endswith(COUNTER)]
        biases = {bias: mean for bias, mean in self.layout.biases.items() if mean in own}
        wanted = {**own, **{bias: own[mean] for bias, mean in biases.items()}}
        problems = {
            "missing": [self.layout.theirs(key) for key in wanted if key not in {*self.values, *counters, *optional}],
            "unexpected": [self.names[key] for key in self.values if key not in wanted],
            "of another shape": [
                f"{self.names[key]} {tuple(value.shape)} for {tuple(wanted[key].shape)}"
                for key, value in self.values.items()
                if key in wanted and value.shape != wanted[key].shape
            ],
            "not floating point": [
                f"{self.names[key]} ({value.dtype})"
                for key, value in self.values.items()
                if key not in counters and not value.is_floating_point()
            ],
        }
        if not any(problems.values()):
            odd = [
                key for key, value in self.values.items() if value.is_floating_point() and not value.isfinite().all()
            ]
            problems = {"not finite": [self.names[key] for key in odd]}
        if any(problems.values()):
            listed = "; ".join(f"{kind}: {some(keys)}" for kind, keys in problems.items() if keys)
            raise InputError(f"{self.path} does not fit its layout: {listed}")
        # Copied: weights in a file may share memory.
        values = {
            key: value.to(own[key].dtype, copy=True, memory_format=torch.contiguous_format)
            for key, value in self.values.items()
            if key in own
        }
        for (
            bias,
            mean,
        ) in biases.items():  # BN(conv + bias) equals BN(conv) with the bias subtracted from its mean, in training too
            values[mean] = (self.values[mean].double() - self.values[bias].double()).to(own[mean].dtype)
        return values


def translate(state: dict[str, Any], layout: Layout, path: Path) -> Translated:
    """Move every value of `state` to our name for it. InputError names the keys that the layout does not have."""
    found = Translated(layout, path, {}, {})
    unknown = []
    for key in list(state):
        value, ours = state.pop(key), layout.ours(key)
        if key in layout.empty:
            continue
        if ours is None or ours in found.values or not isinstance(value, Tensor):
            unknown.append(key)
        else:
            found.values[ours], found.names[ours] = value, key
    assert not state
    if unknown:
        raise InputError(f"{path} does not fit its layout: unexpected: {some(unknown)}")
    return found


def read_shapes(found: Translated) -> dict[str, Any]:
    """The settings of ModelConfig that the shapes of the weights determine, by dotted name."""
    classifier = found.size("head.classifier.weight", 1, 256)
    return {
        "backbone.name": _resnet(found),
        "backbone.in_channels": found.size(f"{NET}conv1.0.weight", 1, 3),
        "head.channels": found.size("head.emau.conv_in.weight", 0, 512),
        "head.num_bases": found.size("head.emau.bases", 2, 64),
        "head.fc1_channels": classifier if found.has("head.fc1.") else 0,
        "head.concat": found.has("head.concat."),
        "aux_head": found.has("aux_head."),
        "aux_channels": found.size("aux_head.classifier.weight", 1, 256) if found.has("aux_head.") else None,
    }


def _resnet(found: Translated) -> str | None:
    """timm's name of the backbone; None if it is not a plain ResNet."""
    stems = found.layout.stems
    return resnet_name(found.backbone, stems[0] if len(stems) == 1 else stem_of(found.backbone)) or None


def backbone_statistics(name: str) -> dict[str, Any]:
    """The mean and std of the pixels for a timm backbone."""
    if not timm.is_model(name):
        return {}
    with torch.device("meta"):
        pretrained: Any = timm.create_model(name).pretrained_cfg
    return {"mean": tuple(pretrained["mean"]), "std": tuple(pretrained["std"])}


def pick_classes(found: Translated, content: Mapping[str, Any], dataset: str) -> tuple[DataConfig, str]:
    """The data set that gives the model's classes, and the reason for choosing it."""
    count = found.size("head.classifier.weight", 0, found.size("head.classifier.bias", 0, 21))
    if count == 1:
        raise InputError(f"{found.path} has one output channel, for a threshold; models here need 2 or more classes")
    if count > IGNORE:
        raise InputError(f"{found.path} has {count} classes; at most {IGNORE} are possible")
    if dataset:
        data = resolve(DataConfig(dataset=dataset))
        if len(_spec(data).classes) != count:
            raise InputError(f"{found.path} has {count} classes, but data set {dataset} has {len(_spec(data).classes)}")
        return data, "given"
    stated = mmseg_classes(content)
    if stated is not None and len(stated.classes) == count:
        same = next((name for name, spec in SPECS.items() if spec.classes == stated.classes), "")
        data = DataConfig(dataset=same) if same else DataConfig(dataset=found.path.stem, spec=stated)
        return resolve(data), "stated in the file"
    same = next((name for name, spec in SPECS.items() if len(spec.classes) == count and count in PUBLISHED_COUNTS), "")
    if same:
        return resolve(DataConfig(dataset=same)), f"a guess: same number as {same}"
    spec = DatasetSpec(classes=tuple(f"class_{i}" for i in range(count)))
    return resolve(DataConfig(dataset=found.path.stem, spec=spec)), "unknown: give --dataset"


def _spec(data: DataConfig) -> DatasetSpec:
    assert data.spec is not None  # `resolve` fills it
    return data.spec


def _write_model(found: Translated, destination: Path, experiment: Experiment) -> Experiment:
    config, data = experiment.model, experiment.data
    with torch.device("meta"):  # weights come from the file; mismatches show before any memory is taken
        model = build_model(config, _spec(data))
    own = model.state_dict()
    stated = {name: torch.tensor(getattr(config, name)).view(1, -1, 1, 1) for name in ("mean", "std")}
    values = found.fitted({key: value for key, value in own.items() if key not in stated})
    counters = {key: torch.zeros((), dtype=torch.int64) for key in own if key.endswith(COUNTER)}
    model.load_state_dict(counters | values | stated, assign=True)
    destination.parent.mkdir(parents=True, exist_ok=True)
    save_model(destination, model, experiment, converted_from=found.path.name)
    return experiment


def _write_backbone(found: Translated, destination: Path, config: ModelConfig) -> Experiment:
    name = config.backbone.name
    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}{suggest(name, timm.list_models())}")
    with torch.device("meta"):
        net: Any = timm.create_model(name)
        classifiers = net.pretrained_cfg.get("classifier") or ()
        classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
        own = net.state_dict()
    # Keep the classifier, as timm's own files do, whatever its number of classes; feature maps do not need it.
    optional = [key for key in own if key.startswith(tuple(f"{classifier}." for classifier in classifiers))]
    own |= {key: found.values[key] for key in optional if key in found.values}
    values = found.fitted(own, optional)
    write_whole(destination, save(values, {"format": "pt", "timm": name}))
    return Experiment(model=override(config, {"backbone.pretrained": str(destination)}))


def describe(config: ModelConfig, data: DataConfig | None, reasons: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Rows of setting, value, reason."""
    backbone, head = config.backbone, config.head

    def why(name: str, otherwise: str = "default: weights do not tell") -> str:
        return reasons.get(name, otherwise)

    rows = [("backbone", backbone.name, why("backbone.name"))]
    if data is not None:
        with torch.device("meta"):
            net = backbones.build(backbone).net
        dilations = " ".join(str(block.conv2.dilation[0]) for block in getattr(net, "layer4", ()))
        source = "backbone.multi_grid" if backbone.multi_grid else "backbone.dilation"
        rows += [
            ("output stride", str(backbone.output_stride), why("backbone.output_stride")),
            ("layer4", f"dilations {dilations}", why(source, "the usual ones")),
            ("align_corners", str(config.align_corners), why("align_corners")),
            ("head", f"{head.channels} channels, {head.num_bases} bases", why("head.channels")),
            ("em_steps", str(head.em_steps), why("head.em_steps")),
            ("eps", f"{head.eps:g}", why("head.eps")),
            ("fc1", f"{head.fc1_channels} channels" if head.fc1_channels else "none", why("head.fc1_channels")),
            ("concat", "yes" if head.concat else "no", why("head.concat")),
            ("aux head", f"{config.aux_channels} channels" if config.aux_head else "none", why("aux_head")),
        ]
    rows += [(name, " ".join(f"{value:g}" for value in getattr(config, name)), why(name)) for name in ("mean", "std")]
    if data is not None:
        classes = _spec(data).classes
        rows.append(("classes", f"{len(classes)}: {some(classes, 1)}", why("classes")))
    return rows


def use_of_backbone(config: ModelConfig) -> list[str]:
    """The flags of `train` that load this backbone, one per line."""
    backbone = config.backbone
    flags = [f"--model.backbone.name {backbone.name}"]
    flags.append(f"--model.backbone.pretrained {shlex.quote(str(backbone.pretrained))}")
    for name in ("mean", "std"):
        flags.append(f"--model.{name} {' '.join(f'{value:g}' for value in getattr(config, name))}")
    return ["train with it: python -m emanet train EXPERIMENT", *(f"    {flag}" for flag in flags)]


def _require_place(source: Path, destination: Path, force: bool) -> None:
    try:
        destination.exists()
    except OSError as error:
        raise InputError(f"cannot write {destination}: {error.strerror}") from error
    if destination.suffix != ".safetensors":
        raise InputError(f"the name of the output file must end with .safetensors, not {destination.name}")
    if destination.is_dir():
        raise InputError(f"{destination} is a folder; give the name of a file to write")
    if destination.exists():
        if source.exists() and destination.samefile(source):
            raise InputError(f"{source} cannot be converted into itself; give another output file")
        if not force:
            raise InputError(f"{destination} exists already; --force overwrites it")
    require_writable(destination)


def _stated(content: Mapping[str, Any], path: Path) -> tuple[str, dict[str, Any]]:
    """The timm model named by a checkpoint, or by the config.json beside a file from the hub; its mean and std."""
    if isinstance(content.get("arch"), str):
        return content["arch"], {}
    beside = path.with_name("config.json")
    if path.suffix != ".safetensors" or not beside.is_file():
        return "", {}
    config = read_json(beside)
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        return "", {}
    pixels = config.get("pretrained_cfg")
    pixels = pixels if isinstance(pixels, dict) else {}
    return config["architecture"], {name: tuple(pixels[name]) for name in ("mean", "std") if name in pixels}


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()
