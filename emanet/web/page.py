"""The demo command: a Gradio page around a model, on this machine alone unless it is told otherwise.

    from emanet.web.page import serve

    serve("runs/a", host="0.0.0.0")   # app.py of a Space

The page itself is page.html, page.css and page.js, one component of Gradio's: it sends an image as a data URL through
Gradio's queue and draws the answer. There is no upload to a file and no state of a visitor.
"""

import base64
import binascii
import html
import importlib.util
import io
import os
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..config import EngineConfig
from ..deploy.artefact import Artefact
from ..errors import InputError, out_of_memory
from ..predict.inputs import find_images
from ..predict.predictor import Predictor
from ..show.terminal import note, say
from ..weights import zoo
from .answer import answer

if TYPE_CHECKING:
    import gradio

HERE = Path(__file__).parent
PHOTOS = HERE.parent.parent / "examples" / "photos"  # of a checkout; a wheel has none


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one visitor may ask of the page."""

    megabytes: float = 20
    """Of an image file."""
    pixels: int = 25_000_000
    """Of an image."""
    waiting: int = 16
    """Images that wait their turn."""
    seconds: float = 60
    """For one image."""


class Page:
    """The page of one model. `label` is the only thing that a visitor can call."""

    def __init__(self, predictor: Predictor, name: str, examples: Sequence[Path] = (), limits: Limits = Limits()):
        self.predictor, self.name, self.limits = predictor, name, limits
        self.examples = {path.stem: path.read_bytes() for path in examples}
        self.refusal = _refusal(predictor)
        # One thread for every image: images take turns, and OpenMP keeps threads for each thread that calls it.
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="label")

    def label(self, image: str) -> dict[str, Any]:
        """Label an image: a data URL (data:image/jpeg;base64,...), or the name of an example of the page."""
        import gradio

        future = None
        try:
            content = self.examples.get(image) if isinstance(image, str) else None
            content = content or _decoded(image, self.limits.megabytes)
            future = self.worker.submit(answer, self.predictor, self.name, content, explain=not self.refusal)
            return future.result(self.limits.seconds)
        except InputError as error:
            sentence = str(error)
        except TimeoutError:
            sentence = f"This image took longer than {self.limits.seconds:g} s. Try a smaller one."
        except Exception as error:
            sentence = "This image needs more memory than there is. Try a smaller one."
            if not out_of_memory(error):
                for line in traceback.format_exc().splitlines():
                    note(line)
                sentence = "This image could not be labelled. That is a fault of the page, not of the image."
        finally:
            if future:
                future.cancel()  # does nothing to one that runs or is done
        sentence = html.escape(f"{sentence[:1].upper()}{sentence[1:]}", quote=False)  # Gradio shows HTML
        raise gradio.Error(sentence, print_exception=False)

    def blocks(self) -> "gradio.Blocks":
        """The page as Gradio's Blocks."""
        import gradio

        def text(name: str) -> str:
            return (HERE / name).read_text("utf-8")

        with gradio.Blocks(title=f"{self.name} · EMANet", analytics_enabled=False) as blocks:
            page = gradio.HTML(
                value="",
                html_template=text("page.html"),
                js_on_load=text("page.js"),
                head=f"<style>{text('page.css')}</style>",
                apply_default_css=False,
                facts={
                    "model": self.name,
                    "classes": len(self.predictor.classes),
                    "refusal": self.refusal,
                    "megabytes": self.limits.megabytes,
                    "examples": {name: _thumbnail(content) for name, content in self.examples.items()},
                },
            )
            asked = page.submit(self.label, page, page, api_name="label", show_progress="hidden", concurrency_limit=1)
            asked.failure(None, js="() => { window.dispatchEvent(new Event('emanet-failed')); }")
        blocks.queue(max_size=self.limits.waiting)
        return blocks

    def launch(self, host: str, port: int) -> "gradio.Blocks":
        """Serve the page in the background. InputError where the port is taken."""
        import gradio
        from starlette.middleware import Middleware

        fonts = ["ui-sans-serif", "system-ui", "sans-serif"]  # names alone: nothing is fetched from elsewhere
        mono = ["ui-monospace", "monospace"]
        theme = gradio.themes.Base(primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=mono)
        gate = Middleware(_Gate, megabytes=self.limits.megabytes)
        blocks = self.blocks()
        try:
            blocks.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                footer_links=[],
                run_history=False,  # else the browser keeps every answer
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                theme=theme,
                app_kwargs={"middleware": [gate]},
            )
        except OSError as error:
            text = f"cannot serve at {host}:{port}: the port is taken, or the address is not one of this machine"
            raise InputError(f"{text}; choose another --port or --host") from error
        return blocks


def serve(
    model: str = "",
    host: str = "127.0.0.1",
    port: int = 7860,
    examples: Sequence[str] = (),
    device: str = "auto",
    how: EngineConfig = EngineConfig(),
    limits: Limits = Limits(),
) -> None:
    """Serve the page until Ctrl-C. examples: files, folders and globs; default: those of `street` in a checkout."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    if importlib.util.find_spec("gradio") is None:
        raise InputError('the page needs Gradio: pip install "emanet[demo]"')
    predictor = Predictor(model or None, device=device, max_pixels=limits.pixels, **vars(how))
    own = model in ("", zoo.DEFAULT) and PHOTOS.is_dir()
    paths = [path for path, _ in find_images([*examples] or [str(PHOTOS)])] if examples or own else []
    page = Page(predictor, Path(model).name or zoo.DEFAULT, paths, limits)
    blocks = page.launch(host, port)
    say(f"the page is at {blocks.local_url}")
    note("stop it with Ctrl-C")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        blocks.close(verbose=False)


class _Gate:
    """Lets through what the page itself sends, up to a size. Gradio's uploads to files and other calls end here."""

    CALLS = ("/queue/join", "/cancel", "/reset", "/call/label")

    def __init__(self, app: Any, megabytes: float):
        self.app, self.megabytes = app, megabytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import JSONResponse

        status, sentence = self._refusal(scope)
        app = JSONResponse({"detail": sentence}, status) if status else self.app
        await app(scope, receive, send)

    def _refusal(self, scope: Any) -> tuple[int, str]:
        """The HTTP status and the sentence for what is not let through; 0 for the rest."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return 0, ""
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not scope["path"].rstrip("/").endswith(self.CALLS):
            return 404, "This page takes images by its call /label alone."
        if not length.isdigit():
            return 411, "The request does not say how long it is."
        if int(length) > self.megabytes * 2**20 * 4 / 3 + 10_000:  # base64, and what is around it
            return 413, f"The file is too large: the page takes up to {self.megabytes:g} MB."
        return 0, ""


def _decoded(image: Any, megabytes: float) -> bytes:
    """The bytes of a data URL. Raises InputError."""
    head, comma, body = image.partition(",") if isinstance(image, str) else ("", "", "")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise InputError("the page takes an image as a data URL, data:image/jpeg;base64,...")
    if len(body) * 3 / 4 > megabytes * 2**20 + 3:
        raise InputError(f"the file is too large: the page takes up to {megabytes:g} MB")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the image has not arrived whole; send it again") from None


def _refusal(predictor: Predictor) -> str:
    """Why the page cannot explain this model; "" if it can."""
    net: Any = predictor.function
    if isinstance(net, Artefact):
        return "An exported file gives labels alone. Serve the model file or the run folder to see its attention."
    from ..analysis.explain import emau_of
    from ..deploy.network import Whole

    if isinstance(net.head, Whole):
        return "This engine gives labels alone. Start the page with --engine plain to see the attention."
    try:
        emau_of(net)
    except InputError:
        return f"This model's head, {type(net.head).__name__}, has no EM attention: there are no bases to see."
    return ""


def _thumbnail(content: bytes) -> str:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image.thumbnail((240, 240))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
