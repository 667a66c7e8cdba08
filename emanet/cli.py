"""The commands. The only file that knows the CLI library; torch is imported inside them, so that help is instant."""

import contextlib
import functools
import io
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

from . import __version__
from .errors import InputError, suggest

# Each is handled by the function of the same name below, whose docstring is its help.
COMMANDS = {
    "train": "train an experiment into a run folder",
    "evaluate": "score a model on a data set or on folders of images and masks",
    "predict": "label the pixels of images, folders and globs",
    "explain": "draw which pixels and classes use which bases of the EM attention",
    "convert": "turn a checkpoint of another program into a model of this one",
    "config": "show an experiment, or what differs between two",
    "compare": "put the results of runs side by side",
    "profile": "count parameters and multiply-adds; the paper's Table 1",
    "submit": "pack predictions for the test server of VOC, Cityscapes, ADE20K",
    "data": "make a public data set ready, or write drawn scenes to learn from",
}


def main(arguments: list[str] | None = None) -> None:
    """Run one command. Whatever is wrong with what the user gave ends in one sentence and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _dispatch(arguments)
    except InputError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output (head, less) has gone: nobody is left to tell
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)
    except Exception as error:  # a fault of ours: the sentence for the user, the traceback for a report
        with tempfile.NamedTemporaryFile("w", prefix="emanet-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        first = (str(error).splitlines() or [""])[0]
        _fail(f"unexpected {type(error).__name__}: {first} (the traceback is in {file.name})", 1)


def _fail(sentence: str, code: int) -> None:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(code)


def _dispatch(arguments: list[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print("usage: python -m emanet COMMAND [-h] ...\n\nEMANet: label every pixel of your pictures.\n\ncommands:")
        print("\n".join(f"  {command:10} {text}" for command, text in COMMANDS.items()))
    elif name == "--version":
        print(f"emanet {__version__}")
    elif name in COMMANDS:
        globals()[name](arguments[1:])
    else:
        raise InputError(f"no command {name!r}{suggest(name, COMMANDS)}")


def train(arguments: list[str]) -> None:
    """train EXPERIMENT [flags]: parse the flags over the experiment's own values."""
    import tyro

    from .config import Experiment
    from .experiments import experiment_names, load_experiment, override

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m emanet train EXPERIMENT [--out DIR] [--resume] [--FIELD VALUE ...]\n")
        print("EXPERIMENT is a name, a .py file, a config.json, or a run folder. Names:")
        print("\n".join(f"  {name}" for name in experiment_names()))
        print("\n`train EXPERIMENT --help` lists every field with that experiment's value.")
        return
    source, flags = arguments[0], arguments[1:]
    if source.startswith("-"):
        raise InputError(f"train needs an EXPERIMENT before {source}; there are: {', '.join(experiment_names())}")

    experiment = load_experiment(source)

    def command(
        config: Annotated[Experiment, tyro.conf.arg(name="")] = experiment,
        out: str = "",
        resume: bool = False,
    ) -> None:
        """Train an experiment.

        Args:
            out: Run folder; default runs/NAME, or the next free runs/NAME-2.
            resume: Go on from the run folder's latest checkpoint, if it has one.
        """
        from . import distributed
        from .train import train as run

        if config.data.dataset != experiment.data.dataset:  # a run's config carries the spec and root of its own
            same_root = config.data.root == experiment.data.root
            config = override(config, {"data.spec": None} | ({"data.root": ""} if same_root else {}))
        name = Path(source).resolve().stem
        folder = source if resume and not out and Path(source).is_dir() else out
        try:
            run(config, folder, name=name, resume=resume)
        finally:
            distributed.shutdown()

    _cli(command, flags, f"train {source}")


def evaluate(arguments: list[str]) -> None:
    import tyro

    from .config import EvalConfig

    def command(
        model: _positional(str, "MODEL") = "",
        images: str = "",
        masks: str = "",
        split: str = "",
        root: str = "",
        dataset: str = "",
        json: str = "",
        picture: str = "",
        device: str = "auto",
        settings: Annotated[EvalConfig, tyro.conf.arg(name="")] = EvalConfig(),  # noqa: B008
    ) -> dict[str, Any]:
        """Score a model, by default on the validation split it was trained with.

        Without MODEL, --images is a folder of label maps made elsewhere (index
        PNGs), scored as they are.

        Args:
            model: A model file or a run folder.
            images: Folder of images; each needs a mask of the same stem under --masks.
            masks: Folder of masks, in the values or colours of the model's data set.
            split: Split of the data set instead of its validation split.
            root: Folder of the data set, if it has moved since training.
            dataset: Another data set of the same classes: a name or a dataset.json.
            json: File for mIoU, pAcc, mAcc, fIoU (0 to 1) and IoU per class.
            picture: File for a picture of the confusion matrix.
            device: auto, cpu, cuda or cuda:N.
        """
        return locals()

    given = _cli_of_model(command, arguments, "evaluate")
    from .score import score

    score(**given)


def predict(arguments: list[str]) -> None:
    import tyro

    from .config import EvalConfig

    def command(
        model: _positional(str, "MODEL"),
        images: _positional(tuple[str, ...], "IMAGE ..."),
        /,
        out: str,
        overlay: bool = True,
        device: str = "auto",
        settings: Annotated[EvalConfig, tyro.conf.arg(name="")] = EvalConfig(),  # noqa: B008
    ) -> dict[str, Any]:
        """Write a label map (index PNG with palette) and an overlay for every image.

        Args:
            model: A model file or a run folder.
            images: Files, folders and quoted globs.
            out: Folder for what is written.
            overlay: Also write the image with the classes' colours over it.
            device: auto, cpu, cuda or cuda:N.
        """
        return locals()

    given = _cli_of_model(command, arguments, "predict")
    if not given["images"]:
        raise InputError("predict needs at least one image, folder or glob after MODEL")
    from .predict import Predictor, predict_files

    predictor = Predictor(given["model"], device=given["device"], config=given["settings"])
    failures = predict_files(predictor, given["images"], given["out"], overlay=given["overlay"])
    if failures:
        raise InputError(f"{len(failures)} images could not be predicted; the others were")


def explain(arguments: list[str]) -> None:
    def command(
        model: _positional(str, "MODEL"),
        images: _positional(tuple[str, ...], "IMAGE ..."),
        /,
        out: str = "attention",
        bases: tuple[int, ...] = (),
        split: str = "",
        root: str = "",
        dataset: str = "",
        device: str = "auto",
    ) -> dict[str, Any]:
        """Draw which pixels the bases of the EM attention take, for every image.

        Args:
            model: A model file or a run folder.
            images: Files, folders and quoted globs; none is needed with --split.
            out: Folder for what is written: a folder for each image in it.
            bases: Numbers of the bases to draw; default: the seven that own most pixels.
            split: Also draw which bases the classes use in this split of the data set.
            root: Folder of the data set, if it has moved since training.
            dataset: Another data set of the same classes: a name or a dataset.json.
            device: auto, cpu, cuda or cuda:N.
        """
        return locals()

    given = _cli(command, arguments, "explain")
    from .explain import explain_files

    failures = explain_files(given.pop("model"), given.pop("images"), **given)
    if failures:
        raise InputError(f"{len(failures)} images could not be explained; the others were")


def submit(arguments: list[str]) -> None:
    import tyro

    from .config import EvalConfig

    def command(
        model: _positional(str, "MODEL"),
        /,
        images: str,
        out: str,
        format: Literal["auto", "voc", "cityscapes", "ade20k"] = "auto",
        competition: Literal["comp5", "comp6"] = "comp6",
        device: str = "auto",
        settings: Annotated[EvalConfig, tyro.conf.arg(name="")] = EvalConfig(),  # noqa: B008
    ) -> dict[str, Any]:
        """Predict test images and pack the result as the evaluation server takes it.

        Args:
            model: A model file or a run folder.
            images: Folder of images, or a text file that names one a line, relative to
                its own folder.
            out: The archive: .tar.gz for VOC, .zip for Cityscapes and ADE20K.
            format: Whose server; auto: by the model's classes.
            competition: VOC's; comp5: trained on VOC alone, comp6: on other data too.
            device: auto, cpu, cuda or cuda:N.
        """
        return locals()

    given = _cli_of_model(command, arguments, "submit")
    from .predict import Predictor
    from .submit import submit as run

    predictor = Predictor(given["model"], device=given["device"], config=given["settings"])
    run(predictor, given["images"], given["out"], format=given["format"], competition=given["competition"])


def convert(arguments: list[str]) -> None:
    import tyro

    flag = tyro.conf.FlagCreatePairsOff[bool]
    whole = Annotated[int | None, tyro.conf.arg(metavar="INT")]
    numbers = Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="FLOAT ...")]

    def command(
        source: _positional(str, "SRC"),
        destination: _positional(str, "DST"),
        /,
        layout: Annotated[str, tyro.conf.arg(name="from")] = "",
        entry: str = "",
        dataset: str = "",
        backbone: str = "",
        output_stride: whole = None,
        multi_grid: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="INT ...")] = None,
        dilation: Literal["contract", "uniform"] | None = None,
        align_corners: flag = False,
        no_align_corners: flag = False,
        eps: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None,
        em_steps: whole = None,
        mean: numbers = None,
        std: numbers = None,
        force: flag = False,
    ) -> None:
        """Turn another program's checkpoint into a model file, or its backbone into one.

        Weights do not tell every setting: what was decided, and why, is printed.

        Args:
            source: A .pth, .pdparams or .safetensors file; nothing in it is run.
            destination: The .safetensors file to write.
            layout: original, mmseg, ssseg or paddleseg; for backbones torchvision,
                encoding, v1c or timm. Default: told from the keys.
            entry: The file's table of weights, where it has several: model_ema.
            dataset: Names and colours of the classes: a name or a dataset.json.
            backbone: timm's name of the backbone; default: from the shapes.
            output_stride: 8, 16 or 32; default 8, or what the file states.
            multi_grid: Factors on layer4's dilations; 1 2 4 for the original, else 1 1 1.
            dilation: See BackboneConfig; uniform for PaddleSeg, else contract.
            align_corners: Upsample logits so; default for the original.
            no_align_corners: Or not so; default for its relatives.
            eps: Of the M-step; default 1e-6 for the original, 1e-12 for its relatives.
            em_steps: Iterations of the EM; default 3, or what the file states.
            mean: Of the pixels in 0 to 1, one per channel.
            std: The same for their standard deviation.
            force: Overwrite DST.
        """
        from .convert import convert as run

        if align_corners and no_align_corners:
            raise InputError("--align-corners and --no-align-corners exclude each other")
        run(
            source,
            destination,
            layout=layout,
            entry=entry,
            dataset=dataset,
            backbone=backbone,
            output_stride=output_stride,
            multi_grid=multi_grid,
            dilation=dilation,
            align_corners=True if align_corners else False if no_align_corners else None,
            eps=eps,
            em_steps=em_steps,
            mean=mean,
            std=std,
            force=force,
            tell=print,
        )
        print(f"wrote {destination}")

    _cli(command, arguments, "convert")


def config(arguments: list[str]) -> None:
    """config show EXPERIMENT | config diff A B"""
    import json

    from .experiments import flatten, load_experiment, to_dict

    def show(experiment: _positional(str, "EXPERIMENT"), /, format: Literal["flat", "json"] = "flat") -> None:
        """Every setting of an experiment, run folder, config.json or model file.

        Args:
            experiment: A name, a .py file, a config.json, a run folder or a model file.
            format: flat: one `name = value` a line; json: what a run folder's config.json holds.
        """
        loaded = load_experiment(experiment)
        if format == "json":
            print(json.dumps(to_dict(loaded), indent=2))
        else:
            print("\n".join(f"{name} = {value!r}" for name, value in flatten(loaded).items()))

    def diff(a: _positional(str, "A"), b: _positional(str, "B"), /) -> None:
        """What differs between two experiments, run folders or model files.

        Args:
            a: A name, a .py file, a config.json, a run folder or a model file.
            b: The same.
        """
        flat_a, flat_b = (flatten(_with_spec(load_experiment(source))) for source in (a, b))
        for name in flat_a | flat_b:
            if flat_a.get(name) != flat_b.get(name):
                print(f"{name}: {flat_a.get(name)!r} -> {flat_b.get(name)!r}")

    _subcommand({"show": show, "diff": diff}, arguments, "config")


def _with_spec(experiment):
    """The experiment with its data set's spec and root filled in as in a run's config, if they can be found."""
    from .data.datasets import resolve
    from .experiments import override

    try:
        return override(experiment, {"data": resolve(experiment.data)})
    except InputError:
        return experiment


def compare(arguments: list[str]) -> None:
    def command(runs: _positional(tuple[str, ...], "RUN ..."), /, picture: str = "") -> None:
        """Metrics of run folders side by side.

        Args:
            runs: Run folders.
            picture: File for a picture of their curves.
        """
        from .compare import compare as run

        if not runs:
            raise InputError("compare needs at least one run folder")
        run(list(runs), picture or None)

    _cli(command, arguments, "compare")


def profile(arguments: list[str]) -> None:
    def command(
        experiments: _positional(tuple[str, ...], "[EXPERIMENT ...]") = (),
        size: tuple[int, int] = (513, 513),
        batch: int = 1,
        json: str = "",
        csv: str = "",
        markdown: str = "",
        device: str = "auto",
        memory: bool = False,
        training: bool = False,
        by_module: bool = False,
        paper: bool = False,
        published: bool = False,
    ) -> dict[str, Any]:
        """What a model costs: parameters, multiply-adds, and measured memory.

        Args:
            experiments: Names, .py files, config.json files, run folders, model files.
            size: Height and width of the images, in pixels.
            batch: Images at a time.
            json: File for the figures as a list of objects; alone or -: to the terminal.
            csv: The same as a table with a header.
            markdown: The same as a Markdown table.
            device: Where memory is measured: auto, cpu, cuda or cuda:N.
            memory: Measure the memory of an inference beyond the weights.
            training: Measure that of a training step too.
            by_module: A line for each module of the backbone and of the heads too.
            paper: The paper's Table 1 beside what is counted here, instead of experiments.
            published: The published figures that this project knows, instead of experiments.
        """
        return locals()

    # The profiler that measures memory logs on stderr; this is read when torch is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    files = ("--json", "--csv", "--markdown")
    following = [*arguments[1:], "--"]
    given = [
        word
        for argument, after in zip(arguments, following, strict=False)
        for word in ([argument, "-"] if argument in files and after.startswith("--") else [argument])
    ]
    values = _cli(command, given, "profile")
    from .profile import profile

    profile(**values)


def data(arguments: list[str]) -> None:
    def draw(folder: _positional(str, "FOLDER"), /, train: int = 200, val: int = 40) -> None:
        """Write drawn scenes as a folder data set: an example of the layout, with its dataset.json.

        Args:
            folder: New folder for it.
            train: Images of the training split.
            val: Images of the validation split.
        """
        from .data.export import write_drawn

        write_drawn(Path(folder), {"train": train, "val": val})

    def prepare(name: _positional(str, "NAME"), /, root: str = "", archives: str = "", workers: int = 0) -> None:
        """Fetch, unpack and convert a public data set; once more, and it goes on where it stopped.

        Args:
            name: One of voc, coco_voc, context59, context60, cocostuff10k,
                cocostuff164k, cityscapes, ade20k.
            root: Folder for it; default data/NAME.
            archives: Folder of archives, used if they are there; default ROOT/archives.
            workers: Processes that convert masks; default one per core.
        """
        from .data.prepare import prepare as run

        run(name, root, archives, workers)

    _subcommand({"draw": draw, "prepare": prepare}, arguments, "data")


def _positional(kind: Any, name: str) -> Any:
    """An argument's type: without a flag, called `name` in the help."""
    import tyro

    return Annotated[kind, tyro.conf.Positional, tyro.conf.arg(metavar=name)]


def _cli(command, arguments: list[str], prog: str):
    import tyro

    @functools.wraps(command)
    def parse(*values, **named):
        return values, named

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # around the parsing alone: what the command itself says is not ours
            # A union (a data set's spec or none) is filled from its default; it must not become a subcommand.
            config = (tyro.conf.AvoidSubcommands,)
            values, named = tyro.cli(parse, args=arguments, prog=f"python -m emanet {prog}", config=config)
    except SystemExit as end:
        if end.code:
            raise InputError(_sentence(said.getvalue())) from None
        raise
    return command(*values, **named)


def _sentence(box: str) -> str:
    """What the CLI library says in a box of several paragraphs, as one sentence: the first, and the nearest option."""
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ ")
        if line.startswith(("╭", "╰")) or not text:
            continue
        if text.strip("─-"):
            paragraphs[-1].append(text)
        else:
            paragraphs.append([])
    if "╭" not in box and len(paragraphs) > 1:
        del paragraphs[0]  # without Unicode the box's title is a paragraph too
    what = " ".join(paragraphs[0]).rstrip(".")
    near = [text.split()[0] for paragraph in paragraphs[1:] for text in paragraph if text.startswith("--")]
    return what + (f"; did you mean {near[0]}?" if near and what.startswith("Unrecognized") else "")


def _cli_of_model(command, arguments: list[str], prog: str) -> dict[str, Any]:
    """The arguments by name of a command with a `model` and, last, evaluation `settings`.

    The model's own settings are their defaults, so the arguments are read again once the model is known.
    """
    from .experiments import load_experiment

    given = _cli(command, arguments, prog)
    if given["model"]:
        from .checkpoint import model_path

        own = load_experiment(str(model_path(given["model"]))).eval
        command.__defaults__ = (*command.__defaults__[:-1], own)
        given = _cli(command, arguments, prog)
    return given


def _subcommand(commands: dict, arguments: list[str], prog: str) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(f"usage: python -m emanet {prog} COMMAND [-h] ...\n\ncommands:")
        print("\n".join(f"  {name:10} {command.__doc__.splitlines()[0]}" for name, command in commands.items()))
    elif name in commands:
        _cli(commands[name], arguments[1:], f"{prog} {name}")
    else:
        raise InputError(f"no command {f'{prog} {name}'!r}{suggest(name, commands)}")
