"""What works on files and settings: convert, config, compare, profile, data."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from ..errors import InputError
from .flags import positional, run_with, subcommand


def convert(arguments: list[str]) -> None:
    import tyro

    flag = tyro.conf.FlagCreatePairsOff[bool]
    whole = Annotated[int | None, tyro.conf.arg(metavar="INT")]
    numbers = Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="FLOAT ...")]

    def command(
        source: positional(str, "SRC"),
        destination: positional(str, "DST"),
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
    ) -> dict[str, Any]:
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
        return locals()

    given = run_with(command, arguments, "convert")
    aligned, not_aligned = given.pop("align_corners"), given.pop("no_align_corners")
    if aligned and not_aligned:
        raise InputError("--align-corners and --no-align-corners exclude each other")
    from ..convert.convert import convert as run

    run(**given, align_corners=aligned if aligned or not_aligned else None, tell=print)
    print(f"wrote {given['destination']}")


def config(arguments: list[str]) -> None:
    """config show EXPERIMENT | config diff A B"""
    import json

    from ..experiments import flatten, load_experiment, to_dict

    def show(experiment: positional(str, "EXPERIMENT"), /, format: Literal["flat", "json"] = "flat") -> None:
        """Every setting of an experiment, run, config.json or model.

        Args:
            experiment: A name, a .py file, a config.json, a run folder or a model file.
            format: flat: one `name = value` a line; json: what a run folder's config.json holds.
        """
        loaded = load_experiment(experiment)
        if format == "json":
            print(json.dumps(to_dict(loaded), indent=2))
        else:
            print("\n".join(f"{name} = {value!r}" for name, value in flatten(loaded).items()))

    def diff(a: positional(str, "A"), b: positional(str, "B"), /) -> None:
        """What differs between two experiments, run folders or model files.

        Args:
            a: A name, a .py file, a config.json, a run folder or a model file.
            b: The same.
        """
        flat_a, flat_b = (flatten(_with_spec(load_experiment(source))) for source in (a, b))
        for name in flat_a | flat_b:
            if flat_a.get(name) != flat_b.get(name):
                print(f"{name}: {flat_a.get(name)!r} -> {flat_b.get(name)!r}")

    subcommand({"show": show, "diff": diff}, arguments, "config")


def _with_spec(experiment):
    """The experiment with its data set's spec and root filled in as in a run's config, if they can be found."""
    from ..data.datasets import resolve
    from ..experiments import override

    try:
        return override(experiment, {"data": resolve(experiment.data)})
    except InputError:
        return experiment


def compare(arguments: list[str]) -> None:
    def command(runs: positional(tuple[str, ...], "RUN ..."), /, picture: str = "") -> None:
        """Metrics of run folders side by side.

        Args:
            runs: Run folders.
            picture: File for a picture of their curves.
        """
        from ..analysis.compare import compare as run

        if not runs:
            raise InputError("compare needs at least one run folder")
        run(list(runs), picture or None)

    run_with(command, arguments, "compare")


def profile(arguments: list[str]) -> None:
    def command(
        experiments: positional(tuple[str, ...], "[EXPERIMENT ...]") = (),
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
    values = run_with(command, given, "profile")
    from ..analysis.cost import profile

    profile(**values)


def data(arguments: list[str]) -> None:
    import tyro

    def draw(folder: positional(str, "FOLDER"), /, train: int = 200, val: int = 40) -> None:
        """Write drawn scenes as a folder data set, an example of the layout.

        Args:
            folder: New folder for it.
            train: Images of the training split.
            val: Images of the validation split.
        """
        from ..data.drawn import write_drawn

        write_drawn(Path(folder), {"train": train, "val": val})

    def prepare(name: positional(str, "NAME"), /, root: str = "", archives: str = "") -> None:
        """Fetch, unpack and convert a public data set, or go on with it.

        Args:
            name: One of voc, coco_voc, context59, context60, cocostuff10k,
                cocostuff164k, cityscapes, ade20k.
            root: Folder for it; default data/NAME.
            archives: Folder of archives, used if they are there; default ROOT/archives.
        """
        from ..data.prepare.recipes import prepare as run

        run(name, root, archives)

    def pack(
        source: positional(str, "EXPERIMENT|DATASET"),
        /,
        out: str = "",
        root: str = "",
        split: str = "",
        shard_size: Annotated[int, tyro.conf.arg(metavar="MEGABYTES")] = 256,
    ) -> None:
        """Store a split in a few tar files, to train with --data.root OUT.

        Args:
            source: An experiment, or a data set's name, dataset.json or folder.
            out: Folder for the tar files; other splits may be there already.
            root: Folder of the data set; default as in training.
            split: Which one; default the experiment's for training, or train.
            shard_size: Size of a tar file.
        """
        from ..data.pack import pack_source

        print(pack_source(source, out, root, split, shard_size))

    def check(
        source: positional(str, "EXPERIMENT|DATASET"),
        /,
        root: str = "",
        split: str = "",
        json: str = "",
        html: str = "",
        channels: int = 0,
    ) -> None:
        """Find everything that is wrong with the files of a data set.

        Every image and mask is decoded, and splits are compared.

        Exit code 2: errors; training would fail, or learn wrong labels.

        Exit code 3: warnings, but no errors; something is suspicious.

        Exit code 0: sound; there may be notes.

        Args:
            source: An experiment, or a data set's name, dataset.json or folder.
            root: Folder of the data set; default as in training.
            split: Which one; default those an experiment uses, else all there are.
            json: File for everything that is found: all files, pixels per class.
            html: File for a page to look at, with pictures of faulty pairs.
            channels: Of the images; default those of the experiment, or 3.
        """
        import sys

        from ..data.check.report import check_files

        sys.exit(check_files(source, root, split, channels, json, html))

    subcommand({"draw": draw, "prepare": prepare, "pack": pack, "check": check}, arguments, "data")
