#!/usr/bin/env python3
"""Checks HTML pages of reports in headless Chromium: accessibility, sorting, and that a page loads nothing.

    npm install --prefix /tmp/axe axe-core
    scripts/check_page.py /tmp/axe/node_modules/axe-core/axe.min.js target-reports/*/*/index.html

Each page is checked with light and dark colours and at the widths of a desktop and a phone. The program of Chromium is
`chromium`, or the value of CHROMIUM. The exit code is 1 if a page fails.
"""

import html
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

CHROMIUM = os.environ.get("CHROMIUM", "chromium")
WIDTHS = {"desktop": 1400, "phone": 390}
SCHEMES = {"light": 1, "dark": 0}

# Runs before the page's own script, so that it sees every attempt to load something.
BEFORE = """
window.attempts = [];
document.addEventListener("securitypolicyviolation", (event) => window.attempts.push(event.blockedURI));
new PerformanceObserver((list) => window.attempts.push(...list.getEntries().map((entry) => entry.name)))
  .observe({ type: "resource", buffered: true });
"""

# Sorts every column of every table twice and notes columns whose numbers or names are out of order.
AFTER = """
const problems = [];
const missing = (text) => text === "" || text === "n/a";
const key = (text) => (/^[+-]?[0-9]/.test(text) ? Number.parseFloat(text) : text);
for (const table of document.querySelectorAll("table")) {
  [...table.querySelectorAll("th")].forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button || button.tabIndex < 0) problems.push(`${head.textContent}: the keyboard does not reach the header`);
    for (const direction of ["ascending", "descending"]) {
      button?.click();
      if (head.getAttribute("aria-sort") !== direction) problems.push(`${head.textContent}: not ${direction}`);
      const cells = [...table.tBodies[0].rows].map((row) => row.cells[column].textContent.trim());
      const filled = cells.filter((text) => !missing(text));
      if (cells.slice(0, filled.length).some(missing)) problems.push(`${head.textContent}: empty cells are not last`);
      for (let i = 1; i < filled.length; i++) {
        const [x, y] = [filled[i - 1], filled[i]];
        const [m, n] = [key(x), key(y)];
        const isNumber = typeof m === "number" && typeof n === "number";
        const order = isNumber ? m - n : x.localeCompare(y, "en", { numeric: true });
        if (direction === "ascending" ? order > 0 : order < 0) problems.push(`${head.textContent}: ${x} before ${y}`);
      }
    }
  });
}
if (document.documentElement.scrollWidth > window.innerWidth) problems.push("the page is wider than the window");
axe.run().then((results) => {
  const serious = results.violations.filter((violation) => ["serious", "critical"].includes(violation.impact));
  const texts = serious.map((violation) => `${violation.id}: ${violation.help}: ${violation.nodes[0].html.slice(0, 200)}`);
  const others = results.violations.length - serious.length;
  const result = { problems: [...problems, ...texts, ...window.attempts.map((url) => `loads ${url}`)], others };
  document.body.innerHTML = "";
  const place = document.createElement("pre");
  place.id = "result-of-the-check";
  place.textContent = JSON.stringify(result);
  document.body.append(place);
});
"""


def check(page: pathlib.Path, axe: str, width: int, scheme: int) -> dict:
    text = page.read_text(encoding="utf-8")
    text = text.replace("<title>", f"<script>{BEFORE}</script><title>", 1)
    text = text.replace("</body>", f"<script>{axe}</script><script>{AFTER}</script></body>", 1)
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "page.html"
        copy.write_text(text, encoding="utf-8")
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
        command += [f"--blink-settings=preferredColorScheme={scheme}", "--virtual-time-budget=60000", "--dump-dom"]
        done = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r'<pre id="result-of-the-check">(.*?)</pre>', done.stdout, re.DOTALL)
    if not found:
        return {"problems": ["the check did not end"], "others": 0}
    return json.loads(html.unescape(found.group(1)))


def main() -> int:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    axe = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
    failed = False
    for page in map(pathlib.Path, sys.argv[2:]):
        for (device, width), (name, scheme) in [(w, s) for w in WIDTHS.items() for s in SCHEMES.items()]:
            result = check(page, axe, width, scheme)
            verdict = "failed" if result["problems"] else "ok"
            print(f"{page}, {device}, {name}: {verdict}; {result['others']} minor findings of axe")
            for problem in result["problems"]:
                print(f"  {problem}")
            failed |= bool(result["problems"])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
