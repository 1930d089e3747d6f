"""report.html in a real browser: what it asks for, whether it fits a phone, and what it looks like in the dark."""

import base64
import json
import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")

# The page stands in frames of the width of a phone and of a desk, in both colours; what they hold is written down.
_OUTER = """<!doctype html><meta charset="utf-8"><body>
<iframe id="phone" src="report.html" style="width: 360px; height: 640px; color-scheme: light"></iframe>
<iframe id="desk" src="report.html" style="width: 1200px; height: 640px; color-scheme: dark"></iframe>
<pre id="found"></pre>
<script>
addEventListener("load", async () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, style = frame.contentWindow.getComputedStyle(page.body);
    await Promise.all([...page.images].map((image) => image.decode().catch(() => {})));
    found[frame.id] = {
      width: page.documentElement.scrollWidth,
      frame: page.documentElement.clientWidth,
      paper: style.backgroundColor,
      size: parseFloat(style.fontSize),
      pictures: [...page.images].map((image) => [image.naturalWidth, image.clientWidth, image.currentSrc]),
      asked: frame.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name),
      headings: [...page.querySelectorAll("h2")].map((heading) => heading.textContent),
    };
  }
  document.getElementById("found").textContent = btoa(JSON.stringify(found));
  document.title = "done";
});
</script>"""


@pytest.fixture(scope="module")
def found(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    shutil.copy(exported / "report.html", folder)
    (folder / "outer.html").write_text(_OUTER)
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]
    page = (folder / "outer.html").as_uri()
    result = subprocess.run([*command, page], capture_output=True, text=True, timeout=300, check=True)
    match = re.search(r'<pre id="found">([\w+/=]+)</pre>', result.stdout)
    assert match, result.stdout[-2000:] + result.stderr[-2000:]
    return json.loads(base64.b64decode(match[1]))


def test_nothing_is_asked_for(found):
    for page in found.values():
        assert all(name.startswith("data:") for name in page["asked"])


def test_it_fits(found):
    for page in found.values():
        assert page["width"] <= page["frame"], "the page is wider than the screen"
        assert page["size"] >= 16


def test_pictures_are_shown(found):
    for page in found.values():
        assert len(page["pictures"]) == 2
        for natural, shown, _ in page["pictures"]:
            assert natural > 100
            assert 300 < shown <= page["frame"]


def test_light_and_dark(found):
    assert found["phone"]["paper"] == "rgb(255, 255, 255)"
    assert found["desk"]["paper"] == "rgb(13, 17, 23)"
    light, dark = ([picture[2] for picture in found[frame]["pictures"]] for frame in ("phone", "desk"))
    assert not set(light) & set(dark)


def test_all_sections_are_there(found):
    assert found["phone"]["headings"] == [
        "Quality",
        "Speed",
        "Where pruning costs",
        "Load it",
        "What was done",
        "Verification",
        "Limits",
        "Origin, recipe and licence",
    ]
