#!/usr/bin/env bash
# make test-slurm24: tests/slurm with Debian 13's Slurm 24.11 and Python 3.13, whatever this machine has.
#
#   tests/slurm/slurm24.sh [options of pytest]
#
# All of it, with what waits for minutes. The first time Debian 13 is unpacked beside this machine's system, into ROOT:
# four minutes and 7 GB, kept for the next one. Daemons, jobs and mounts live in namespaces of their own, and are gone
# when this script is, however it ends.
# Needs Linux, root, and debootstrap (Debian: apt-get install debootstrap); MIRROR names another Debian mirror.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ROOT=$(realpath -m "${ROOT:-build/debian-13}")
MIRROR=${MIRROR:-http://deb.debian.org/debian}

if [ "$(id -u)" != 0 ]; then echo "skipped: a root directory with a Slurm cluster in it needs root" >&2; exit 0; fi
if ! command -v debootstrap >/dev/null; then echo "skipped: debootstrap is not installed" >&2; exit 0; fi
if ! unshare --mount --pid --fork true 2>/dev/null; then echo "skipped: no namespaces are to be had here" >&2; exit 0; fi

# Everything below ROOT's /home/rankzero is the working tree: what git knows, and what it does not ignore.
inside() {
  # shellcheck disable=SC2016  # the inner shell expands it; bash stays behind as process 1, which buries orphans
  unshare --mount --pid --fork --kill-child bash -euc '
    root=$1; shift
    mount --make-rprivate /
    mount --bind "$root" "$root"  # for who makes a namespace inside
    mount -t proc proc "$root/proc"
    for each in /sys /dev; do mount --rbind "$each" "$root$each"; done
    mount -t tmpfs tmpfs "$root/run"
    chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 bash -euc "cd /home/rankzero; $*"
  ' inside "$ROOT" "$@"
}

if [ ! -e "$ROOT/.ready" ]; then
  rm -rf "$ROOT"
  mkdir -p "$ROOT"
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,slurm-wlm,munge,git,procps,iproute2 \
    trixie "$ROOT" "$MIRROR" >/dev/null
  touch "$ROOT/.ready"
fi
# How this machine reaches the network: names, certificates, a package index of its own.
cp --dereference /etc/resolv.conf /etc/hosts "$ROOT/etc/"
for file in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do if [ -e "$file" ]; then cp "$file" "$ROOT$file"; fi; done

rm -rf "$ROOT/home/rankzero"
mkdir -p "$ROOT/home/rankzero"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --target-directory "$ROOT/home/rankzero"
inside "[ -x /opt/venv/bin/pytest ] && cmp -s constraints.txt /opt/venv/constraints.txt" || inside "
  python3 -m venv /opt/venv
  /opt/venv/bin/pip install --quiet -c constraints.txt -e '.[dev]'
  cp constraints.txt /opt/venv/"
inside "slurmctld -V; python3 -V; /opt/venv/bin/pytest -p no:cacheprovider -rs -m '' tests/slurm ${*@Q}"
