// A button in a head sorts by its column: numbers as numbers, `dense-2` before `dense-16`, and empty cells last in both
// directions. A second click reverses the order.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const text = (row) => row.cells[column].textContent.trim();
    const isMissing = (text) => text === "" || text === "n/a";
    const compare = (a, b) => {
      const [x, y] = [text(a), text(b)];
      if (isMissing(x) || isMissing(y)) return isMissing(x) - isMissing(y);
      const [m, n] = [Number.parseFloat(x), Number.parseFloat(y)];
      const order = Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y, "en", { numeric: true }) : m - n;
      return ascending ? order : -order;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }));
}
