#!/bin/bash
# Pre-training on several nodes under SLURM: sbatch --nodes 4 recipes/slurm.sh --dataset hf --data-dir ORG/IMAGES --streaming --output-dir OUT ...
# The options are those of recipes/pretrain.py, --output-dir among them and not in a file; OUT must be on a file system that all nodes see.
# What was preempted, lost a node or ran out of its time is queued again and goes on from the newest checkpoint, as long as it gets on.
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
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch any more
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# torchrun's agents share a store that a node which comes back does not find; without it each round of the rendezvous makes its own.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

out=runs/pretrain
previous=
for word in "$@"; do
    [ "$previous" = --output-dir ] && out=$word
    [ "${word#--output-dir=}" != "$word" ] && out=${word#--output-dir=}
    previous=$word
done
saved() { ls -d "$out"/checkpoints/step-* "$out"/stage*/checkpoints/step-* 2>/dev/null; }
before=$(saved)

# SIGTERM, of the time limit or of a preemption, reaches torchrun by srun: workers finish their step, save, and end within its 30 seconds.
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "${SLURM_GPUS_ON_NODE:-8}" --max_restarts 3 \
    --rdzv_backend c10d --rdzv_endpoint "$head:29400" --rdzv_id "$SLURM_JOB_ID-$restarts" \
    "$here/pretrain.py" --resume "$@"
status=$?

# torchrun makes one status of all. A wrong option, a full disk or a loss that is not finite would fail for ever: only a run that has saved
# something new is queued again.
if [ $status -ne 0 ]; then
    if [ "$(saved)" = "$before" ]; then
        echo "failed (status $status) without a new checkpoint: not queued again"
    elif [ "$restarts" -ge "${MAX_REQUEUES:-20}" ]; then
        echo "not done (status $status) after $restarts requeues: not queued again; raise MAX_REQUEUES, and submit it anew"
    else
        echo "not done (status $status): queued again"
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit $status
