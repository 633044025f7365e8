"""The studio's page in a real browser."""

import base64
import io
import itertools
import json
import re
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from steelgen.data.folder import load_dataset_info, load_mask
from steelgen.sampling.replay import replay
from tests.studio.conftest import HOSTILE

BAD = "#paint-status .bad"


def paint(page, start, end):
    """Drags the brush between two places, given as shares of the canvas, once it takes the pointer there."""
    cursor = page.locator("#canvas .cursor")
    box = cursor.bounding_box()
    cursor.hover(position={"x": start[0] * box["width"], "y": start[1] * box["height"]})
    box = cursor.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.down()
    page.mouse.move(*places[1], steps=8)
    page.mouse.up()


def read_canvas(page):
    """The class indices that the canvas shows, by its colors, as (64, 64)."""
    pixels = page.evaluate(
        "(() => { const board = document.querySelector('#canvas .board');"
        " return Array.from(board.getContext('2d').getImageData(0, 0, board.width, board.height).data) })()"
    )
    colors = np.reshape(pixels, (64, 64, 4))[..., :3]
    swatches = page.locator("#canvas .swatch").evaluate_all(
        "all => all.map(one => getComputedStyle(one).backgroundColor)"
    )
    palette = np.array([[int(part) for part in re.findall(r"\d+", swatch)] for swatch in swatches])
    return np.argmax((colors[:, :, None] == palette).all(axis=-1), axis=-1)


def read_picture(locator):
    """The pixels of an image that lies in the page."""
    data = locator.get_attribute("src").split(",")[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def choose_variants(page, count):
    page.locator("input[type=number][aria-label*='Variants']").fill(str(count))
    page.keyboard.press("Tab")


def draw(page, variants=1):
    choose_variants(page, variants)
    page.click("#generate")
    wait_for(page, "#paint-status", f"{variants} of {variants} images generated; mask")


def wait_for(page, selector, text):
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.innerText.includes(text)", arg=[selector, text]
    )


def browse(page, folder=None):
    page.get_by_role("tab", name="Browse").click()
    if folder:
        # The tab is built when it is first opened, and then overwrites what is typed before its first answer.
        page.wait_for_function("document.querySelector('#browse-status')?.innerText.trim().length > 0")
        for attempt in range(240):
            # On a busy machine even later, and the same text again is no change to it: "Open" asks in any case.
            if attempt % 40 == 0:
                page.fill("#folder input", str(folder))
                page.keyboard.press("Enter")
                if attempt:
                    page.click("#open")
            if "plain" in page.locator("#pairs").inner_text():
                break
            page.wait_for_timeout(250)
        wait_for(page, "#pairs", "plain")
    wait_for(page, "#browse-status", "pairs:")


def test_what_is_painted_is_drawn_kept_and_found_again(site, visit):
    page = visit()
    paint(page, (0.2, 0.2), (0.8, 0.6))
    painted = read_canvas(page)
    assert 100 < (painted == 1).sum() < 600
    assert set(np.unique(painted)) == {0, 1}
    draw(page, variants=2)
    assert page.locator("#results .card").count() == 2
    pictures = page.locator("#results .card >> nth=1 >> img")
    assert read_picture(pictures.nth(1)).shape == (64, 64)
    before = len(list(site.out.glob("samples/*.png")))
    page.locator("#results button").nth(1).click()
    wait_for(page, "#paint-status", "saved")
    stem = f"{before:06d}"
    mask = load_mask(site.out / "labels" / f"{stem}.png", load_dataset_info(site.out))
    assert (mask == painted).all()
    kept = np.asarray(Image.open(site.out / "samples" / f"{stem}.png"))
    assert (kept == read_picture(pictures.nth(1))).all()
    assert replay(site.out / "metadata.jsonl", before + 1, site.out.parent / f"again-{stem}.png")[1]
    assert page.locator("#results button").nth(1).is_disabled()

    page.reload()
    page.wait_for_selector("#canvas .brushes label")
    assert (read_canvas(page) == painted).all()
    browse(page)
    card = page.locator("#pairs .card").filter(has_text=stem)
    card.get_by_role("button", name="Reject").click()
    wait_for(page, "#browse-status", f"{stem} rejected")
    assert stem in (site.out / "rejects.txt").read_text().split()
    page.reload()
    page.wait_for_selector("#canvas .brushes label")
    browse(page)
    assert "rejected" in card.get_attribute("class")
    page.locator("#which").get_by_label("kept").check()
    card.wait_for(state="detached")
    page.locator("#which").get_by_label("rejected").check()
    card.wait_for()
    card.get_by_role("button", name="Restore").click()
    wait_for(page, "#browse-status", "restored")
    assert not (site.out / "rejects.txt").exists()


def test_zip_and_png_are_handed_out(visit):
    page = visit()
    draw(page, variants=2)
    page.wait_for_selector("#zip:not([disabled])")
    with page.expect_download() as download:
        page.click("#zip")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert "samples/samples/000001.png" in archive.namelist()
    with page.expect_download() as download:
        page.locator("#results .card >> nth=0").get_by_role("link", name="image").click()
    assert download.value.suggested_filename == "seed-0.png"
    assert Image.open(download.value.path()).size == (64, 64)
    with page.expect_download() as download:
        page.locator("#results .card >> nth=0").get_by_role("link", name="mask").click()
    assert Image.open(download.value.path()).mode == "P"


def test_masks_are_taken_laid_out_filled_and_undone(visit):
    page = visit()
    page.click("#load-next")
    wait_for(page, "#paint-status", "mask: train")
    page.wait_for_function("() => sessionStorage.length === 1")
    taken = read_canvas(page)
    assert len(np.unique(taken)) > 1
    page.click("#islands >> text=Random islands")
    page.click("#place")
    wait_for(page, "#paint-status", "mask: layout 1 (20 %")
    assert (read_canvas(page) == 1).sum() == round(0.2 * 64 * 64)
    page.click("#canvas .undo")
    assert (read_canvas(page) == taken).all()
    page.click("#canvas .redo")
    page.locator("#canvas .brushes label").nth(2).click()
    page.click("#canvas .all")
    assert (read_canvas(page) == 2).all()
    page.locator("#canvas .brushes label").nth(3).click()
    paint(page, (0.0, 0.5), (1.0, 0.5))
    page.click("#canvas [data-tool=fill]")
    paint(page, (0.5, 0.9), (0.5, 0.9))
    filled = read_canvas(page)
    assert (filled[-1] == 3).all()
    assert (filled[0] == 2).all()
    draw(page)
    assert "real image" not in page.locator("#results").inner_text()


def test_keyboard_alone_paints_draws_and_keeps(site, visit):
    page = visit()
    press = page.keyboard.press

    def tab_to(selector):
        for _ in range(60):
            press("Tab")
            if page.evaluate("selector => document.activeElement?.matches(selector)", selector):
                return
        pytest.fail(f"Tab does not reach {selector}")

    tab_to("#canvas .cursor")
    for key in ("3", "]", "Shift+ArrowLeft", "Space", "Shift+ArrowDown", "Enter"):
        press(key)
    painted = read_canvas(page)
    assert (painted == 2).sum() > 50
    assert len(page.evaluate("getComputedStyle(document.activeElement).outlineStyle")) > 0
    tab_to("#generate")
    press("Enter")
    wait_for(page, "#paint-status", "2 of 2 images generated; mask")
    before = len(list(site.out.glob("samples/*.png")))
    tab_to("#results button")
    press("Enter")
    wait_for(page, "#paint-status", "saved")
    mask = load_mask(site.out / "labels" / f"{before:06d}.png", load_dataset_info(site.out))
    assert (mask == painted).all()


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overlaps_or_sticks_out(site, visit, width):
    page = visit(width)
    page.click("#load-next")
    wait_for(page, "#paint-status", "mask:")
    draw(page, variants=2)
    for tab in ("Paint", "Browse", "Run"):
        page.get_by_role("tab", name=tab).click()
        if tab == "Browse":
            browse(page, site.dataset)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        boxes = page.locator("button:visible, input:visible, .card img:visible, #canvas .frame").evaluate_all(
            "all => all.map(one => [one.outerHTML.slice(0, 80), one.getBoundingClientRect().toJSON()])"
            ".filter(([, box]) => box.width > 1 && box.height > 1)"
        )
        for (first, a), (second, b) in itertools.combinations(boxes, 2):
            across = min(a["right"], b["right"]) - max(a["left"], b["left"])
            down = min(a["bottom"], b["bottom"]) - max(a["top"], b["top"])
            # A list's field lies in its button; a slider's knob may touch its box.
            assert min(across, down) <= 2 or "listbox" in first + second, (tab, first, second)


def test_names_are_shown_as_text(site, visit):
    page = visit()
    assert page.locator("#canvas .brushes label").nth(1).inner_text() == HOSTILE
    assert HOSTILE in page.locator(".studio-head").first.inner_text()
    page.click("#islands >> text=Random islands")
    page.locator("#islands-class input").click()
    page.wait_for_selector("[role=option]")
    page.keyboard.press("Escape")
    page.click("#place")
    wait_for(page, "#paint-status", HOSTILE)
    draw(page)
    browse(page, site.dataset)
    assert HOSTILE in page.locator("#classes").inner_text()
    assert HOSTILE in page.locator("#pairs").inner_text()
    page.fill("#folder input", f"/{HOSTILE}")
    page.keyboard.press("Enter")
    wait_for(page, "#browse-status", f"/{HOSTILE}: no such")
    page.get_by_role("tab", name="Run").click()
    page.fill("#run textarea, #run input", HOSTILE)
    page.click("#watch")
    wait_for(page, "#run-status", f"{HOSTILE}: not a run folder")
    page.get_by_role("tab", name="Paint").click()
    page.set_input_files(
        "#upload input, input[type=file]", {"name": "a<b>.png", "mimeType": "image/png", "buffer": b"x"}
    )
    wait_for(page, BAD, "not a readable image")
    assert page.evaluate("window.hacked") is None


def test_uploads_that_are_no_mask_are_refused_in_one_line(visit, tmp_path):
    page = visit()
    before = read_canvas(page)
    (tmp_path / "text.png").write_text("no image")
    Image.new("L", (10_000, 10_000)).save(tmp_path / "huge.png")
    for name, words in (("text.png", "text.png: not a readable image"), ("huge.png", "10000x10000 px exceeds")):
        page.set_input_files("input[type=file]", tmp_path / name)
        wait_for(page, BAD, words)
        assert "\n" not in page.locator(BAD).inner_text()
        assert str(tmp_path) not in page.locator(BAD).inner_text()
    assert (read_canvas(page) == before).all()
    colors = np.zeros((64, 64, 3), np.uint8)
    colors[:32] = (86, 180, 233)
    Image.fromarray(colors).save(tmp_path / "mask.png")
    page.set_input_files("input[type=file]", tmp_path / "mask.png")
    wait_for(page, "#paint-status", "mask: mask.png")
    assert (read_canvas(page)[:32] == 2).all()


@pytest.fixture
def slow(site):
    """Makes each evaluation of the network take a tenth of a second more; gives the times of all so far."""
    times = []

    def wait(*_):
        times.append(time.monotonic())
        time.sleep(0.1)

    (network,) = site.studio.generator.networks.values()
    hook = network.register_forward_pre_hook(wait)
    yield times
    hook.remove()


def test_two_at_once_wait_for_one_another_and_do_not_mix(visit, slow):
    first, second = visit(), visit()
    for page, label, row in ((first, 1, 0.2), (second, 3, 0.8)):
        page.locator("#canvas .brushes label").nth(label).click()
        paint(page, (0.1, row), (0.9, row))
    painted = [read_canvas(page) for page in (first, second)]
    first.click("#generate")
    second.click("#generate")
    wait_for(second, "#paint-status", "queue")
    wait_for(first, "#paint-status", "generating")
    for page, own in zip((first, second), painted, strict=True):
        wait_for(page, "#paint-status", "2 of 2 images generated; mask")
        swatches = page.locator("#canvas .swatch").evaluate_all("all => all.map(one => one.style.background)")
        palette = np.array([[int(part) for part in re.findall(r"\d+", swatch)] for swatch in swatches])
        for card in range(2):
            shown = read_picture(page.locator(f"#results .card >> nth={card} >> img >> nth=0"))
            assert (shown == palette[own]).all()


def test_closed_tab_and_stop_cancel(visit, slow):
    def wait_until_quiet():
        while time.monotonic() - slow[-1] < 1.5:
            time.sleep(0.1)

    page = visit()
    choose_variants(page, 8)
    page.click("#generate")
    page.wait_for_selector("#results .card")
    page.close()
    wait_until_quiet()
    assert 12 <= len(slow) < 80  # of 96

    page = visit()
    choose_variants(page, 8)
    slow.clear()
    page.click("#generate")
    page.wait_for_selector("#results .card")
    page.click("#stop")
    wait_for(page, "#paint-status", "stopped")
    wait_until_quiet()
    page.wait_for_selector("#save-all:not([disabled])")
    assert 12 <= len(slow) < 80
    draw(page)


def test_run_is_watched_while_it_trains(site, visit, tmp_path):
    from tests.data.samples import save_noise

    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"train": {"max_steps": 40}}))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 10, "loss": 0.5}) + "\n")
    page = visit()
    page.get_by_role("tab", name="Run").click()
    page.fill("#run textarea, #run input", str(run))
    page.click("#watch")
    wait_for(page, "#run-status", "step 10 of 40 · loss 0.5")
    assert page.locator("#curves img").count() == 1
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 20, "loss": 0.25}) + "\n")
    save_noise(run / "previews" / "step-000020.png")
    save_noise(run / "previews" / "copies-000020.png")
    wait_for(page, "#run-status", "step 20 of 40 · loss 0.25 · generated images copy training images")
    assert page.locator("#previews img").count() == 2


def test_nothing_is_asked_of_anyone_else(site, visit):
    page = visit()
    draw(page)
    browse(page, site.dataset)
    page.get_by_role("tab", name="Run").click()
    assert len(site.requests) > 20
    assert [url for url in site.requests if not url.startswith((site.address, "data:", "blob:"))] == []
