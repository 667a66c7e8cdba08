"""One of timm's architectures without the other hundred: `create("resnet50s", in_chans=3)`.

`import timm` runs every architecture, torchvision's too, and with them torch's compiler: 1.5 seconds, more than torch
itself takes, for a network that is in one file. Here only that file and what it needs is imported. The `__init__` of
the packages around it runs when somebody asks for a name of theirs, as in importlib.util.LazyLoader (which cannot defer
a package whose modules are imported): `timm.list_models()` works as ever. torchvision is forgotten again, so that its
next import is an ordinary one. Where any of this fails, in another version of timm perhaps, timm is imported whole.
"""

import functools
import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

# Packages whose `__init__` can wait, parents first, and the small modules that hold what others want of them.
DEFERRED = {
    "torchvision": "", "torchvision.ops": "", "torchvision.models": "",
    "timm": "timm.version", "timm.data": "timm.data.constants", "timm.models": "",
}  # fmt: skip
_lock = threading.RLock()


class _Deferred(ModuleType):
    """A package whose `__init__` runs when it is asked for a name that it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        # Python itself looks for names such as __wrapped__ on every module.
        if name.startswith("__") and name != "__version__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self._run()
        return ModuleType.__getattribute__(self, name)

    def __dir__(self) -> list[str]:
        self._run()
        return list(ModuleType.__dir__(self))

    def _run(self) -> None:
        with _lock:
            spec = self.__spec__
            if type(self) is _Deferred and spec and spec.loader and "_running" not in vars(self):
                vars(self)["_running"] = True  # the package's own modules ask it for names while it runs
                try:
                    spec.loader.exec_module(self)
                    self.__class__ = ModuleType  # type: ignore[assignment]
                finally:
                    del vars(self)["_running"]


def create(name: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """timm.create_model. Raises what that raises."""
    module = None if pretrained else _alone(name)
    if module:
        return getattr(module, name)(**arguments)
    import timm

    return timm.create_model(name, pretrained=pretrained, **arguments)


def home(name: str) -> str | None:
    """The module of timm.models that has the architecture: `vision_transformer`; None if timm has none of that name."""
    module = _alone(name)
    if module:
        return module.__name__.rpartition(".")[2]
    import timm

    return timm.model_entrypoint(name).__module__.rpartition(".")[2] if timm.is_model(name) else None


def _alone(name: str) -> ModuleType | None:
    """The module of timm.models that has the architecture, imported alone; None if `import timm` must do it."""
    with _lock:
        timm = sys.modules.get("timm")
        if timm is not None and type(timm) is not _Deferred:
            return None
        path = None if timm is None else list(timm.__path__)
        try:
            spec = PathFinder.find_spec("timm", path and [str(Path(path[0]).parent)])
            found = _file_of(name, Path(spec.origin).parent / "models") if spec and spec.origin else None
            if found is None:
                return None
            with _deferred():
                return importlib.import_module(f"timm.models.{found.stem}")
        except Exception:  # whatever another version has changed: `import timm` then works, or says why it does not
            return None


@functools.cache
def _file_of(name: str, folder: Path) -> Path | None:
    """The file that registers the architecture."""
    for path in sorted(folder.glob("*.py")):
        source = path.read_bytes()
        start = source.find(f"\ndef {name}(".encode())
        if start > 0 and source[:start].endswith(b"@register_model"):
            return path
    return None


@contextmanager
def _deferred() -> Iterator[None]:
    """Imports within leave the packages of DEFERRED deferred; after an error, nothing of them stays imported."""
    before = set(sys.modules)
    new = {name.partition(".")[0] for name in DEFERRED if name not in before and name.partition(".")[0] == name}
    try:
        for name, source in DEFERRED.items():
            if name.partition(".")[0] in new:
                _defer(name, source)
        yield
    except BaseException:
        _forget(new, before)
        raise
    _forget(new - {"timm"}, before)


def _defer(name: str, source: str) -> None:
    parent, _, own = name.rpartition(".")
    spec = PathFinder.find_spec(name, sys.modules[parent].__path__ if parent else None)
    if spec is None:
        raise ImportError(f"there is no package {name}", name=name)
    package = module_from_spec(spec)
    package.__class__ = _Deferred
    sys.modules[name] = package
    if parent:
        setattr(sys.modules[parent], own, package)
    if source:
        constants = vars(importlib.import_module(source))
        vars(package).update({key: value for key, value in constants.items() if key.isupper() or key == "__version__"})


def _forget(roots: set[str], before: set[str]) -> None:
    for name in [name for name in sys.modules if name not in before and name.partition(".")[0] in roots]:
        del sys.modules[name]
