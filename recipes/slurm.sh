#!/bin/bash
# Pre-training on several nodes under SLURM: sbatch --nodes 4 recipes/slurm.sh --dataset hf --data-dir ORG/IMAGES --streaming --output-dir OUT ...
# The options are those of recipes/pretrain.py, --output-dir among them and not in a file; OUT must be on a file system that all nodes see. What was preempted, lost a node or ran out of
# its time is queued again and goes on from the newest checkpoint, until it is done.
#SBATCH --job-name=mscl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
set -u

here=${MSCL_HF_RECIPES:-$SLURM_SUBMIT_DIR/recipes}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
restarts=${SLURM_RESTART_COUNT:-0}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# torchrun's agents share a store that a node which comes back does not find; without it each round of the rendezvous makes its own.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# SIGTERM, of the time limit or of a preemption, reaches torchrun by srun: workers finish their step, save, and end within its 30 seconds.
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "${SLURM_GPUS_ON_NODE:-8}" --max_restarts 3 \
    --rdzv_backend c10d --rdzv_endpoint "$head:29400" --rdzv_id "$SLURM_JOB_ID-$restarts" \
    "$here/pretrain.py" --resume "$@"
status=$?

# A wrong option ends a run before its first step, and would do so for ever: only what has begun to train is queued again.
out=runs/pretrain
previous=
for word in "$@"; do
    [ "$previous" = --output-dir ] && out=$word
    [ "${word#--output-dir=}" != "$word" ] && out=${word#--output-dir=}
    previous=$word
done
if [ $status -ne 0 ] && [ -d "$out/checkpoints" ] && [ "$restarts" -lt "${MAX_REQUEUES:-20}" ]; then
    echo "not done (status $status): queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
