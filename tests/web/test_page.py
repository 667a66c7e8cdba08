"""The page in a browser: a real upload, real clicks, and what is on the page then.

python -m pytest tests/web --write-docs -k documentation    # makes the screenshots in docs/images/

Skipped where Gradio, Playwright or Chromium is not installed.
"""

import base64
import importlib.util
import io
import json
import os
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, CONTRAST, chromium
from conftest import ROOT, run_cli, sentence
from PIL import Image

from emanet.analysis.explain import explain
from emanet.config import EvalConfig
from emanet.data.datasets import SPECS
from emanet.data.synthetic import draw_scene
from emanet.experiments import load_experiment, override
from emanet.model import build_model
from emanet.predict.predictor import Predictor
from emanet.show.attention import owners_overlay
from emanet.web.answer import answer
from emanet.web.page import PHOTOS, Limits, Page

if importlib.util.find_spec("gradio") is None:  # not imported here: that takes every worker two seconds
    pytest.skip("the page needs Gradio", allow_module_level=True)
pytest.importorskip("playwright.sync_api", reason="the browser is driven by Playwright")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
pytestmark = pytest.mark.xdist_group("web")  # one server and one browser for all
SIZE = (48, 64)
SMALL = {"model.head.channels": 16, "model.head.num_bases": 8, "model.head.dropout": 0.0}
IMAGES = ROOT / "docs" / "images"


def drawn_model(values=None):
    """Untrained, but it predicts most classes somewhere, and its responsibilities differ."""
    torch.manual_seed(0)
    config = override(load_experiment("drawn"), SMALL | (values or {}))
    model = build_model(config.model, SPECS["drawn"]).eval()
    torch.nn.init.normal_(model.head.classifier.weight)
    if hasattr(model.head, "emau"):
        model.head.emau.conv_in.weight.data *= 200
    with torch.no_grad():
        logits = model(torch.from_numpy(draw_scene(1, size=SIZE)[0].transpose(2, 0, 1)[None].copy()))
    model.head.classifier.bias.data -= logits.mean((0, 2, 3))
    return model


def photo(index=1, size=SIZE, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(draw_scene(index, size=size)[0]).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for everything temporary of Python's and Gradio's."""
    folder, before = tmp_path_factory.mktemp("temporary"), tempfile.tempdir
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        yield folder
    assert tempfile.tempdir == before


class Served:
    """A page that is being served."""

    def __init__(self, model, limits=None, examples=(), name="drawn"):
        limits = limits or Limits()
        config = EvalConfig(longest_side=640)
        self.predictor = Predictor(model, device="cpu", config=config, max_pixels=limits.pixels)
        self.page = Page(self.predictor, name, examples, limits)
        self.blocks = self.page.launch("127.0.0.1", _free_port())
        self.url = self.blocks.local_url.rstrip("/")

    def close(self):
        self.blocks.close(verbose=False)
        self.page.worker.shutdown()

    def post(self, path, content):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        request = urllib.request.Request(f"{self.url}{path}", body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def label(self, image, session):
        """What a browser does: join the queue, then read the events until the answer. (success, output or error)"""
        call = {"data": [image], "fn_index": 0, "session_hash": session}
        status, text = self.post("/gradio_api/queue/join", call)
        if status != 200:
            return False, text
        with urllib.request.urlopen(f"{self.url}/gradio_api/queue/data?session_hash={session}", timeout=120) as events:
            for line in events:
                event = json.loads(line[6:]) if line.startswith(b"data: ") else {}
                if event.get("msg") == "process_completed":
                    output = event["output"]
                    return event["success"], output["data"][0] if event["success"] else output["error"]
        return False, "the events ended"


def _free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def as_url(content):
    return f"data:image/any;base64,{base64.b64encode(content).decode()}"


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    example = tmp_path_factory.mktemp("examples") / "scene.png"
    example.write_bytes(photo(3))
    limits = Limits(megabytes=0.3, pixels=1_500_000)
    served = Served(drawn_model(), limits, [example])
    yield served
    served.close()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


class Tab:
    """A tab of the browser with a page in it; remembers what went wrong and where it sent requests."""

    def __init__(self, browser, url, size=(1280, 860), **options):
        # A colour that is still changing has no contrast to measure.
        options |= {"reduced_motion": "reduce"}
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]}, **options)
        self.faults, self.hosts, self.bodies = [], set(), []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.faults.append(message.text))
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.goto(url)
        self.page.wait_for_selector(".em-model:not(:empty)")

    def upload(self, content, name="photo.png", wait=True):
        file = {"name": name, "mimeType": "image/png", "buffer": content}
        self.page.set_input_files(".em-file", [file])
        if wait:
            self.answered()

    def answered(self):
        self.page.wait_for_selector(".em.shown[data-state=done]", timeout=60_000)

    def text(self, selector):
        return self.page.inner_text(selector)

    def texts(self, selector):
        return [text.replace("\xa0", " ") for text in self.page.locator(selector).all_inner_texts()]

    def canvas(self, selector):
        """The pixels of a canvas: (H, W, 4) uint8."""
        data = self.page.evaluate("selector => document.querySelector(selector).toDataURL()", selector)
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGBA"))

    def click_at(self, selector, u, v):
        box = self.page.locator(selector).bounding_box()
        self.page.locator(selector).click(position={"x": u * box["width"], "y": v * box["height"]})


@pytest.fixture
def tab(browser, served):
    tab = Tab(browser, served.url)
    yield tab
    tab.page.close()


@needs_browser
class TestLabel:
    def test_an_upload_becomes_an_overlay_with_a_legend(self, tab, served):
        tab.upload(photo())
        labels = served.predictor(draw_scene(1, size=SIZE)[0])
        share = np.bincount(labels.ravel(), minlength=8) / labels.size
        order = [label for label in np.argsort(-share, kind="stable") if share[label]]
        names = [served.predictor.classes[label].replace("_", " ") for label in order]
        assert tab.texts(".em-legend span:nth-of-type(1)") == names
        assert tab.texts(".em-legend span:nth-of-type(2)") == [f"{100 * share[label]:.1f} %" for label in order]
        colours = tab.canvas(".em-colours")
        np.testing.assert_array_equal(colours[..., :3], np.array(served.predictor.palette, np.uint8)[labels])
        assert tab.text(".em-message") == f"64 × 48 pixels, {len(order)} classes."
        assert not tab.faults and tab.hosts <= {served.url.split("/")[2]}, "the page asks nobody else"

    def test_the_legend_highlights_its_pixels(self, tab, served):
        tab.upload(photo())
        labels, palette = served.predictor(draw_scene(1, size=SIZE)[0]), served.predictor.palette
        first = int(tab.page.get_attribute(".em-legend button", "data-index"))
        tab.page.hover(".em-legend button")
        colours = tab.canvas(".em-colours")[..., :3]
        assert (colours[labels == first] == palette[first]).all()
        assert (colours[labels != first] == (18, 24, 32)).all() and (labels != first).any()
        tab.page.hover("h1")
        assert (tab.canvas(".em-colours")[..., :3] != (18, 24, 32)).any(2).all()
        tab.page.click(".em-legend button")
        tab.page.hover("h1")
        assert tab.page.get_attribute(".em", "data-highlight") == str(first), "a click keeps it"

    def test_the_sliders(self, tab):
        tab.upload(photo())
        style = "[document.querySelector('.em-colours').style].flatMap((s) => [s.opacity, s.clipPath])"
        tab.page.fill(".em-opacity", "25")
        tab.page.fill(".em-divider", "700")
        assert tab.page.evaluate(style) == ["0.25", "inset(0px 0px 0px 70%)"] and tab.text(".em-percent") == "25 %"
        tab.click_at(".em-divider", 0.5, 0.5)
        assert 49 < float(tab.page.evaluate(style)[1].split()[-1].rstrip("%)")) < 51

    def test_the_downloads(self, tab, served):
        tab.upload(photo(), name="my photo.png")
        labels, files = served.predictor(draw_scene(1, size=SIZE)[0]), {}
        for link in tab.page.locator(".em-downloads a").all():
            with tab.page.expect_download() as download:
                link.click()
            files[download.value.suggested_filename] = Path(download.value.path()).read_bytes()
        assert list(files) == ["my photo_labels.png", "my photo_colours.png", "my photo_classes.json"]
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(files["my photo_labels.png"]))), labels)
        colours = np.asarray(Image.open(io.BytesIO(files["my photo_colours.png"])))
        np.testing.assert_array_equal(colours, np.array(served.predictor.palette, np.uint8)[labels])
        assert json.loads(files["my photo_classes.json"])["model"] == "drawn"

    def test_what_is_chosen_meanwhile_is_labelled_next(self, tab, served, monkeypatch):
        going = threading.Event()

        def waiting(predictor, name, content, **how):
            going.wait(30)
            return answer(predictor, name, content, **how)

        monkeypatch.setattr("emanet.web.page.answer", waiting)
        tab.upload(photo(), name="one.png", wait=False)
        tab.page.wait_for_selector(".em[data-state=busy]")
        for name, size in (("two.png", (40, 48)), ("three.png", (40, 56))):
            tab.upload(photo(size=size), name=name, wait=False)
        tab.page.wait_for_timeout(200)  # until they are read
        going.set()
        tab.page.wait_for_function("document.querySelector('.em-message').textContent.startsWith('56 × ')")
        with tab.page.expect_download() as download:
            tab.page.click(".em-downloads a")
        assert download.value.suggested_filename == "three_labels.png" and not tab.faults

    def test_paste_drop_camera_and_example(self, tab):
        drop = """([content, kind]) => {
          const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0)), data = new DataTransfer();
          data.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
          const [Kind, where] = kind === "paste" ? [ClipboardEvent, "clipboardData"] : [DragEvent, "dataTransfer"];
          document.body.dispatchEvent(new Kind(kind, { [where]: data, bubbles: true }));
        }"""
        for kind, size in (("paste", (40, 56)), ("drop", (56, 40))):
            tab.page.evaluate(drop, [base64.b64encode(photo(size=size)).decode(), kind])
            tab.page.wait_for_function(f"document.querySelector('.em-message').textContent.startsWith('{size[1]} × ')")
        tab.page.click(".em-examples button")
        tab.page.wait_for_function("document.querySelector('.em-message').textContent.startsWith('64 × ')")
        tab.page.click(".em-examples button")  # the same again is labelled again
        tab.page.wait_for_selector(".em[data-state=done]")
        tab.page.click(".em-camera")
        tab.page.wait_for_function("document.querySelector('.em-dialog video').videoWidth > 0")
        tab.page.click(".em-shoot")
        tab.page.wait_for_function("document.querySelector('.em-message').textContent.match(/^[0-9]{3,} × /)")
        assert not tab.faults


@needs_browser
class TestExplain:
    @pytest.fixture
    def seen(self, tab, served):
        tab.upload(photo())
        tab.page.click("[data-tab=explain]")
        return explain(served.predictor.model, draw_scene(1, size=SIZE)[0])

    def test_a_click_on_a_pixel_shows_its_bases(self, tab, seen):
        tab.click_at(".em-attention", 20.5 / 64, 30.5 / 48)
        z = np.array([seen.over_image(base)[30, 20] for base in range(8)])
        bases = [int(value.split()[1]) for value in tab.texts(".em-bases .em-number")]
        shares = np.array(
            [float(value.rstrip(" %")) / 100 for value in tab.texts(".em-bases button > span:last-child")]
        )
        assert sorted(bases) == list(range(8)) and (np.diff(shares) <= 0).all()
        np.testing.assert_allclose(shares, z[bases], atol=0.01)
        label = seen.labels[30, 20]
        assert tab.text(".em-at small") == SPECS["drawn"].classes[label].replace("_", " ")
        before = tab.texts(".em-bases button")
        tab.page.click(".em-steps button >> nth=0")
        assert tab.texts(".em-bases button") != before
        assert max(float(tab.page.get_attribute(".em", "data-took")), 0.01) < 300

    def test_a_click_on_a_base_shows_its_responsibilities(self, tab, seen):
        owners = tab.canvas(".em-attention")
        tab.page.click(".em-tiles button >> nth=0")
        base = int(tab.page.get_attribute(".em-tiles button >> nth=0", "data-base"))
        maps = {}
        for t in (1, 2, 3):
            tab.page.click(f".em-steps button >> nth={t - 1}")
            maps[t] = tab.canvas(".em-attention").astype(int)
            assert tab.text(".em-view").startswith(f"Responsibilities of base {base} in iteration {t}; ")
            # Warm where the responsibility is large, grey where it is none.
            z, warmth = seen.over_image(base, t), maps[t][..., 0] - maps[t][..., 2]
            grey = abs(maps[t][..., 0] - maps[t][..., 1]) <= 2
            assert grey[z < 1e-4].all() and np.corrcoef(z.ravel(), warmth.ravel())[0, 1] > 0.7
        assert (maps[1] != maps[3]).any() and (maps[3] != owners).any()
        tab.page.click(".em-all")
        np.testing.assert_array_equal(tab.canvas(".em-attention"), owners)

    def test_owners_and_the_numbers_of_the_iterations(self, tab, seen):
        best = np.stack([seen.over_image(base) for base in range(8)])
        second, first = np.sort(best, axis=0)[-2:]
        clear = first > 1.05 * second  # the page sees ties below
        colours = tab.canvas(".em-attention")[..., :3].astype(int)
        expected = owners_overlay(seen.image, seen.owners).astype(int)
        assert clear.mean() > 0.5 and np.abs(colours - expected)[clear].mean() < 8  # the photo came as a JPEG
        shown = [text for text in tab.page.locator(".em-curve text").all_text_contents() if "%" in text]
        assert shown == [f"{100 * value:.1f} %" for value in [*seen.strongest, *seen.entropy_share]]

    def test_classes_against_bases(self, tab, seen):
        tab.page.locator(".em-matrix canvas").hover(position={"x": 2, "y": 2})
        name, base, share = tab.text(".em-cell").replace(",", ":").split(":")
        base, label = int(base.split()[1]), [n.replace("_", " ") for n in SPECS["drawn"].classes].index(name)
        mean = seen.over_image(base)[seen.labels == label].mean()
        assert float(share.rstrip(" %")) / 100 == pytest.approx(mean, abs=1e-3)
        tab.page.locator(".em-matrix canvas").click(position={"x": 2, "y": 2})
        assert tab.page.get_attribute(f".em-tiles [data-base='{base}']", "aria-pressed") == "true"

    def test_play_and_arrow_keys(self, tab, seen):
        tab.page.click(".em-play")
        assert tab.page.get_attribute(".em-steps button >> nth=0", "aria-pressed") == "true"
        tab.page.wait_for_selector(".em-steps button:last-child[aria-pressed=true]")
        before = tab.page.get_attribute(".em-mark", "style")
        tab.page.focus(".em-attention")
        tab.page.keyboard.press("ArrowRight")
        assert tab.page.get_attribute(".em-mark", "style") != before

    def test_a_model_without_em_attention_has_a_sentence_instead(self, browser, folder):
        served = Served(drawn_model({"model.head.name": "fcn"}))
        try:
            tab = Tab(browser, served.url)
            tab.upload(photo())
            assert tab.texts(".em-legend span")
            tab.page.click("[data-tab=explain]")
            said = "This model's head, FCNHead, has no EM attention: there are no bases to see."
            assert tab.text(".em-refusal") == said and not tab.page.is_visible(".em-explorer")
            tab.page.close()
        finally:
            served.close()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_and_can_be_read(browser, served, width, scheme):
    tab = Tab(browser, served.url, (width, 800), color_scheme=scheme)
    tab.upload(photo())
    for name in ("label", "explain"):
        tab.page.click(f"[data-tab={name}]")
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        ratio = tab.page.evaluate(CONTRAST)
        assert min(ratio.values()) >= 4.5, ratio
    tab.page.close()


class TestLimits:
    def test_what_is_too_large_or_broken_has_its_sentence(self, served):
        said = {
            "a data URL": [
                "",
                "scene2",
                5,
                None,
                ["x"],
                {"path": "/etc/passwd"},
                "/etc/passwd",
                "data:image/png;base64",
            ],
            "has not arrived whole": ["data:image/png;base64,!!!!"],
            "the page takes up to 0.3 MB": [as_url(bytes(330_000))],
            "cannot read this image: its 1300 x 1300 pixels are more than max_pixels, 1500000": [as_url(_plain(1300))],
            "cannot read this image: it is damaged, or its format": [as_url(b"no image")],
        }
        for number, (expected, images) in enumerate(said.items()):
            for image in images:
                done, text = served.label(image, f"limits{number}")
                assert not done and expected.lower() in text.lower(), (image, text)
        assert served.label("scene", "limits")[0], "an example by its name"

    def test_programs_can_call_it(self, served):
        from gradio_client import Client

        client = Client(served.url, verbose=False)
        answer = client.predict(as_url(photo()), api_name="/label")
        assert answer["width"] == 64 and answer["files"]["labels.png"]
        with pytest.raises(Exception, match="Cannot read this image: it is empty"):
            client.predict("data:;base64,", api_name="/label")

    def test_only_its_own_calls_get_through(self, served):
        assert served.post("/gradio_api/upload", b"x" * 100)[0] == 404
        assert served.post("/gradio_api/component_server", {})[0] == 404
        status, text = served.post("/gradio_api/queue/join", b"x" * 500_000)
        assert status == 413 and json.loads(text)["detail"] == "The file is too large: the page takes up to 0.3 MB."

    @needs_browser
    def test_the_browser_says_them(self, tab, served):
        tab.upload(bytes(400_000), wait=False)
        assert tab.text(".em-message") == "This file has 0.4 MB. The page takes up to 0.3 MB."
        tab.upload(b"no image", wait=False)
        tab.page.wait_for_selector("text=Cannot read this image: it is damaged")
        tab.page.wait_for_selector(".em[data-state=empty]")
        tab.upload(photo())  # and the page goes on
        assert tab.texts(".em-legend span")

    @needs_browser
    def test_a_full_queue_and_a_slow_image(self, browser, folder, monkeypatch):
        going, sleeping = threading.Event(), threading.Event()

        def slow(*arguments, **options):
            sleeping.set()
            going.wait(60)
            return {}

        monkeypatch.setattr("emanet.web.page.answer", slow)
        served = Served(drawn_model(), Limits(waiting=1, seconds=120))
        try:
            with ThreadPoolExecutor(1) as pool:
                first = pool.submit(served.label, as_url(photo()), "slow1")
                assert sleeping.wait(20)
                second = {"data": [as_url(photo())], "fn_index": 0, "session_hash": "slow2"}
                assert served.post("/gradio_api/queue/join", second)[0] == 200
                tab = Tab(browser, served.url)
                tab.upload(photo(), wait=False)
                tab.page.wait_for_selector("text=busy")  # the queue holds one
                tab.page.wait_for_selector(".em[data-state=empty]")
                tab.page.close()
                going.set()
                assert first.result() == (True, {})
            going.clear()
            served.page.limits = Limits(seconds=1)
            said = "This image took longer than 1 s. Try a smaller one."
            assert served.label(as_url(photo()), "slow3") == (False, said)
        finally:
            going.set()
            served.close()

    def test_a_fault_of_ours_is_told_without_its_text(self, served, monkeypatch, capfd):
        def broken(*arguments, **options):
            raise KeyError("/home/secret")

        monkeypatch.setattr("emanet.web.page.answer", broken)
        done, text = served.label(as_url(photo()), "fault")
        assert (done, text) == (
            False,
            "This image could not be labelled. That is a fault of the page, not of the image.",
        )
        monkeypatch.setattr("emanet.web.page.answer", lambda *_, **__: torch.empty(2**60))
        assert "more memory than there is" in served.label(as_url(photo()), "memory")[1]

    def test_nothing_is_kept_and_no_path_leaves(self, served, folder):
        answers = [served.label(as_url(photo(index)), "kept")[1] for index in range(3)]
        answers.append(served.label(as_url(b"no image"), "kept")[1])
        with urllib.request.urlopen(served.url, timeout=60) as page:
            answers.append(page.read().decode())
        for path in ("/config", "/gradio_api/info", "/gradio_api/startup-events"):
            with urllib.request.urlopen(f"{served.url}{path}", timeout=60) as page:
                answers.append(page.read().decode())
        kept = [path for path in folder.rglob("*") if path.is_file()]
        assert not kept, kept
        text = json.dumps(answers)
        for place in (str(folder), str(ROOT), str(Path.home()) + "/", tempfile.gettempdir(), os.getcwd()):
            assert place not in text, place


def _plain(side):
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_many_requests_at_a_time(served, repeats):
    """None is lost or mixed up, and memory stays flat."""
    count = repeats(200, 48)
    photos = [as_url(photo(index)) for index in range(8)]
    expected = [served.label(image, f"first{index}")[1] for index, image in enumerate(photos)]
    for index in range(24):  # the arenas of the allocator fill
        served.label(photos[index % 8], f"warm{index}")
    before = _memory()
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda n: served.label(photos[n % 8], f"many{n}"), range(count)))
    assert all(success for success, _ in done)
    assert all(answer == expected[n % 8] for n, (_, answer) in enumerate(done))
    assert _memory() - before < 40, "MiB more than before"


def _memory():
    """MiB of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class TestCommand:
    def test_what_is_wrong_ends_in_a_sentence(self, tmp_path, monkeypatch):
        assert "nowhere" in sentence(run_cli("demo", "nowhere"))
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert sentence(run_cli("demo")) == 'error: the page needs Gradio: pip install "emanet[demo]"'

    def test_it_serves_this_machine_until_it_is_stopped(self, folder, monkeypatch):
        port, opened = _free_port(), []

        class Stopped:
            def wait(self):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60) as page:
                    opened.append(page.read().decode())
                taken = sentence(run_cli("demo", "--port", port))
                assert taken.startswith(f"error: cannot serve at 127.0.0.1:{port}: the port is taken")
                raise KeyboardInterrupt

        monkeypatch.setattr("emanet.web.page.threading", type("Threading", (), {"Event": Stopped}))
        done = run_cli("demo", "--port", port, "--examples", PHOTOS / "bend.jpg")
        assert done.returncode == 0 and done.stdout == f"the page is at http://127.0.0.1:{port}/\n"
        assert "using 'street'" in done.stderr and "street · EMANet" in opened[0] and '"bend"' in opened[0]


@needs_browser
@pytest.mark.slow
def test_documentation(browser, folder, request):
    """The model of the package at the size that the limit of a click is for, and the pictures of docs/demo.md."""
    served = Served("street", examples=sorted(PHOTOS.glob("*.jpg")), name="street")
    try:
        tab = Tab(browser, served.url, (1280, 820))
        with Image.open(PHOTOS / "crossing.jpg") as image:
            file = io.BytesIO()
            image.resize((480, 360)).save(file, "JPEG")
        tab.upload(file.getvalue())
        tab.page.click("[data-tab=explain]")
        took = {}
        for clicked in (".em-attention", ".em-tiles button >> nth=1", ".em-steps button >> nth=0"):
            for _ in range(3):
                tab.page.click(clicked)
                took.setdefault(clicked, []).append(float(tab.page.get_attribute(".em", "data-took")))
        assert max(sorted(times)[1] for times in took.values()) < 300, took
        print("milliseconds a click:", took)
        if request.config.getoption("--write-docs"):
            write_pictures(tab)
        assert not tab.faults
    finally:
        served.close()


def write_pictures(tab):
    tab.page.click("[data-tab=label]")
    tab.page.click(".em-examples button >> nth=1")
    tab.page.wait_for_function("document.querySelector('.em-message').textContent.startsWith('640 × ')")
    tab.page.hover("h1")
    _shoot(tab, "demo-label.png")
    tab.page.click("[data-tab=explain]")
    tab.click_at(".em-attention", 0.9, 0.85)
    tab.page.click(".em-bases button")
    tab.page.hover("h1")
    _shoot(tab, "demo-explain.png")


def _shoot(tab, name):
    time.sleep(0.5)  # transitions
    shot = tab.page.locator(".em").screenshot()
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    picture.quantize(160, kmeans=2, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)
