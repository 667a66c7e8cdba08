"""A trained model as a folder of static files: a page that labels images in the visitor's browser.

    export_web(read("runs/a"), Path("page"), title="a")        # then: python -m http.server --directory page

browser/ has the page itself, export.py makes its model.onnx, and onnxruntime-web, which runs that in a browser, comes
from its npm package.
"""

import base64
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..atomic import require_writable_folder, write_json, write_whole
from ..emau import EMAU
from ..errors import InputError
from ..loading import model_of
from ..show.attention import base_colours
from ..weights.model_file import ModelFile
from .export import Comparison, export, require_exportable

PAGE = Path(__file__).parent / "browser"
STYLE = Path(__file__).parent.parent / "web" / "page.css"  # of the page that `demo` serves
PACKAGE = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # of its .tgz
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PATIENCE = 600.0  # seconds for npm: 33 MB


def export_web(file: ModelFile, out: Path, *, title: str, runtime: str | Path = "") -> Comparison:
    """Write the page into the folder `out`, which is made, and compare its model with PyTorch as `export` does.

    title: of the page. runtime: the .tgz of PACKAGE or a folder with its files, in place of a download by npm. Files
    that `out` has already are replaced. Raises InputError: before the work begins for a wrong runtime, or a model that
    takes other images than RGB.
    """
    model = model_of(file)
    if model.backbone.in_channels != 3 or model.bands or model.range:
        raise InputError(f"{file.path} does not take RGB images of 8 bits, and a browser gives no others")
    emau: Any = next((module for module in model.head.children() if isinstance(module, EMAU)), None)
    outputs = ("labels", "responsibilities") if emau else ("labels",)
    require_writable_folder(out)
    require_exportable("onnx", out / "model.onnx", outputs, "fp32", False)
    files = runtime_files(runtime)
    found = export(file, "onnx", out / "model.onnx", outputs=outputs)
    bases, side = emau.bases.shape[-1] if emau else 0, file.experiment.eval.longest_side
    (out / "onnxruntime").mkdir(exist_ok=True)
    for name, content in files.items():
        write_whole(out / "onnxruntime" / name, content)
    facts = {
        "name": title,
        "classes": model.classes,
        "palette": _hexadecimal(model.palette),
        "bytes": sum(map(len, files.values())) + (out / "model.onnx").stat().st_size,
        "side": 1280 if side else 640,  # up to where the page labels an image whole at first
        "longest_side": side,
        "stride": model.stride,
        "divisor": model.backbone.divisor,
        "align_corners": model.align_corners,
        "bases": bases,
        "steps": emau.em_steps if emau else 0,
        "base_colours": _hexadecimal(base_colours(bases).tolist()) if bases else [],
    }
    write_json(out / "model.json", facts)
    write_whole(out / "emanet.css", STYLE.read_bytes() + b"\n" + (PAGE / "emanet.css").read_bytes())
    for name in ("emanet.js", "index.html"):  # last the page, after what it needs
        write_whole(out / name, (PAGE / name).read_bytes())
    return found


def runtime_files(source: str | Path = "") -> dict[str, bytes]:
    """RUNTIME by name: from npm, the package's .tgz or a folder. Raises InputError that says how to get them."""
    given = Path(source) if source else None
    if given and given.is_dir():
        for folder in (given, given / "dist", given / "package" / "dist"):
            if all((folder / name).is_file() for name in RUNTIME):
                return {name: (folder / name).read_bytes() for name in RUNTIME}
        raise InputError(f"{source} has no {', '.join(RUNTIME)}; --runtime takes an unpacked {PACKAGE}, or its .tgz")
    if given and not given.is_file():
        raise InputError(f"there is no {source}; --runtime takes a folder with {PACKAGE}, or its .tgz")
    packed, origin = (given.read_bytes(), given) if given else (_from_npm(), "what npm has downloaded")
    if base64.b64encode(hashlib.sha512(packed).digest()).decode() != SHA512:
        raise InputError(f"{origin} is not {PACKAGE}, or is damaged: checksum mismatch")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        members: dict[str, Any] = {name: archive.extractfile(f"package/dist/{name}") for name in RUNTIME}
        return {name: member.read() for name, member in members.items()}


def _from_npm() -> bytes:
    """`npm pack`, which knows the user's registry and proxy, and keeps what it downloads in its own cache."""
    other = f"or run `npm pack {PACKAGE}` elsewhere and name the file with --runtime"
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"the page needs {PACKAGE} from npm, which is not installed; install npm, {other}")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", PACKAGE, "--prefer-offline"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
            reason = next((line for line in done.stderr.splitlines() if "error" in line.lower()), "no file")
        except subprocess.TimeoutExpired:
            reason = f"no answer in {PATIENCE:g} seconds"
        paths = sorted(Path(folder).glob("*.tgz"))
        if not paths:
            raise InputError(f"npm could not download {PACKAGE} ({reason}); try again, {other}")
        return paths[0].read_bytes()


def _hexadecimal(colours: Sequence[Sequence[int]]) -> list[str]:
    return ["#" + bytes(colour).hex() for colour in colours]
