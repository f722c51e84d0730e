"""Two users on one node: neither stands in the other's way, nor trains on what the other left."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cluster import cluster, missing
from shipped import ROOT, TINY

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(500)]
OTHER = "daemon"
"""an account that every Linux has and nobody works under"""

# Python may lie where only root reads. In a mount namespace, and nowhere else, everybody may.
OPENED = """
for path in "$1" "$2"; do
  while [ "$path" != / ]; do
    if [ -d "$path" ] && [ $(($(stat -c '0%a' "$path") & 05)) != 5 ]; then
      layer=$(mktemp -d "$3/XXXX"); mkdir "$layer/upper" "$layer/work"
      mount -t overlay overlay -o "lowerdir=$path,upperdir=$layer/upper,workdir=$layer/work" "$path"
      chmod 755 "$path"
    fi
    path=$(dirname "$path")
  done
done
exec "$4" "$5"
"""


@pytest.mark.long
def test_two_users_on_one_node_have_their_images_each_in_a_directory_of_his_own() -> None:
    if reason := missing():
        pytest.skip(f"the Slurm tests start a cluster of their own: {reason}")
    real = [str(Path(path).resolve()) for path in (sys.executable, pytest.__file__)]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as layers:  # what an overlay lies on must not be one itself
        command = ["unshare", "--mount", "bash", "-euc", OPENED, "opened", *real, layers, sys.executable, __file__]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.stderr.startswith(("mount:", "unshare:")):
        pytest.skip(f"no overlay can be mounted here: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    ended = json.loads(done.stdout)
    for user, (state, log) in ended.items():
        assert state == "COMPLETED", log
        assert f"/rankzero-{pwd.getpwnam(user).pw_uid}/shapes10-" in log, log
    assert list(ended) == ["root", OTHER]


def as_user(user: pwd.struct_passwd, home: Path) -> list[str]:
    """The beginning of a command that this user types."""
    own = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return [*own, "env", f"HOME={home}", f"USER={user.pw_name}"]


def main() -> None:
    """A job of each user at once on the same node, each from a clone of his own; how they ended, as JSON."""
    directory = Path(tempfile.mkdtemp(prefix="users-"))
    directory.chmod(0o755)
    scratch = directory / "scratch"
    scratch.mkdir()
    scratch.chmod(0o1777)
    jobs: dict[str, tuple[str, Path]] = {}
    ended: dict[str, Any] = {}
    try:
        with cluster(nodes=1, gpus=0) as running:
            running.environment |= {"RANKZERO_PYTHON": sys.executable, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
            for name in ("root", OTHER):
                user, home = pwd.getpwnam(name), directory / name
                for folder in ("job", "launch", "slurm", "configs"):
                    shutil.copytree(ROOT / folder, home / folder, ignore=shutil.ignore_patterns("__pycache__"))
                for path in (home, *home.rglob("*")):
                    os.chown(path, user.pw_uid, user.pw_gid)
                command = ["sbatch", "--parsable", "--gpus-per-node=0", "--cpus-per-task=1", "slurm/simple_cnn.sh"]
                said = running.run(*as_user(user, home), *command, *TINY, "--train.epochs=1", cwd=home)
                jobs[name] = said.stdout.strip(), home
            for name, (job, home) in jobs.items():
                state = running.wait(job)["JobState"]
                ended[name] = state, (home / f"simple_cnn-{job}.out").read_text()
    finally:
        shutil.rmtree(directory)
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
