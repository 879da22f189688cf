#!/bin/bash
#SBATCH --job-name=leaf-encode
#SBATCH --array=0-99
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --requeue
# Stage one as a Slurm array: each job makes its part of the shards and adds them to the shard cache.
# In the project's directory, which all nodes see under one path:
#
#     leaf plan-shards --orders .cache/orders.jsonl
#     sbatch --wait examples/slurm_shards.sh
#     dvc repro                                  # publishes; whatever a job has left undone, it encodes here
#
# A job that is requeued goes on behind its last finished shard.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
exec leaf encode-shards --orders .cache/orders.jsonl \
    --part "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))" --parts "${SLURM_ARRAY_TASK_COUNT}"
