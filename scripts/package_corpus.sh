#!/bin/sh
# Makes a corpus of about 50 MB of English, one paragraph per line, from the HTML documentation in Debian's packages, for machines
# that reach a Debian mirror but not Project Gutenberg. The text has the licences of the packages. Needs apt-get, dpkg-deb
# and python3, and the lists of `apt-get update`.
#
#   scripts/package_corpus.sh corpus.txt
#
# PACKAGES names other packages, MEGABYTES sets the largest size. The file is written completely or not at all.
set -eu
out=${1:?"the file to write is needed: scripts/package_corpus.sh corpus.txt"}
case $out in /*) ;; *) out=$PWD/$out ;; esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for package in ${PACKAGES:-linux-doc-6.1 postgresql-doc-15 sqlite3-doc python3.11-doc git-doc r-doc-html libreoffice-help-en-us openjdk-17-doc}; do
    apt-get download "$package" >&2
done
for file in ./*.deb; do
    dpkg-deb -x "$file" files
done
MEGABYTES=${MEGABYTES:-50} python3 - files text <<'PYTHON'
"""Writes the paragraphs of all HTML pages below a folder, each paragraph once."""
import gzip
import html.parser
import os
import pathlib
import sys

PARAGRAPHS = {"p", "li", "dd", "dt", "td", "h1", "h2", "h3", "h4", "blockquote"}
IGNORED = {"script", "style", "nav", "head"}


class Paragraphs(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.parts, self.ignored = [], [], 0

    def end(self):
        text = " ".join("".join(self.parts).split())
        self.parts = []
        # Headings, menus and tables of symbols are no prose.
        if len(text) >= 80:
            self.found.append(text)

    def handle_starttag(self, tag, attributes):
        self.ignored += tag in IGNORED
        if tag in PARAGRAPHS:
            self.end()

    def handle_endtag(self, tag):
        self.ignored -= tag in IGNORED
        if tag in PARAGRAPHS:
            self.end()

    def handle_data(self, data):
        if self.ignored == 0:
            self.parts.append(data)


limit, size, seen = int(os.environ["MEGABYTES"]) * 1000000, 0, set()
with open(sys.argv[2], "w", encoding="utf-8") as text:
    for page in sorted(pathlib.Path(sys.argv[1]).rglob("*.html*")):
        if not page.is_file() or size >= limit:
            continue
        content = page.read_bytes()
        content = gzip.decompress(content) if page.suffix == ".gz" else content
        parser = Paragraphs()
        parser.feed(content.decode("utf-8", "replace"))
        parser.end()
        for paragraph in parser.found:
            if paragraph not in seen:
                seen.add(paragraph)
                size += text.write(paragraph + "\n")
PYTHON
mv text "$out"
echo "$out: $(wc -c <"$out") bytes, $(wc -l <"$out") paragraphs"
