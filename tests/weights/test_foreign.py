"""Foreign files give their weights; whatever is more than data is refused, and none of it runs."""

import argparse
import collections
import datetime
import io
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from emanet.errors import InputError
from emanet.weights import foreign
from emanet.weights.foreign import Array, Inert

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.num_batches_tracked": torch.tensor(3)}
ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "names@@": {"a": "linear_0"}}


def save_zip(content, path):
    torch.save(content, path)


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=4))


FORMATS = {"zip": save_zip, "legacy": save_legacy, "pdparams": save_pickle}


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_torch_files(save, tmp_path):
    save({"net": collections.OrderedDict(STATE), "step": 30}, tmp_path / "x.pth")
    content = foreign.read(tmp_path / "x.pth")
    assert content["step"] == 30 and all(torch.equal(content["net"][key], value) for key, value in STATE.items())


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_paddle_files(protocol, tmp_path):
    turned = {"b": np.asfortranarray(ARRAYS["a.weight"]), "half": np.ones(2, np.float16)}
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(collections.OrderedDict(ARRAYS | turned), protocol=protocol))
    content = foreign.read(tmp_path / "x.pdparams")
    assert torch.equal(content["a.weight"], STATE["a.weight"]) and torch.equal(content["b"], STATE["a.weight"])
    assert content["half"].dtype == torch.float16 and content["names@@"] == {"a": "linear_0"}


def test_numpy_1_named_its_modules_otherwise(tmp_path):
    data = pickle.dumps(ARRAYS, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "x.pdparams").write_bytes(data)
    assert torch.equal(foreign.read(tmp_path / "x.pdparams")["a.weight"], STATE["a.weight"])


def test_safetensors_under_any_name(tmp_path):
    save_file(STATE, tmp_path / "weights")
    assert torch.equal(foreign.read(tmp_path / "weights")["a.weight"], STATE["a.weight"])


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_what_lies_beside_the_weights_is_inert(save, tmp_path, monkeypatch):
    """mmengine keeps buffers of its own class, which has methods in it; numpy's arrays and scalars come along."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    buffer = type("HistoryBuffer", (), {"__module__": module.__name__, "largest": lambda self: 1})
    module.HistoryBuffer = buffer
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    history = buffer()
    history.values, history.method = np.ones(3), history.largest  # a bound method is pickled as getattr(...)
    beside = {"history": history, "scalar": np.float64(2), "palette": np.uint8([[1, 2, 3]])}
    save({"state_dict": STATE, "meta": beside, "args": argparse.Namespace(lr=1)}, tmp_path / "x.pth")
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    content = foreign.read(tmp_path / "x.pth")
    assert torch.equal(content["state_dict"]["a.weight"], STATE["a.weight"])
    assert isinstance(content["args"], Inert) and isinstance(content["meta"]["history"], Inert)
    palette = content["meta"]["palette"]
    assert isinstance(palette, Array) and palette.value().tolist() == [[1, 2, 3]]
    assert not any(name.startswith("mmengine") for name in sys.modules)


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("save", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("function", [open, eval, exec, __import__, getattr], ids=lambda f: f.__name__)
def test_code_in_a_file_is_refused_and_does_not_run(save, function, tmp_path):
    made = tmp_path / "made"
    arguments = {"open": (str(made), "w"), "__import__": ("antigravity",), "getattr": ("text", "upper")}
    code = f"open({str(made)!r}, 'w')"
    content = {"w": STATE["a.weight"].numpy() if save is save_pickle else STATE["a.weight"]}
    save(content | {"x": Call(function, *arguments.get(function.__name__, (code,)))}, tmp_path / "x.pth")
    if function is getattr and save is not save_pickle:  # known beside weights, where it gives nothing
        assert isinstance(foreign.read(tmp_path / "x.pth")["x"], Inert)
    else:
        with pytest.raises(InputError, match=f"x.pth is refused, and nothing in it was run: .*{function.__name__}"):
            foreign.read(tmp_path / "x.pth")
    assert not made.exists() and "antigravity" not in sys.modules


def get(*names):
    """A pickle that fetches the attributes one by one: module, name, then what is called on it, by hand."""
    return b"".join(b"c" + module.encode() + b"\n" + name.encode() + b"\n" for module, name in names)


@pytest.mark.parametrize(
    "body",
    {
        # getattr(Array, '__init__').__globals__ and the like: only what is in the table can be named at all
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        "builtins": b"\x80\x02" + get(("__builtin__", "eval")) + b"X\x01\x00\x00\x001\x85R.",
        "os": b"\x80\x02" + get(("posix", "system")) + b"X\x04\x00\x00\x00true\x85R.",
        "torch": b"\x80\x02" + get(("torch.hub", "load")) + b")R.",
        # calls of the allowed ones with what they do not take
        "encode": b"\x80\x02" + get(("_codecs", "encode")) + b"X\x01\x00\x00\x00aX\x06\x00\x00\x00base64\x86R.",
        "set a class's method": b"\x80\x02" + get(("numpy", "dtype")) + b"}X\x08\x00\x00\x00__init__NstR\x86b.",
        "set a class's state": b"\x80\x02" + get(("numpy", "ndarray")) + b"}b.",
        "instance": b"\x80\x02(X\x02\x00\x00\x00ls" + b"iposix\nsystem\n.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"\x80\x02Pname\n.",
        "memory": b"\x80\x04}r\xff\xff\xff\x7f.",
        "long": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        "cut": pickle.dumps(ARRAYS)[:-20],
        "nested": b"\x80\x02}N" + b"\x85" * 60_000 + b"Ns.",
    }.items(),
    ids=lambda item: item[0],
)
def test_no_pickle_breaks_out_of_what_is_allowed(body, tmp_path):
    before = {name: dict(vars(kind)) for name, kind in foreign.PLAIN.items()}
    (tmp_path / "x.pdparams").write_bytes(body[1])
    with pytest.raises(InputError, match="x.pdparams"):
        foreign.read(tmp_path / "x.pdparams")
    assert before == {name: dict(vars(kind)) for name, kind in foreign.PLAIN.items()}


def test_a_pickle_inside_pytorchs_formats_is_held_to_the_same(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/version", "3")
        archive.writestr("x/data.pkl", b"\x80\x02" + get(("posix", "system")) + b"X\x04\x00\x00\x00true\x85R.")
    with pytest.raises(InputError, match=r"refused, and nothing in it was run: it needs posix.system, which is code"):
        foreign.read(tmp_path / "x.pth")


def test_nested_tuples_within_the_limit_do_not_overflow_the_stack(tmp_path):
    (tmp_path / "x.pdparams").write_bytes(b"\x80\x02})" + b"\x85" * 14_000 + b"Ns.")
    foreign.read(tmp_path / "x.pdparams")


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: torch.zeros(1).expand(1 << 40), "w in .*x.pth is an expanded view of fewer values"),
        (lambda: torch.empty(3, device="meta"), "w in .*x.pth is a meta tensor, not a plain one"),
        (lambda: torch.eye(3).to_sparse(), "w in .*x.pth is a sparse tensor"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "w in .*x.pth is a quantised tensor"),
        (lambda: list(torch.ones(1 << 20).view(1, -1).expand(4, -1)), "x.pth has .* bytes, but its tensors claim"),
    ],
    ids=["expanded", "meta", "sparse", "quantised", "shared"],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor", "ignore:.*[Qq]uant", "ignore:TypedStorage")
def test_only_plain_tensors_with_all_their_values(save, value, message, tmp_path):
    save({"state_dict": {"w": value()}}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=message):
        foreign.read(tmp_path / "x.pth")


def test_arrays_that_share_their_values_are_counted(tmp_path):
    raw = bytes(1 << 20)

    class Sharing:
        def __reduce__(self):
            kind = Call(np.dtype, "u1")
            kind.call = (*kind.call, (3, "|", None, None, None, -1, -1, 0))
            return np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (1 << 20,), kind, False, raw)

    (tmp_path / "x.pdparams").write_bytes(pickle.dumps({str(i): Sharing() for i in range(9)}, protocol=4))
    with pytest.raises(InputError, match="x.pdparams has .* bytes, but its arrays claim more"):
        foreign.read(tmp_path / "x.pdparams")


def test_bytearrays_of_any_size_are_refused(tmp_path):
    save_zip({"w": torch.ones(1), "x": bytearray(3)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="refused, and nothing in it was run: it needs builtins.bytearray"):
        foreign.read(tmp_path / "x.pth")


def test_zips_that_cannot_be_unpacked(tmp_path):
    path = tmp_path / "x.pth"
    for field, value, message in ((8, 1, "encrypted"), (10, 97, "compression method")):
        save_zip(STATE, path)
        data = bytearray(path.read_bytes())
        start = data.find(b"PK\x01\x02")
        data[start + field] = data[data.find(b"PK\x03\x04") + field - 2] = value
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"cannot read .*{message}"):
            foreign.read(path)
    with pytest.raises(InputError, match="cannot read .*: File name too long"):
        foreign.read(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"shape": (3, 3)}, "shape does not match its bytes"),
        ({"shape": (-2, -3)}, "shape does not match its bytes"),
        ({"kind": "O8"}, "does not hold numbers"),
        ({"order": ">"}, "is not little-endian"),
    ],
)
def test_arrays_that_contradict_themselves(edit, message, tmp_path):
    class Lying:
        def __reduce__(self):
            kind = Call(np.dtype, edit.get("kind", "f4"))
            kind.call = (*kind.call, (3, edit.get("order", "<"), None, None, None, -1, -1, 0))
            raw = ARRAYS["a.weight"].tobytes()
            reconstruct = np.empty(0).__reduce__()[0]
            return reconstruct, (np.ndarray, (0,), b"b"), (1, edit.get("shape", (2, 3)), kind, False, raw)

    (tmp_path / "x.pdparams").write_bytes(pickle.dumps({"w": Lying()}, protocol=2))
    with pytest.raises(InputError, match=f"cannot read .*x.pdparams: .*{message}"):
        foreign.read(tmp_path / "x.pdparams")


def test_what_is_no_checkpoint_says_so(tmp_path):
    path = tmp_path / "x.pth"
    for content, message in (
        (b"", "is not a checkpoint"),
        (b"not found", "is not a checkpoint of PyTorch, Paddle or safetensors"),
        (b"<html>not found", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (b"PK\x03\x04 cut short", "cannot read"),
        (pickle.dumps([1, 2]), "holds a list, not a table of weights"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            foreign.read(path)
    with pytest.raises(InputError, match="cannot read .*absent.pth: No such file"):
        foreign.read(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="Is a directory"):
        foreign.read(tmp_path)


def test_safetensors_whose_length_looks_like_a_pickle(tmp_path):
    path, count = tmp_path / "a.safetensors", 0
    while not path.exists() or path.read_bytes()[0] != 0x80:  # the header grows by steps of 8 bytes
        count += 1
        save_file({"x": torch.ones(2)}, path, {"note": "n" * count})
    assert torch.equal(foreign.read(path)["x"], torch.ones(2))


def test_a_damaged_weight_is_noticed(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"weight": torch.arange(5000.0)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="a.pth is damaged, or was saved without checksums: .*mismatch in a/data/0"):
        foreign.read(path)


def test_archives_that_are_no_checkpoints(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("model.pdparams"), io.BytesIO())
    with pytest.raises(InputError, match="is a .tar: unpack it"):
        foreign.read(tmp_path / "x.tar")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme", "")
    with pytest.raises(InputError, match="is a zip file, but PyTorch did not write it"):
        foreign.read(tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/data/0", bytes(100_000))
    with pytest.raises(InputError, match="is a compressed zip file"):
        foreign.read(tmp_path / "bomb.pth")
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "script.pt")
    with pytest.raises(InputError, match="is a TorchScript archive, which is code"):
        foreign.read(tmp_path / "script.pt")


def test_harmless_objects_beside_weights(tmp_path):
    """Paths, dates, tables with defaults, and objects of a trainer's own classes stand still; nothing of them runs."""
    beside = {
        "path": Path("/data/run"),
        "date": datetime.datetime(2024, 1, 2),
        "history": collections.defaultdict(list, {"loss": [1.0]}),
        "tags": {"a", "b"},
        "args": argparse.Namespace(lr=0.1),
        "size": torch.Size([1, 2]),
        "counts": collections.Counter("aab"),
        "scalar": np.float64(0.5),
    }
    torch.save({"epoch": 3, "state_dict": {"conv.weight": torch.ones(2, 2)}, **beside}, tmp_path / "x.pth")
    content = foreign.read(tmp_path / "x.pth")
    assert content["history"] == {"loss": [1.0]} and isinstance(content["path"], Inert)
    entry, state = foreign.weights(content, "", tmp_path / "x.pth")
    assert entry == "state_dict" and list(state) == ["conv.weight"]


@pytest.mark.parametrize(
    "name, harmless",
    [
        ("os.system", False),
        ("posix.system", False),
        ("builtins.eval", False),
        ("__builtin__.exec", False),
        ("subprocess.Popen", False),
        ("torch.hub.load", False),
        ("shutil.rmtree", False),
        ("pathlib.PosixPath", True),
        ("mytrainer.config.Config", True),
        ("__main__.Config", True),
        ("pytorch_lightning.callbacks.ModelCheckpoint", True),
    ],
)
def test_which_names_may_stand_beside_weights(name, harmless):
    assert foreign._is_harmless(name) == harmless


@pytest.mark.parametrize(
    "table", ["state_dict", "model_state_dict", "model", "net", "params", "ema", "whatever_the_author_likes"]
)
def test_tables_of_weights(tmp_path, table):
    weights = {"a.weight": torch.ones(1)}
    content = {"epoch": 1, "optimizer": {"state": {}, "lr": 0.1}, table: weights}
    assert foreign.weights(content, "", tmp_path)[0] == table


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module.", "module._orig_mod.", "model.", "model.backbone.", "_forward_module.net.encoder."],
)
def test_prefixes_of_wrappers(prefix):
    state = {f"{prefix}conv1.weight": 1, f"{prefix}bn1.bias": 2}
    *_, (removed, inner) = foreign.unwrapped(state)
    assert removed == prefix and inner == {"conv1.weight": 1, "bn1.bias": 2}


def test_a_prefix_that_only_some_keys_have_stays():
    assert [removed for removed, _ in foreign.unwrapped({"model.a": 1, "loss.b": 2})] == [""]


def test_one_part_of_a_table(tmp_path):
    state = {"encoder.a": 1, "decoder.b": 2}
    assert foreign.part(state, "encoder.", tmp_path) == {"a": 1}
    with pytest.raises(InputError, match="begins with 'head.'; they begin with encoder., decoder."):
        foreign.part(state, "head.", tmp_path)


class OwnDict(dict):
    pass


class OwnList(list):
    pass


@pytest.mark.parametrize("legacy", [False, True])
def test_containers_of_own_classes_beside_weights(tmp_path, legacy):
    own = OwnDict(a=1)
    own.frozen = True
    beside = {"config": own, "history": OwnList([1]), "window": collections.deque([1, 2], maxlen=3)}
    content = {"model": {"a.weight": torch.ones(1)}, **beside}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    found = foreign.read(tmp_path / "x.pth")
    assert found["config"] == {"a": 1} and found["history"] == [1] and found["window"] == [1, 2]


def test_what_is_refused_is_named_and_nothing_else(tmp_path):
    torch.save({"a": torch.ones(1), "set": {1}, "call": len}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="it needs __builtin__.len, which is code"):
        foreign.read(tmp_path / "x.pth")


@pytest.mark.parametrize("again", [b"2\x86", b"q\x01h\x01\x86"], ids=["dup", "memo"])
def test_tuples_that_hold_each_other_are_not_hashed(tmp_path, again):
    (tmp_path / "x.pdparams").write_bytes(b"\x80\x02})" + again * 60 + b"K\x01s.")
    with pytest.raises(InputError, match="nests more than weights need"):
        foreign.read(tmp_path / "x.pdparams")


def test_tables_within_tables(tmp_path):
    table = {"a.weight": torch.ones(1)}
    assert foreign.weights({"checkpoint": {"model": table, "epoch": 1}}, "", tmp_path) == ("checkpoint.model", table)
    with pytest.raises(InputError, match="tables student, teacher: name the one of weights to convert, as its entry"):
        foreign.weights({"student": table, "teacher": table}, "", tmp_path)
    flat = {"a": torch.ones(1), "b": torch.ones(1), "extra": {"c": torch.ones(1)}}
    assert foreign.weights(flat, "", tmp_path)[0] == ""


@pytest.mark.parametrize(
    "start, said", [(b"version https://git-lfs.github.com/spec/v1", "Git LFS"), (b"<!DOCTYPE html>", "web page")]
)
def test_what_came_instead_of_a_checkpoint(tmp_path, start, said):
    (tmp_path / "x.pth").write_bytes(start)
    with pytest.raises(InputError, match=said):
        foreign.read(tmp_path / "x.pth")
