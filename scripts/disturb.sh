#!/usr/bin/env bash
# Loads a core and the memory for one to five random seconds, with pauses as long, while a process lives: scripts/disturb.sh PID
set -euo pipefail
while kill -0 "$1" 2>/dev/null; do
  # Buffers of 256 MB are larger than a cache, so each block is written to memory.
  timeout $((1 + RANDOM % 5)) dd if=/dev/zero of=/dev/null bs=256M status=none || true
  sleep $((1 + RANDOM % 5))
done
