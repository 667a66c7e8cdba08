"""What runs a model: train, evaluate, predict, explain, submit. Torch is imported once the arguments are known."""

from pathlib import Path
from typing import Annotated, Any, Literal

from ..errors import InputError
from .flags import parse_for_model, positional, run_with


def train(arguments: list[str]) -> None:
    """train EXPERIMENT [flags]: parse the flags over the experiment's own values."""
    import tyro

    from ..config import Experiment
    from ..experiments import experiment_names, load_experiment, override

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m emanet train EXPERIMENT [--out DIR] [--resume] [--FIELD VALUE]\n")
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
        from .. import distributed
        from ..run.folder import default_name
        from ..train import train as run

        if config.data.dataset != experiment.data.dataset:  # a run's config carries the spec and root of its own
            same_root = config.data.root == experiment.data.root
            config = override(config, {"data.spec": None} | ({"data.root": ""} if same_root else {}))
        folder = source if resume and not out and Path(source).is_dir() else out
        try:
            run(config, folder, name=default_name(source), resume=resume)
        finally:
            distributed.shutdown()

    run_with(command, flags, f"train {source}")


def evaluate(arguments: list[str]) -> None:
    import tyro

    from ..config import EngineConfig, EvalConfig

    def command(
        model: positional(str, "MODEL") = "",
        images: str = "",
        masks: str = "",
        split: str = "",
        root: str = "",
        dataset: str = "",
        json: str = "",
        picture: str = "",
        device: str = "auto",
        how: Annotated[EngineConfig, tyro.conf.arg(name="")] = EngineConfig(),  # noqa: B008
        settings: Annotated[EvalConfig, tyro.conf.arg(name="")] = EvalConfig(),  # noqa: B008
    ) -> dict[str, Any]:
        """Score a model, by default on the validation split it was trained with.

        Without MODEL, --images is a folder of label maps (index PNGs).

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

    given = parse_for_model(command, arguments, "evaluate")
    from ..analysis.score import score

    score(**vars(given.pop("how")), **given)


def predict(arguments: list[str]) -> None:
    import tyro

    from ..config import EngineConfig, EvalConfig

    def command(
        model: positional(str, "MODEL"),
        images: positional(tuple[str, ...], "IMAGE ..."),
        /,
        out: str,
        overlay: bool = True,
        batch: int = 1,
        rasters: Literal["auto", "always", "never"] = "auto",
        bands: tuple[int, ...] = (),
        max_pixels: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None,
        device: str = "auto",
        how: Annotated[EngineConfig, tyro.conf.arg(name="")] = EngineConfig(),  # noqa: B008
        settings: Annotated[EvalConfig, tyro.conf.arg(name="")] = EvalConfig(),  # noqa: B008
    ) -> dict[str, Any]:
        """Write a label map (index PNG with palette) and an overlay for every image.

        Args:
            model: A model file or a run folder.
            images: Files, folders and quoted globs.
            out: Folder for what is written.
            overlay: Also write the image with the classes' colours over it;
                never for a raster.
            batch: Images of one size, or a raster's windows, that go
                through the network at once; for GPUs.
            rasters: TIFFs to be predicted in blended windows (--window,
                --overlap), in bounded memory, and written as tiled
                TIFFs with their CRS and transform. auto: those with
                a georeference or 32 megapixels and more; always: all.
            bands: Bands of a TIFF that are the model's channels, from 1;
                by default all but alpha.
            max_pixels: Images of more are refused by their headers, rasters
                apart: 178,956,970, if not given; 10 bytes of memory each.
            device: auto, cpu, cuda or cuda:N.
        """
        return locals()

    given = parse_for_model(command, arguments, "predict")
    if not given["images"]:
        raise InputError("predict needs at least one image, folder or glob after MODEL")
    from ..predict.files import predict_files

    predictor = _predictor(given)
    options = {key: given[key] for key in ("overlay", "batch", "rasters", "bands")}
    failures = predict_files(predictor, given["images"], given["out"], **options)
    if failures:
        raise InputError(f"images that could not be predicted: {len(failures)}, named above")


def explain(arguments: list[str]) -> None:
    def command(
        model: positional(str, "MODEL"),
        images: positional(tuple[str, ...], "IMAGE ..."),
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

    given = run_with(command, arguments, "explain")
    from ..analysis.explain_files import explain_files

    failures = explain_files(given.pop("model"), given.pop("images"), **given)
    if failures:
        raise InputError(f"images that could not be explained: {len(failures)}, named above")


def submit(arguments: list[str]) -> None:
    import tyro

    from ..config import EngineConfig, EvalConfig

    def command(
        model: positional(str, "MODEL"),
        /,
        images: str,
        out: str,
        format: Literal["auto", "voc", "cityscapes", "ade20k"] = "auto",
        competition: Literal["comp5", "comp6"] = "comp6",
        device: str = "auto",
        how: Annotated[EngineConfig, tyro.conf.arg(name="")] = EngineConfig(),  # noqa: B008
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

    given = parse_for_model(command, arguments, "submit")
    from ..predict.submit import submit as run

    predictor = _predictor(given)
    run(predictor, given["images"], given["out"], format=given["format"], competition=given["competition"])


def _predictor(given: dict[str, Any]) -> Any:
    from ..predict.predictor import Predictor

    how = vars(given["how"]) | {"max_pixels": given.get("max_pixels")}
    return Predictor(given["model"], device=given["device"], config=given["settings"], **how)
