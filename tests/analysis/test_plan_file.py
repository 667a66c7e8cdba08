from emanet.analysis.plan_file import write_python
from emanet.config import DataConfig, Experiment
from emanet.experiments import load_experiment, override


def test_the_file_is_the_experiment(tmp_path):
    settings = {
        "model.backbone.name": ("resnet18", "a reason that is so long that it does not fit beside the setting " * 3),
        "model.align_corners": (False, "short"),
        "data.crop": ((64, 96), ""),
        "data.train_split": ("a 'b' \"c\" \\c", ""),
        "data.val_split": ("tab\t, \udcff and é", ""),
        "loss.class_weights": (tuple(i / 10 for i in range(1, 151)), "rare"),
        "steps": (12, "why"),
    }
    changes = {name: value for name, (value, _) in settings.items()}
    experiment = override(Experiment(data=DataConfig(dataset="my\\data")), changes)
    (tmp_path / "plan.py").write_text(write_python(experiment, settings, "a title", 'C:\\users\\"""\udcff and 1 hour'))
    assert load_experiment(str(tmp_path / "plan.py")) == experiment
    lines = (tmp_path / "plan.py").read_text().splitlines()
    assert max(map(len, lines)) <= 120 and "        align_corners=False,  # short" in lines
