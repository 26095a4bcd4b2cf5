#!/bin/sh
# Downloads books of Project Gutenberg, whose texts are in the public domain in the United States, until a file
# contains about 50 MB, one paragraph per line. Use the file as the `corpus` of `candlepower train`. Needs curl.
#
#   scripts/fetch_corpus.sh corpus.txt
#
# MEGABYTES sets the size, FIRST the number of the first book, MIRROR the server. A missing book is skipped. The file
# is written completely or not at all.
set -eu
out=${1:?"the file to write is needed: scripts/fetch_corpus.sh corpus.txt"}
bytes=$((${MEGABYTES:-50} * 1000000))
mirror=${MIRROR:-https://www.gutenberg.org}
number=${FIRST:-11}
work=$(mktemp "$out.XXXXXX")
trap 'rm -f "$work" "$work.book"' EXIT
missing=0
while [ "$(wc -c <"$work")" -lt "$bytes" ]; do
    url="$mirror/cache/epub/$number/pg$number.txt"
    if curl --fail --silent --show-error --location --max-time 120 --output "$work.book" "$url"; then
        missing=0
        # The book is between two lines of asterisks; blank lines separate its paragraphs.
        tr -d '\r' <"$work.book" | awk '
            /^\*\*\* ?END OF/ { inside = 0 }
            inside && NF { paragraph = paragraph (paragraph == "" ? "" : " ") $0 }
            inside && !NF && paragraph != "" { print paragraph; paragraph = "" }
            /^\*\*\* ?START OF/ { inside = 1 }
            END { if (paragraph != "") print paragraph }' >>"$work"
        echo "$number: $(wc -c <"$work") bytes" >&2
    else
        missing=$((missing + 1))
        if [ "$missing" -ge 20 ]; then
            echo "error: 20 books in a row could not be fetched from $mirror; is it reachable?" >&2
            exit 1
        fi
    fi
    number=$((number + 1))
    # Project Gutenberg asks programs to wait between downloads.
    sleep "${PAUSE:-2}"
done
mv "$work" "$out"
echo "$out: $(wc -c <"$out") bytes, $(wc -l <"$out") paragraphs"
