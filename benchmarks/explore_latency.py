"""How long the explorer page takes from a slider's move to the painted figure, in chromium.

    paretomerge demo -o demo
    .venv/bin/python benchmarks/explore_latency.py demo/front

Starts `paretomerge explore`, moves the first slider --moves times, and waits each time until the table and the figure have
changed and two frames have been painted. The first move is left out of the median: it also warms the browser up.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

from playwright.sync_api import sync_playwright

MOVE = """async (to) => {
  const point = () => JSON.stringify(document.querySelector('#figure .js-plotly-plot').data.at(-1).x)
  const table = () => document.querySelector('#metrics').innerText
  const slider = document.querySelector('#share-0 input[type=range]')
  const before = [point(), table()]
  const start = performance.now()
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(slider, to)
  slider.dispatchEvent(new Event('input', { bubbles: true }))
  while (point() === before[0] || table() === before[1]) await new Promise(r => setTimeout(r, 1))
  await new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))
  return performance.now() - start
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("front", type=Path)
    parser.add_argument("--moves", type=int, default=20)
    given = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    command = [Path(sys.executable).with_name("paretomerge"), "explore", given.front, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program, sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1360, "height": 1000})
            page.goto(program.stdout.readline().split()[0])
            page.wait_for_selector("#figure .main-svg")
            page.wait_for_function("location.hash.length > 1")
            page.wait_for_timeout(1000)
            times = [page.evaluate(MOVE, 5 + (37 * move) % 90) for move in range(given.moves + 1)]
            browser.close()
        finally:
            program.terminate()
    first, *rest = times
    found = {"first": first, "median": median(rest), "largest": max(rest)}
    print(
        json.dumps({"moves": given.moves, "load": os.getloadavg()[0], "ms": {k: round(v) for k, v in found.items()}}, indent=2)
    )


if __name__ == "__main__":
    main()
