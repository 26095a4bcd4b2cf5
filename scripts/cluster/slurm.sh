#!/bin/bash
# Runs a sweep as a Slurm job array: each task runs its shard of the combinations. A task that is requeued resumes its shard.
#
#   sbatch --array=1-4 scripts/cluster/slurm.sh --preset hybrid-gpu
#   candlepower sweep summarise results/*.parquet
#   candlepower report results/runs/<job>-*
#
# The arguments are those of `candlepower sweep`. RESULTS names the folder of the results, CANDLEPOWER the program. To try it
# without Slurm, set SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT.
#SBATCH --job-name=candlepower-sweep
#SBATCH --cpus-per-task=8

set -euo pipefail

shard=${SLURM_ARRAY_TASK_ID:?run this script as a job array}
count=${SLURM_ARRAY_TASK_COUNT:?run this script as a job array}
results=${RESULTS:-results}

exec "${CANDLEPOWER:-candlepower}" sweep --shard "$shard/$count" --out "$results/runs" \
    --run "${SLURM_ARRAY_JOB_ID:-sweep}-$shard" --output "$results/shard-$shard.parquet" \
    --log "$results/shard-$shard.md" "$@"
