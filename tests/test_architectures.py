"""One architecture without the rest of timm: the same network, and timm as it is for everybody else."""

import subprocess
import sys

import pytest
import timm
import torch

from emanet import architectures

# Run in a fresh process, where timm has not been imported whole.
ALONE = """
import sys
import torch
from emanet import architectures
torch.manual_seed(0)
net = architectures.create("{name}", features_only=True, in_chans=3)
assert architectures.home("{name}") == "{home}"
loaded = [name for name in sys.modules if name.startswith("timm.models.") and not name.startswith("timm.models._")]
assert len(loaded) < 5, loaded
heavy = [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "sympy")]
assert not heavy, heavy
torch.save(net.state_dict(), sys.argv[1])
import timm
assert timm.__version__ and timm.is_model("convnext_tiny") and timm.models.resnet50 is not None
assert isinstance(net, (timm.models.FeatureListNet, torch.nn.Module))
assert "create_transform" in dir(timm.data)
import torchvision
assert torchvision.ops.nms is not None and torchvision.__version__
# A second one, with timm imported whole by now.
torch.manual_seed(0)
again = architectures.create("{name}", features_only=True, in_chans=3)
assert type(again) is type(net)
"""


def run(program: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "home"), [("test_resnet", "resnet"), ("test_efficientnet", "efficientnet")])
def test_alone_it_is_timms_own_and_timm_is_whole_afterwards(name, home, tmp_path):
    run(ALONE.format(name=name, home=home), str(tmp_path / "state.pt"))
    torch.manual_seed(0)
    whole = timm.create_model(name, features_only=True, in_chans=3).state_dict()
    alone = torch.load(tmp_path / "state.pt")
    assert list(alone) == list(whole) and all(torch.equal(alone[key], whole[key]) for key in whole)


def test_another_layout_of_timm_falls_back_to_the_plain_import():
    run(
        "import sys, emanet.architectures as a\n"
        "a.DEFERRED['timm.data'] = 'timm.data.no_such_module'\n"
        "net = a.create('test_resnet', features_only=True)\n"
        "import timm\n"
        "assert type(timm) is type(sys) and not any(isinstance(m, a._Deferred) for m in sys.modules.values())\n"
        "assert type(net).__module__ == 'timm.models._features' and a.home('no_such_model') is None\n"
    )


def test_names_that_timm_lacks_and_models_of_others():
    assert architectures.home("no_such_model") is None
    assert architectures.home("vit_tiny_patch16_224") == "vision_transformer"
    with pytest.raises(RuntimeError, match="no_such_model"):
        architectures.create("no_such_model")
