#!/usr/bin/env bash
# Draws the pictures of the README and of the guide again: scripts/pictures.sh [report]
#
# The report is a kept one, for example target-reports/amd-epyc-2c/20261122T165718Z (the default is the newest). Its README,
# its page and its plots are written again from its records; the records and data files stay. `scripts/pictures.sh` also runs
# `cargo bench -- '^short/'` three times beside nothing and three times beside two busy loops, and draws what a terminal of each size
# shows, so leave the machine idle. The pictures of `watch`, `compare` and `history` show simulated records. MODEL is the GGUF file of the
# first command (default: target/real-models/SmolLM2-135M-Instruct.Q4_1.gguf, by scripts/real_models.sh). Needs Chromium (CHROMIUM, default
# chromium), tmux, Python with Pillow, and a built `candlepower` (CANDLEPOWER).
set -euo pipefail
cd "$(dirname "$0")/.."
chromium=${CHROMIUM:-chromium}
candlepower=$(realpath "${CANDLEPOWER:-target/release/candlepower}")
model=$(realpath "${MODEL:-target/real-models/SmolLM2-135M-Instruct.Q4_1.gguf}")
report=${1:-$(ls -d target-reports/*/*/ | sort | tail -1)}
report=${report%/}
images=src/guide/images
mkdir -p "$images"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The title of a report has the time at which it was written, so the title of the kept report stays.
again=$("$candlepower" report "$report/results.jsonl" --to "$work/reports" 2>/dev/null)
old=$(head -1 "$report/README.md") && new=$(head -1 "$again/README.md")
for file in README.md index.html; do
  sed -i "s|${new#\# }|${old#\# }|g" "$again/$file"
  cp "$again/$file" "$report/$file"
done
rm -f "$report"/*.svg "$report"/*.png
cp "$again"/*.svg "$again"/*.png "$report/"

# picture FILE WIDTH HEIGHT SCHEME NAME: SCHEME is 1 for light colours and 0 for dark ones.
picture() {
  "$chromium" --headless=new --no-sandbox --disable-gpu --hide-scrollbars --blink-settings=preferredColorScheme="$4" \
    --window-size="$2,$(($3 + 200))" --screenshot="$work/$5" "file://$(realpath "$1")" 2>/dev/null
  # Chromium does not paint the last rows of a window. Few colours keep the file below 100 kB.
  python3 -c 'import sys; from PIL import Image
picture = Image.open(sys.argv[1]).convert("RGB").crop((0, 0, int(sys.argv[3]), int(sys.argv[4])))
picture.quantize(48).save(sys.argv[2], optimize=True)' "$work/$5" "$images/$5" "$2" "$3"
}

# pages PAGE NAME: the page in light and dark colours and on a phone.
pages() {
  picture "$1" 1100 530 1 "$2-light.png"
  picture "$1" 1100 530 0 "$2-dark.png"
  # Chromium's window has a least width, so the phone is a frame.
  printf '<body style="margin:0"><iframe src="file://%s" width=390 height=844 style="border:0"></iframe>' \
    "$(realpath "$1")" >"$work/phone.html"
  picture "$work/phone.html" 390 844 1 "$2-phone.png"
}
pages "$report/index.html" report

# terminal WIDTH HEIGHT NAME COMMAND...: what a terminal of this size shows at the end of the command, or after five seconds of one
# that does not end.
terminal() {
  local width=$1 height=$2 name=$3
  shift 3
  rm -f "$work/ended"
  tmux -L pictures new-session -d -x "$width" -y "$height" "cd '$PWD' && $*; touch '$work/ended'; sleep 600"
  sleep 5
  if [[ $name != watch-* ]]; then
    until [[ -e $work/ended ]]; do sleep 1; done
  fi
  tmux -L pictures capture-pane -p | sed 's/&/\&amp;/g; s/</\&lt;/g' >"$work/screen.txt"
  tmux -L pictures kill-server
  { printf '<meta charset=utf-8><body style="margin:8px;background:#111;color:#ddd"><pre style="margin:0;font:14px/1.2 DejaVu Sans Mono,monospace">'
    cat "$work/screen.txt"; } >"$work/screen.html"
  picture "$work/screen.html" $((width * 17 / 2 + 20)) $((height * 17 + 20)) 1 "$name"
}

(
  cd "$work"
  "$candlepower" sandbox >/dev/null
  "$candlepower" sandbox --run other --seed 7 >/dev/null
)
terminal 80 24 watch-80x24.png "cd $work; $candlepower watch sandbox"
terminal 120 40 watch-120x40.png "cd $work; $candlepower watch sandbox"
terminal 200 50 watch-200x50.png "cd $work; $candlepower watch sandbox"
terminal 120 40 compare-120x40.png "cd $work; $candlepower compare sandbox other | head -40"
terminal 120 40 history-120x40.png "$candlepower history short/ | head -38"
terminal 80 24 first-80x24.png "cd $(dirname "$model"); $candlepower ./$(basename "$model")"

cargo bench --no-run
export CANDLEPOWER_OUT=$work/runs CRITERION_HOME=$work/criterion
for beside in quiet busy; do
  loops=()
  if [[ $beside == busy ]]; then
    for _ in 1 2; do
      (while :; do :; done) &
      loops+=($!)
    done
    trap 'kill "${loops[@]}"; rm -rf "$work"' EXIT
  fi
  for size in "80 24" "120 40" "200 50"; do
    read -r width height <<<"$size"
    terminal "$width" "$height" "bench-$beside-${width}x$height.png" \
      "CANDLEPOWER_RUN=$beside-$width cargo bench --bench generation -- '^short/' 2>&1"
  done
  if [[ $beside == busy ]]; then
    kill "${loops[@]}"
    trap 'rm -rf "$work"' EXIT
    page=$("$candlepower" report "$work/runs/busy-200" --even-if-disturbed --to "$work/reports" 2>/dev/null)
    pages "$page/index.html" report-busy
  fi
done
ls -l "$images"
