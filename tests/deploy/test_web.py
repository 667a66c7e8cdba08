"""The exported page in headless Chromium: its labels beside PyTorch's, the explorer, downloads, the camera.

python -m pytest tests/deploy/test_web.py -m slow --write-docs    # makes docs/images/web.png and the table of times

Skipped where Playwright, Chromium or the files of onnxruntime-web are missing. npm keeps what it downloads.
"""

import io
import json
import os
import re
import shutil
import stat
import tarfile

import numpy as np
import pytest
import torch
from browser import CONTRAST, ISOLATED, chromium, serving
from conftest import ROOT, run_cli, sentence
from PIL import Image

from emanet.analysis.explain import explain
from emanet.config import EvalConfig
from emanet.data.datasets import SPECS
from emanet.data.synthetic import draw_scene
from emanet.deploy import web
from emanet.deploy.web import PACKAGE, PAGE, RUNTIME, export_web, runtime_files
from emanet.errors import InputError
from emanet.experiments import load_experiment, override
from emanet.inference import grid_size, predict_labels, shrunk_size
from emanet.loading import load, model_of, read
from emanet.model import build_model
from emanet.weights.model_file import save_model

pytestmark = pytest.mark.xdist_group("web")  # one export and one browser for all
SMALL = {"model.head.channels": 16, "model.head.num_bases": 8, "model.head.dropout": 0.0}
SIZE = (45, 70)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Untrained, but it predicts most classes somewhere, and its responsibilities differ."""
    torch.manual_seed(0)
    experiment = override(load_experiment("drawn"), SMALL | {"data.spec": SPECS["drawn"]})
    model = build_model(experiment.model, SPECS["drawn"]).eval()
    torch.nn.init.normal_(model.head.classifier.weight)
    model.head.emau.conv_in.weight.data *= 200
    with torch.no_grad():
        logits = model(torch.from_numpy(draw_scene(1, size=SIZE)[0].transpose(2, 0, 1)[None].copy()))
    model.head.classifier.bias.data -= logits.mean((0, 2, 3))
    path = tmp_path_factory.mktemp("models") / "drawn.safetensors"
    save_model(path, model, experiment, step=0)
    return path


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """A folder with the files of onnxruntime-web."""
    try:
        files = runtime_files()
    except InputError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("onnxruntime")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(browser, saved, runtime, tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    export_web(read(saved), out, title="drawn", runtime=runtime)
    return out


@pytest.fixture(scope="module")
def address(folder):
    with serving(folder) as address:
        yield address


class Tab:
    """A tab with the page in it; remembers what went wrong and what was asked for."""

    def __init__(self, browser, address, size=(1280, 860), **options):
        # A colour that is still changing has no contrast to measure.
        options |= {"reduced_motion": "reduce"}
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]}, **options)
        self.faults, self.requests = [], []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.faults.append(message.text))
        self.page.context.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)

    def ready(self):
        self.page.wait_for_selector(".em[data-ready]", timeout=60_000)
        return self

    def upload(self, content, name="photo.png"):
        count = int(self.page.get_attribute(".em", "data-images")) + 1
        self.page.set_input_files(".em-file", [{"name": name, "mimeType": "image/png", "buffer": content}])
        self.page.wait_for_selector(f".em[data-images='{count}'][data-state=done]", timeout=60_000)

    def text(self, selector):
        return self.page.inner_text(selector)

    def texts(self, selector):
        return self.page.locator(selector).all_inner_texts()

    def download(self, selector):
        with self.page.expect_download() as download:
            self.page.click(selector)
        return download.value.suggested_filename, Image.open(download.value.path())

    def numbers(self, script, *arguments):
        return np.array(self.page.evaluate(f"(given) => Array.from(({script})(...given))", list(arguments)))

    def click_at(self, selector, u, v):
        box = self.page.locator(selector).bounding_box()
        self.page.locator(selector).click(position={"x": u * box["width"], "y": v * box["height"]})


@pytest.fixture(scope="module")
def opened(browser, address):
    return Tab(browser, address).ready()


@pytest.fixture
def tab(opened):
    """One tab for most tests, since a page takes seconds to load."""
    opened.faults.clear()
    opened.page.set_viewport_size({"width": 1280, "height": 860})
    opened.page.emulate_media(color_scheme="light")
    if opened.page.input_value(".em-size select") != "640":
        opened.page.select_option(".em-size select", "640")  # labels the image again
        opened.page.evaluate("() => turn")
    if opened.page.is_visible(".em-tabs"):
        opened.page.click("[data-tab=label]")
    return opened


def scene(index=1, size=SIZE):
    """Pixels (H, W, 3) uint8, and the PNG file of them."""
    drawn, file = draw_scene(index, size=[max(32, side) for side in size])[0], io.BytesIO()
    pixels = drawn[: size[0], : size[1]]
    Image.fromarray(pixels).save(file, "PNG")
    return pixels, file.getvalue()


def labels_of(saved, pixels):
    return predict_labels(load(saved), torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()))[0].numpy()


class TestLabel:
    @pytest.mark.parametrize("size", [SIZE, (7, 3), (96, 128)])
    def test_the_labels_are_those_of_pytorch(self, tab, saved, size):
        pixels, file = scene(size=size)
        expected = labels_of(saved, pixels)
        tab.upload(file, "one.two.png")
        name, index = tab.download("[data-file=labels]")
        assert name == "one.two_labels.png" and index.mode == "P"
        np.testing.assert_array_equal(np.asarray(index), expected)
        np.testing.assert_array_equal(np.reshape(index.getpalette(), (-1, 3))[:8], SPECS["drawn"].colours)
        name, colours = tab.download("[data-file=colours]")
        assert name == "one.two_colours.png"
        np.testing.assert_array_equal(np.asarray(colours.convert("RGB")), np.array(SPECS["drawn"].colours)[expected])

    def test_the_legend_has_the_shares(self, tab, saved):
        pixels, file = scene()
        tab.upload(file)
        share = np.bincount(labels_of(saved, pixels).ravel(), minlength=8) / pixels[..., 0].size
        order = [label for label in np.argsort(-share, kind="stable") if share[label]]
        names = [SPECS["drawn"].classes[label].replace("_", " ") for label in order]
        assert len(order) > 3 and tab.texts(".em-legend span:nth-of-type(1)") == names
        assert tab.texts(".em-legend span:nth-of-type(2)") == [f"{100 * share[label]:.1f} %" for label in order]
        assert re.fullmatch(r"70 × 45 pixels, in \d+ ms on 1 thread of this browser\.", tab.text(".em-message"))

    def test_the_legend_highlights_its_pixels(self, tab, saved):
        pixels, file = scene()
        tab.upload(file)
        labels, colours = labels_of(saved, pixels), np.array(SPECS["drawn"].colours)
        first = int(tab.page.get_attribute(".em-legend button", "data-index"))
        for act in (tab.page.hover, tab.page.click):
            act(".em-legend button")
            seen = self.canvas(tab, ".em-colours")
            assert (seen[labels == first] == colours[first]).all()
            assert not (seen[labels != first] == colours[labels[labels != first]]).all(1).any()
        tab.page.hover("h1")
        assert tab.page.get_attribute(".em", "data-highlight") == str(first), "a click keeps it"
        tab.page.click(".em-legend button")
        tab.page.hover("h1")
        np.testing.assert_array_equal(self.canvas(tab, ".em-colours"), colours[labels])

    def canvas(self, tab, selector):
        script = """(selector) => {
            const canvas = document.querySelector(selector);
            return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        }"""
        width = tab.page.evaluate("(s) => document.querySelector(s).width", selector)
        return tab.numbers(script, selector).reshape(-1, width, 4)[..., :3]

    def test_sliders(self, tab):
        tab.upload(scene()[1])
        tab.page.fill(".em-opacity", "35")
        tab.page.fill(".em-divider", "250")
        style = tab.page.get_attribute(".em-colours", "style")
        assert "opacity: 0.35" in style and "25%" in style and tab.text(".em-percent") == "35 %"

    def test_a_larger_image_is_labelled_smaller(self, tab, saved):
        pixels, file = scene(size=(360, 720))
        tab.page.select_option(".em-size select", "320")
        tab.page.evaluate("() => turn")
        tab.upload(file)
        assert tab.text(".em-message").startswith("720 × 360 pixels, labelled at 320 × 160, in ")
        small = np.asarray(Image.fromarray(pixels).resize((320, 160), Image.Resampling.BOX))
        expected = Image.fromarray(labels_of(saved, small)).resize((720, 360), Image.Resampling.NEAREST)
        found = np.asarray(tab.download("[data-file=labels]")[1])
        assert found.shape == (360, 720) and (found == np.asarray(expected)).mean() > 0.9  # another filter shrinks it

    def test_nothing_leaves_the_folder(self, tab, address):
        tab.upload(scene()[1])
        assert all(url.startswith((address, "blob:", "data:")) for url in tab.requests) and not tab.faults
        with serving(PAGE) as other:
            refused = tab.page.evaluate(
                "(url) => fetch(url, {mode: 'no-cors'}).then(() => '', (error) => error.name)", other
            )
        assert refused == "TypeError" and any("Content Security Policy" in fault for fault in tab.faults)

    def test_of_two_files_that_are_chosen_quickly_the_last_one_is_labelled(self, tab):
        """Although the first one takes longer to read."""
        slow = """() => {
            const read = window.createImageBitmap;
            window.createImageBitmap = async (file, how) => {
                if (file.name === "slow.png") await new Promise((done) => setTimeout(done, 1000));
                return read(file, how).finally(() => file.name === "slow.png" && (window.isRead = true));
            };
        }"""
        tab.page.evaluate(slow)
        file = {"name": "slow.png", "mimeType": "image/png", "buffer": scene(1, (40, 50))[1]}
        tab.page.set_input_files(".em-file", [file])
        tab.upload(scene()[1], "quick.png")
        tab.page.wait_for_function("() => window.isRead")
        tab.page.evaluate("() => turn")
        name, index = tab.download("[data-file=labels]")
        assert name == "quick_labels.png" and index.size == SIZE[::-1]

    def test_what_is_no_image_has_a_sentence(self, tab):
        tab.page.set_input_files(".em-file", [{"name": "a.png", "mimeType": "image/png", "buffer": b"no image"}])
        tab.page.wait_for_selector("text=This browser cannot read the file as an image.")
        tab.upload(scene()[1])
        assert tab.texts(".em-legend span") and not tab.faults


class TestExplore:
    @pytest.fixture
    def seen(self, tab, saved):
        pixels, file = scene()
        tab.upload(file)
        tab.page.click("[data-tab=explain]")
        return explain(load(saved), pixels)

    @pytest.mark.parametrize("at", [(0.02, 0.98), (0.4, 0.5), (0.9, 0.3)])
    def test_a_click_on_a_pixel_shows_its_bases(self, tab, seen, at):
        tab.click_at(".em-attention", *at)
        h, w = SIZE
        u, v = tab.numbers("() => [at.u, at.v]")
        assert abs(u - at[0]) < 0.01 and abs(v - at[1]) < 0.01
        row, column = int(v * h), int(u * w)
        for t in range(3):
            tab.page.fill(".em-step", str(t + 1))
            exact = np.array([seen.over_image(k, t + 1)[row, column] for k in range(8)])
            found = tab.numbers("responsibilities", t, (column + 0.5) / w, (row + 0.5) / h)
            np.testing.assert_allclose(found, exact, atol=1e-4)
            shown = tab.numbers("responsibilities", t, u, v)
            order = np.argsort(-shown, kind="stable")
            bars = tab.page.locator(".em-bases button")
            assert [int(bar.get_attribute("data-base")) for bar in bars.all()] == order.tolist()
            assert tab.texts(".em-bases button > span:last-child") == [f"{100 * shown[k]:.1f} %" for k in order]
            assert tab.text(".em-t") == f"t = {t + 1} of 3"
        label = SPECS["drawn"].classes[seen.labels[row, column]].replace("_", " ")
        assert tab.text(".em-at small") == label and not tab.faults

    def test_a_click_on_a_base_shows_its_map(self, tab, seen):
        before = tab.page.evaluate("document.querySelector('.em-attention').toDataURL()")
        base = tab.page.get_attribute(".em-tiles button >> nth=1", "data-base")
        tab.page.click(".em-tiles button >> nth=1")
        top = seen.z[:, int(base)].max()
        expected = f"Responsibilities of base {base} in iteration 3; the brightest yellow is {100 * top:.0f} %."
        assert tab.text(".em-view") == expected
        assert tab.page.get_attribute(f".em-tiles [data-base='{base}']", "aria-pressed") == "true"
        last = tab.page.evaluate("document.querySelector('.em-attention').toDataURL()")
        tab.page.fill(".em-step", "1")
        first = tab.page.evaluate("document.querySelector('.em-attention').toDataURL()")
        assert len({before, last, first}) == 3
        tab.page.click(".em-all")
        tab.page.fill(".em-step", "3")
        assert tab.page.evaluate("document.querySelector('.em-attention').toDataURL()") == before

    def test_each_pixel_has_its_strongest_base(self, tab, seen):
        owners = tab.numbers("() => ownersOf(2).owners").reshape(SIZE)
        each = np.sort([seen.over_image(k) for k in range(8)], axis=0)
        clear = each[-1] > 1.05 * each[-2]  # the page sees ties below
        assert clear.mean() > 0.5 and (owners == seen.owners)[clear].mean() > 0.99
        share = np.bincount(owners.ravel(), minlength=8)[owners[0, 0]] / owners.size
        assert f"{owners[0, 0]}\n{100 * share:.1f} %" in tab.texts(".em-tiles button")

    def test_play_and_arrow_keys(self, tab, seen):
        tab.page.click(".em-play")
        assert tab.text(".em-t") == "t = 1 of 3"
        tab.page.wait_for_selector(".em-t:text('t = 3 of 3')")
        before = tab.page.get_attribute(".em-mark", "style")
        tab.page.focus(".em-attention")
        tab.page.keyboard.press("ArrowRight")
        assert tab.page.get_attribute(".em-mark", "style") != before

    @pytest.mark.parametrize("values", [{}, {"align_corners": False}, {"longest_side": 50}, {"divisor": 32}])
    def test_cells_of_the_map(self, tab, saved, values):
        model = model_of(read(saved))
        model.align_corners = values.get("align_corners", True)
        model.backbone.divisor = values.get("divisor", 1)
        config = EvalConfig(longest_side=values.get("longest_side", 0))
        small = shrunk_size((61, 83), config)
        padded = model.padded_size(grid_size(model, small))
        tab.page.evaluate("(values) => { window.before = facts; facts = {...facts, ...values} }", values)
        for axis, side in enumerate((61, 83)):
            scale, offset = tab.numbers("cellsOf", side, 83, 10)
            if model.align_corners:
                step = 9 / (padded[axis] - 1)
                assert (scale, offset) == pytest.approx((small[axis] * step, -0.5 * step))
            else:
                assert (scale, offset) == pytest.approx((small[axis] * 10 / padded[axis], -0.5))
        tab.page.evaluate("() => { facts = window.before }")


class TestSurroundings:
    def test_the_camera_is_labelled_live(self, tab):
        tab.page.select_option(".em-size select", "320")
        tab.page.click(".em-camera")
        tab.page.wait_for_selector("text=images a second", timeout=60_000)
        assert tab.text(".em-message").startswith("Live: 320 × ") and tab.texts(".em-legend span")
        assert tab.page.is_disabled("[data-tab=explain]")
        tab.page.click(".em-camera")
        tab.page.wait_for_selector("text=of this browser", timeout=60_000)
        tab.page.click("[data-tab=explain]")
        assert tab.texts(".em-bases button") and not tab.faults
        assert tab.page.evaluate("live") is None and tab.text(".em-camera") == "Use the camera"

    def test_threads_where_the_page_is_isolated(self, browser, folder, saved):
        with serving(folder, ISOLATED) as address:
            tab = Tab(browser, address).ready()
            assert tab.page.get_attribute(".em", "data-ready") == str(min(8, os.cpu_count()))
            pixels, file = scene()
            tab.upload(file)
            np.testing.assert_array_equal(np.asarray(tab.download("[data-file=labels]")[1]), labels_of(saved, pixels))
            tab.page.close()

    def test_a_model_without_em_attention(self, browser, folder, tmp_path):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        facts = json.loads((tmp_path / "model.json").read_text())
        (tmp_path / "model.json").write_text(json.dumps(facts | {"bases": 0, "steps": 0, "base_colours": []}))
        with serving(tmp_path) as address:
            tab = Tab(browser, address).ready()
            tab.upload(scene()[1])
            tab.page.click("[data-tab=explain]")
            assert tab.text(".em-refusal") == "This model's head has no EM attention: there are no bases to see."
            assert not tab.page.is_visible(".em-attention") and not tab.faults
            tab.page.close()

    def test_what_is_missing_has_a_sentence(self, browser, folder, tmp_path):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        (tmp_path / "model.onnx").unlink()
        with serving(tmp_path) as address:
            tab = Tab(browser, address)
            tab.page.wait_for_selector("text=The model could not be loaded. model.onnx is missing in this folder.")
            tab.page.close()
        tab = Tab(browser, (folder / "index.html").as_uri())
        tab.page.wait_for_selector("text=In its folder, run: python -m http.server")
        tab.page.close()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [1280, 400])
    def test_it_fits_and_can_be_read(self, tab, width, scheme):
        tab.page.set_viewport_size({"width": width, "height": 800})
        tab.page.emulate_media(color_scheme=scheme)
        tab.upload(scene()[1])
        for name in ("label", "explain"):
            tab.page.click(f"[data-tab={name}]")
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
            ratio = tab.page.evaluate(CONTRAST)
            assert min(ratio.values()) >= 4.5, ratio


class TestRuntime:
    def packed(self, path):
        with tarfile.open(path, "w:gz") as archive:
            for name in RUNTIME:
                content = name.encode()
                member = tarfile.TarInfo(f"package/dist/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return path

    @pytest.mark.parametrize("below", ["", "dist", "package/dist"])
    def test_a_folder(self, tmp_path, below):
        (tmp_path / below).mkdir(parents=True, exist_ok=True)
        for name in RUNTIME:
            (tmp_path / below / name).write_text(name)
        assert runtime_files(tmp_path) == {name: name.encode() for name in RUNTIME}
        (tmp_path / below / RUNTIME[0]).unlink()
        with pytest.raises(InputError, match=f"has no {RUNTIME[0]}.*; --runtime takes an unpacked {PACKAGE}"):
            runtime_files(tmp_path)

    def test_a_file_is_checked(self, tmp_path, monkeypatch):
        path = self.packed(tmp_path / "runtime.tgz")
        with pytest.raises(InputError, match=f"runtime.tgz is not {PACKAGE}, or is damaged: checksum mismatch"):
            runtime_files(path)
        with pytest.raises(InputError, match="there is no .*nothing.tgz; --runtime takes"):
            runtime_files(tmp_path / "nothing.tgz")
        import base64
        import hashlib

        digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
        monkeypatch.setattr(web, "SHA512", digest)
        assert runtime_files(path) == {name: name.encode() for name in RUNTIME}

    def test_npm(self, tmp_path, monkeypatch):
        other = f"or run `npm pack {PACKAGE}` elsewhere and name the file with --runtime"
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(InputError) as error:
            runtime_files()
        assert str(error.value) == f"the page needs {PACKAGE} from npm, which is not installed; install npm, {other}"
        npm = tmp_path / "npm"
        npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\necho 'npm error more' >&2\nexit 1\n")
        npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
        with pytest.raises(InputError) as error:
            runtime_files()
        assert str(error.value) == f"npm could not download {PACKAGE} (npm error code ENOTFOUND); try again, {other}"
        npm.write_text("#!/bin/sh\necho other > other.tgz\n")
        with pytest.raises(InputError, match="what npm has downloaded is not onnxruntime-web.*checksum mismatch"):
            runtime_files()

    def test_other_images_than_rgb_are_refused_first(self, tmp_path):
        spec = SPECS["drawn"]
        values = {"model.mean": (0.5,), "model.std": (0.2,), "model.backbone.in_channels": 5, "data.spec": spec}
        experiment = override(load_experiment("drawn"), SMALL | values)
        save_model(tmp_path / "five.safetensors", build_model(experiment.model, spec), experiment, step=0)
        with pytest.raises(InputError, match=r"five.safetensors does not take RGB images of 8 bits"):
            export_web(read(tmp_path / "five.safetensors"), tmp_path / "page", title="five")
        assert not (tmp_path / "page").exists()

    def test_the_command(self, saved, tmp_path, monkeypatch):
        for name in RUNTIME:
            (tmp_path / name).write_text(name)
        monkeypatch.setattr(web, "export", lambda file, to, out, **options: out.write_bytes(b"model"))
        done = run_cli("export", saved, "--to", "web", "--runtime", tmp_path, cwd=tmp_path)
        assert done.returncode == 0 and "python -m http.server --directory drawn-web" in done.stdout, done.stderr
        written = {path.relative_to(tmp_path / "drawn-web").as_posix() for path in tmp_path.glob("drawn-web/**/*.*")}
        page = {"index.html", "emanet.js", "emanet.css", "model.json", "model.onnx"}
        assert written == page | {f"onnxruntime/{name}" for name in RUNTIME}
        facts = json.loads((tmp_path / "drawn-web" / "model.json").read_text())
        assert (facts["name"], facts["bases"], facts["steps"], facts["side"]) == ("drawn", 8, 3, 640)
        assert facts["bytes"] == 5 + sum(map(len, RUNTIME))
        missing = run_cli("export", saved, "--to", "web", "--runtime", tmp_path / "no.tgz", cwd=tmp_path)
        assert "there is no " in sentence(missing)

    def test_the_script_is_small(self):
        assert len((PAGE / "emanet.js").read_text("utf-8").splitlines()) <= 500


@pytest.mark.slow
def test_documentation(browser, runtime, tmp_path, request):
    """The model of the package at 480 x 360, and the picture of docs/export.md."""
    export_web(read("street"), tmp_path, title="street", runtime=runtime)
    with Image.open(ROOT / "examples" / "photos" / "crossing.jpg") as image:
        small, whole = io.BytesIO(), io.BytesIO()
        image.resize((480, 360)).save(small, "PNG")
        image.save(whole, "PNG")
    for headers in ({}, ISOLATED):
        with serving(tmp_path, headers) as address:
            tab = Tab(browser, address, (1280, 820)).ready()
            took = []
            for _ in range(7):
                tab.upload(small.getvalue())
                took.append(int(re.search(r"in (\d+) ms", tab.text(".em-message"))[1]))
            threads = tab.page.get_attribute(".em", "data-ready")
            print(f"{threads} threads: {took} ms an image; without the first, at least {min(took[1:])}")
            tab.page.click("[data-tab=explain]")
            waits = []
            for script in ("choose(5)", "goTo(0)", "choose(5)", "drawPixel()"):
                waits.append(
                    tab.page.evaluate(
                        f"(() => {{ const t = performance.now(); {script}; return performance.now() - t }})()"
                    )
                )
            print("milliseconds a click:", [round(each) for each in waits])
            assert max(waits) < 300 and not tab.faults
            if request.config.getoption("--write-docs") and not headers:
                tab.upload(whole.getvalue())
                tab.click_at(".em-attention", 0.9, 0.85)
                tab.page.click(".em-bases button")
                tab.page.hover("h1")
                shot = Image.open(io.BytesIO(tab.page.screenshot(full_page=True))).convert("RGB")
                picture = shot.quantize(256, kmeans=2, dither=Image.Dither.NONE)
                picture.save(ROOT / "docs" / "images" / "web.png", optimize=True)
            tab.page.close()
