#!/bin/bash
# SimpleCNN on CIFAR-10:  sbatch slurm/simple_cnn.sh [--key.sub value ...]
# Everything after the script's name goes to the job; sbatch's own options go before it and win over the lines below:
#   sbatch --nodes=2 --gpus-per-node=4 slurm/simple_cnn.sh --train.epochs 3
#   sbatch --array=1-5 slurm/simple_cnn.sh                       five seeds, one run directory each
#   sbatch --gpus-per-node=0 --nodes=2 slurm/simple_cnn.sh       two nodes without GPUs
#SBATCH --job-name=simple_cnn
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1          # one process each
#SBATCH --cpus-per-task=8          # of a node, shared by its processes; 4 for each GPU are plenty
#SBATCH --mem=32G                  # of a node; 8G for each process are plenty; take it out to give --mem-per-cpu
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@180        # seconds before the end at which the job stops, saves and queues again; at least 120
#SBATCH --requeue
#SBATCH --open-mode=append         # so that a requeue keeps what was logged before it
#SBATCH --output=%x-%j.out         # in the folder of submission: a missing one would fail the job without a word
# Often needed:  #SBATCH --partition=...   --account=...   --constraint=...
set -eu
trap "" USR1  # may come in the first second; launch/slurm.py handles it

# Slurm runs a copy of this file from its spool, so that $0 says nothing: the controller knows the original, and shows
# it with its arguments behind.
original=$(scontrol show job "${SLURM_JOB_ID:-none}" 2>/dev/null | sed -n '/^ *Command=/{s///;p;q;}' || true)
while [ ! -f "$original" ] && [ "$original" != "${original% *}" ]; do original=${original% *}; done
if [ -f "$original" ]; then original=$(readlink -f "$original"); else original=; fi
for repository in "$(dirname "$0")/.." "${original%/*}/.." "${SLURM_SUBMIT_DIR:-.}" "${SLURM_SUBMIT_DIR:-.}/.."; do
    [ -f "$repository/launch/slurm.py" ] && break
done
if [ ! -f "$repository/launch/slurm.py" ]; then  # a copy: in an active environment Python knows where it is installed
    repository=$(python3 -c 'import job; print(*job.__path__)' 2>/dev/null || true)/..
fi
if [ ! -f "$repository/launch/slurm.py" ]; then
    echo "error: no launch/slurm.py near ${original:-this} or ${SLURM_SUBMIT_DIR:-here}: submit from the repository," \
        "or with the environment active in which it is installed" >&2
    exit 2
fi
python=$repository/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$repository/launch/slurm.py" configs/simple_cnn.yaml "$@"
