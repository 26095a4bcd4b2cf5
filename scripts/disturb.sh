#!/usr/bin/env bash
# Runs a command beside a process that loads a core and the memory for one to five random seconds, with pauses as long:
#
#   scripts/disturb.sh scripts/duel_pairs.sh 10
set -euo pipefail
while sleep $((1 + RANDOM % 5)); do
  # Buffers of 256 MB are larger than a cache, so each block is written to memory.
  timeout $((1 + RANDOM % 5)) dd if=/dev/zero of=/dev/null bs=256M status=none || true
done &
disturber=$!
trap 'kill "$disturber"' EXIT
"$@"
