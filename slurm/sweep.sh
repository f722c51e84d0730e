#!/bin/bash
# An experiment of several arms and seeds, each run a task of its own:
#   sbatch --array=1-$(python job/sweep.py SWEEP.yaml --count) slurm/sweep.sh SWEEP.yaml
#   python job/compare.py --sweep runs/SWEEP                     what it answers, once all or some are finished
# SWEEP.yaml is one of configs/sweeps/ or yours; sbatch's own options go before the script and win over the lines below:
#   sbatch --array=1-10%4 --gpus-per-node=4 slurm/sweep.sh configs/sweeps/simple_cnn_or_vgg16.yaml
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1          # one process each
#SBATCH --cpus-per-task=8          # of a node, shared by its processes; 4 for each GPU are plenty
#SBATCH --mem=32G                  # of a node; 8G for each process are plenty; take it out to give --mem-per-cpu
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@180        # seconds before the end at which the job stops, saves and queues again; at least 120
#SBATCH --requeue
#SBATCH --open-mode=append         # so that a requeue keeps what was logged before it
#SBATCH --output=%x-%A_%a.out      # in the folder of submission: a missing one would fail the job without a word
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
if [ $# -ne 1 ] || [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    echo "error: slurm/sweep.sh takes a sweep's file and runs as an array: see its first lines" >&2
    exit 2
fi
words=$("$python" "$repository/job/sweep.py" "$1" --task "$SLURM_ARRAY_TASK_ID")  # a line each; it says what is wrong
mapfile -t words <<< "$words"
export RANKZERO_SWEEP=1  # each task's directory is its own
exec "$python" "$repository/launch/slurm.py" "${words[0]#--config=}" "${words[@]:1}"
