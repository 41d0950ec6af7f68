#!/bin/bash
# Pre-training on several nodes under SLURM: sbatch --nodes 4 recipes/slurm.sh --dataset hf --data-dir ORG/IMAGES --streaming --output-dir OUT ...
# Options as for recipes/pretrain.py; --output-dir must be among them, not in a --config file, on a file system that all nodes share.
# A job that is preempted, loses a node or reaches its time limit is queued again and continues from its newest checkpoint, if it saved one.
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

recipes=${MSCL_HF_RECIPES:-$SLURM_SUBMIT_DIR/recipes}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
restarts=${SLURM_RESTART_COUNT:-0}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun no longer reads it from sbatch
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# A node that returns does not find the store that torchrun's agents share; this makes a new store for each rendezvous.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

out=runs/pretrain
previous=
for word in "$@"; do
    [ "$previous" = --output-dir ] && out=$word
    [ "${word#--output-dir=}" != "$word" ] && out=${word#--output-dir=}
    previous=$word
done
checkpoints() { ls -d "$out"/checkpoints/step-* "$out"/stage*/checkpoints/step-* 2>/dev/null; }
before=$(checkpoints)

# srun passes SIGTERM, from the time limit or a preemption, to torchrun: workers finish their step, save, and end within 30 seconds.
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "${SLURM_GPUS_ON_NODE:-8}" --max_restarts 3 \
    --rdzv_backend c10d --rdzv_endpoint "$head:29400" --rdzv_id "$SLURM_JOB_ID-$restarts" \
    "$recipes/pretrain.py" --resume "$@"
status=$?

# torchrun gives the same status for every error. Wrong options, a full disk or a non-finite loss would fail again and again: only a run
# with a new checkpoint is queued again.
if [ $status -ne 0 ]; then
    if [ "$(checkpoints)" = "$before" ]; then
        echo "failed (status $status) without a new checkpoint: not queued again"
    elif [ "$restarts" -ge "${MAX_REQUEUES:-20}" ]; then
        echo "not done (status $status) after $restarts requeues: not queued again; raise MAX_REQUEUES and submit it again"
    else
        echo "not done (status $status): queued again"
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit $status
