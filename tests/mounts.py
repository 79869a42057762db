"""Real disks for tests: a script runs where it may mount without anybody else seeing it."""

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

__all__ = ["in_own_mounts", "on_a_disk_of"]


def in_own_mounts(
    script: str, *, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a mount namespace of its own; skips the test where that is refused."""
    unshare = shutil.which("unshare")
    namespace = [unshare or "unshare", "--user", "--map-root-user", "--mount"]
    if not unshare or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip(
            "this machine allows no user namespaces, so no disk can be mounted for the test"
        )
    return subprocess.run(
        [*namespace, "sh", "-euc", script], capture_output=True, text=True, env=env
    )


def on_a_disk_of(
    size: str, place: Path, command: Sequence[str], *, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command that finds an empty disk of this size (`3m`) at a folder."""
    disk = shlex.quote(str(place))
    mount = f"mount -t tmpfs -o size={size} tmpfs {disk}"
    return in_own_mounts(f"{mount}; {shlex.join(command)}", env=env)
