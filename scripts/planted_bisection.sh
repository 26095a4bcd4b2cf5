#!/usr/bin/env bash
# Tests whether `candlepower bisect` finds planted changes: scripts/planted_bisection.sh [times]
#
# Makes a repository of the crate that README.md describes, with twelve commits after the first. One of them plants a change: forward passes
# that take 5 % longer, 2 % more peak memory, or other tokens. Bisects each of the three so many times (default: 3), with another culprit each
# time, and kills the program twice on the way. Exits with code 1 if a bisection ends with another commit. Leave the machine idle, or run it by
# scripts/disturb.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
times=${1:-3}
cargo build --release --quiet
# The folder is outside of this workspace. It is kept, so that the next run compiles candlepower's dependencies no more.
work=${TMPDIR:-/tmp}/candlepower-planted-bisection
mkdir -p "$work"
# A copy, so that changes of this checkout compile nothing while it runs.
rm -rf "$work/candlepower"
mkdir "$work/candlepower"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --preserve=timestamps -t "$work/candlepower"
cp "${CARGO_TARGET_DIR:-target}/release/candlepower" "$work/program"
candlepower=$work/program
crate=$work/my-models

# The code block of README.md that belongs to a file.
block() { awk -v marker="<!-- own $1 -->" '$0 == marker { found = 1; next } found && /^```/ { if (inside) exit; inside = 1; next } inside' README.md; }

# The benchmark with a change of a kind.
planted() {
  case $1 in
    slower)
      sed -e '/fn forward/a let started = std::time::Instant::now();' \
        -e 's/Ok(\(self.sum.matmul.*\))$/let logits = \1; let end = started.elapsed().mul_f64(1.05); while started.elapsed() < end {} Ok(logits)/'
      ;;
    # 2 % of the embedding, which is most of the peak.
    memory) sed -e '/^fn load/a std::mem::forget(vec![1u8; VOCAB_SIZE * HIDDEN_SIZE * 4 / 50]);' ;;
    tokens) sed -e 's/Ok(\(self.sum.matmul.*\))$/Ok(\1.neg()?)/' ;;
  esac
}

# Makes the repository.
plant() {
  local kind=$1 culprit=$2 number
  rm -rf "$crate/.git"
  mkdir -p "$crate/benches" "$crate/src"
  block Cargo.toml >"$crate/Cargo.toml"
  # A newer file would compile candlepower again.
  [[ -e $crate/Cargo.lock ]] || cp Cargo.lock "$crate/Cargo.lock"
  touch "$crate/src/lib.rs"
  printf 'target\n' >"$crate/.gitignore"
  git -C "$crate" init --quiet
  for ((number = 0; number <= 12; number++)); do
    block benches/my_model.rs | if ((number < culprit)); then cat; else planted "$kind"; fi >"$crate/benches/my_model.rs"
    echo "// Commit $number." >>"$crate/benches/my_model.rs"
    git -C "$crate" add --all
    git -C "$crate" -c user.name=test -c user.email=test@localhost commit --quiet --message "Commit $number"
  done
}

# Compiles candlepower, so that the program is killed in its steps.
plant slower 1
(cd "$crate" && "$candlepower" duel HEAD~1 HEAD --budget 10s -- '^medium/') >"$work/first.log" 2>&1
wrong=0
for kind in slower memory tokens; do
  for ((time = 1; time <= times; time++)); do
    culprit=$((1 + RANDOM % 12))
    plant "$kind" "$culprit"
    started=$SECONDS
    for kill in 1 2; do
      (cd "$crate" && timeout --signal KILL $((5 + RANDOM % 60)) "$candlepower" bisect HEAD~12 HEAD --budget 2m --for "$kind" -- '^medium/') \
        >"$work/killed.log" 2>&1 || true
    done
    found=$(cd "$crate" && "$candlepower" bisect HEAD~12 HEAD --budget 2m --for "$kind" -- '^medium/' 2>"$work/bisect.log") || true
    echo "$kind, planted in commit $culprit, $((SECONDS - started)) s: $(head -n 1 <<<"$found")"
    grep -q "Commit $culprit\$" <<<"$(head -n 1 <<<"$found")" || wrong=$((wrong + 1))
  done
done
echo "$wrong of $((3 * times)) bisections ended with another commit"
((wrong == 0))
