"""A pretended GPU for machines that have none: real data on the CPU that says it lies on the device "gpu".

    with steelgen_on_device() as waits:
        train(config, observer)
    waits.count(), waits.report()

Within the block steelgen and accelerate choose the device, and torch behaves on it as on CUDA where that can matter. It
refuses what CUDA refuses: tensors of two devices in one operator (but for CPU scalars), a CPU tensor indexed on the
device, numpy() of the device's tensors, a generator of the other device, products and convolutions of two types, copies
to the host that do not wait. It notes what CUDA makes the host wait for: item(), float(), bool(), tolist(), cpu(),
nonzero() and indexing by booleans; copies from the host, unless pinned and non_blocking. Autocast follows CUDA's lists
of operators, not the CPU's.

It cannot show speed, the limits of CUDA's kernels, streams, several GPUs, torch.compile, or code that asks for
device.type == "cuda". Operators run from Python at some 50 µs each: for tiny networks alone. Importing this gives torch
an accelerator until the process ends, so no other tests may run in it.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import accelerate
import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import steelgen.training.setup
from steelgen import devices

NAME = "gpu"
_WAITING = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal"}
_WAITING |= {"_local_scalar_dense", "_linalg_check_errors"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_COPYING = {"copy_", "_to_copy"}
_ANY_DEVICE = {*_COPYING, *_INDEXING, "set_", "lift_fresh"}
_ONE_TYPE = {"convolution", "mm", "addmm", "bmm", "baddbmm", "linear", "native_group_norm"}
_CAST_TO_FP32 = (  # torch's autocast_mode.h, AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE
    "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan softplus layer_norm "
    "pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar native_layer_norm group_norm frobenius_norm.dim nuclear_norm "
    "cosine_similarity poisson_nll_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss "
    "huber_loss mse_loss multilabel_margin_loss soft_margin_loss renorm logsumexp cdist pdist upsample_bicubic2d "
    "upsample_bilinear2d prod prod.dim_int softmax.int log_softmax.int cumprod cumsum sum sum.dim_IntList "
    "linalg_vector_norm"
)
_CAST_DOWN = (
    "conv1d conv2d conv3d _convolution linear matmul mm mv bmm addmm addmv addbmm baddbmm chain_matmul prelu "
    "scaled_dot_product_attention conv_transpose2d.input"
)
_CAST_TO_WIDEST = "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add"


class Waits:
    """Each wait of the host for the device: its kind, and the lines of steelgen that it comes from."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str]] = []

    def add(self, kind: str) -> None:
        """Notes one at the line that runs."""
        self.entries.append((kind, _find_lines()))

    def take(self) -> Waits:
        """Those so far; begins anew."""
        taken = Waits()
        taken.entries, self.entries = self.entries, []
        return taken

    def without(self, *texts: str) -> Waits:
        """Those whose lines hold none of the texts."""
        left = Waits()
        left.entries = [entry for entry in self.entries if not any(text in entry[1] for text in texts)]
        return left

    def count(self) -> int:
        """How many."""
        return len(self.entries)

    def report(self) -> str:
        """A row for each kind and line: how many, most first."""
        rows = Counter(self.entries).most_common()
        return "\n".join(f"{count:6}  {kind:20} {line}" for (kind, line), count in rows)


class DeviceTensor(torch.Tensor):
    """A tensor on the pretended device; `held` has its data."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> DeviceTensor:
        strides, offset, device = held.stride(), held.storage_offset(), torch.device(NAME, 0)
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=strides, storage_offset=offset, dtype=held.dtype, device=device
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operator, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:  # by which modules swap tensors
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: Any) -> DeviceTensor:
        return DeviceTensor(inner["held"])

    def __deepcopy__(self, memo: dict[int, Any]) -> DeviceTensor:
        return memo.setdefault(id(self), DeviceTensor(self.held.clone()).requires_grad_(self.requires_grad))

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.held})"

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        _note("tolist")
        return self.held.tolist()

    def untyped_storage(self) -> Any:  # by which safetensors finds tensors that share memory
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()


class _Factories(TorchDispatchMode):
    """Sends here what makes or takes tensors of the device."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ours = any(isinstance(leaf, DeviceTensor) or _is_ours(leaf) for leaf in tree_leaves((args, kwargs)))
        return _run(operator, args, kwargs or {}) if ours else operator(*args, **kwargs or {})


_watching: list[Waits] = []


def _note(kind: str) -> None:
    for waits in _watching:
        waits.add(kind)


def _find_lines() -> str:
    """The three innermost lines of steelgen, behind the innermost one of another library that they called."""
    frame, found, foreign = sys._getframe(2), [], ""
    while frame and len(found) < 3:
        path, line = frame.f_code.co_filename, f"{frame.f_lineno} {frame.f_code.co_name}"
        if "/src/steelgen/" in path:
            found.append(f"{path.rsplit('/src/steelgen/')[-1]}:{line}")
        elif not (found or foreign or path == __file__ or "/torch/" in path):
            foreign = f"{path.rsplit('/')[-1]}:{line}"
        frame = frame.f_back
    return " < ".join([*([foreign] if foreign else []), *found]) or "(backward)"


def _is_ours(value: Any) -> bool:
    return isinstance(value, torch.device) and value.type == NAME


def _run(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if torch.is_inference_mode_enabled():  # composite operators come here whole; autograd takes them apart otherwise
        with _Factories():
            result = operator.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    name = operator._schema.name.removeprefix("aten::")
    to_host = _check(name, args, kwargs)
    wrappers: dict[int, DeviceTensor] = {}

    def unwrap(value: Any) -> Any:
        if isinstance(value, DeviceTensor):
            wrappers[id(value.held)] = value
            return value.held
        return torch.device("cpu") if _is_ours(value) else value

    # Torch looks at the marks of lazily conjugated and negated tensors before it comes here, so these are computed.
    operator = {"_conj": torch.ops.aten._conj_physical, "_neg_view": torch.ops.aten.neg}.get(name, operator)
    if kwargs.get("non_blocking"):
        kwargs = {**kwargs, "non_blocking": False}
    result = operator(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    if to_host:
        return result.clone() if id(result) in wrappers and name == "_to_copy" else result

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        # Operators in place give back what they were given.
        return wrappers[id(value)] if id(value) in wrappers else DeviceTensor(value)

    return tree_map(wrap, result)


def _check(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Refuses and notes what CUDA would; whether the result is on the host."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if name in _WAITING:
        _note({"_local_scalar_dense": "item"}.get(name, name))
    generator = kwargs.get("generator") or next((each for each in args if isinstance(each, torch.Generator)), None)
    if generator is not None and generator.device.type != NAME:
        raise RuntimeError(f"Expected a {NAME} device type for generator but found {generator.device.type} ({name})")
    if name in _COPYING:
        return _check_copy(name, args, kwargs)
    if name in _INDEXING:
        _check_indices(name, args)
    elif name not in _ANY_DEVICE and any(tensor.device.type == "cpu" and tensor.dim() for tensor in tensors):
        found = [(tensor.device.type, tuple(tensor.shape)) for tensor in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two: {name} of {found}")
    types = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if name in _ONE_TYPE and len(types) > 1:
        raise RuntimeError(f"expected tensors of the same type, found {sorted(map(str, types))} ({name})")
    return name == "_local_scalar_dense"


def _check_copy(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    source = args[1] if name == "copy_" else args[0]
    target = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or source.device)
    non_blocking = kwargs.get("non_blocking") or any(each is True for each in args[2:])
    if source.device.type == NAME and target.type == "cpu":
        if non_blocking:
            raise RuntimeError("a copy to the host with non_blocking=True can be read before it is there")
        _note("copy to host")
        return True
    if source.device.type == "cpu" and source.numel() and not (non_blocking and hasattr(source, "is_pinned_here")):
        _note("copy from unpinned host memory" if non_blocking else "copy from host")
    return False


def _check_indices(name: str, args: Any) -> None:
    if not isinstance(args[0], DeviceTensor):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    indices, value = [index for index in args[1] if index is not None], args[2] if name != "index" else None
    if value is not None and value.device.type == "cpu" and value.dim():
        raise RuntimeError(f"{name}: expected a value on {NAME}, found it on cpu")
    for index in indices:
        if index.device.type == "cpu":
            _note("index from host")
    fills = value is not None and value.numel() == 1 and len(indices) == 1  # done by a mask, without waiting
    if not fills and any(index.dtype in (torch.bool, torch.uint8) for index in indices):
        _note("index by booleans")


def _pin(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    tensor.is_pinned_here = True  # type: ignore[attr-defined]
    return tensor


class _Backend(backend_registration._DummyBackendModule):
    """What torch asks of an accelerator as a whole; the CPU's random state is its own."""

    get_rng_state = staticmethod(lambda *_: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, *_: torch.set_rng_state(state))
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])
    device = staticmethod(contextlib.nullcontext)
    synchronize = staticmethod(lambda *_: _note("synchronize"))


def _register() -> list[torch.library.Library]:
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    library, others = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")

    def casting(operator: Any, choose: Callable[[set[torch.dtype]], torch.dtype]) -> Callable[..., Any]:
        def is_cast(value: Any) -> bool:
            return isinstance(value, DeviceTensor) and value.is_floating_point() and value.dtype != torch.float64

        def call(*args: Any, **kwargs: Any) -> Any:
            dtype = choose({leaf.dtype for leaf in tree_leaves((args, kwargs)) if is_cast(leaf)})
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
                args, kwargs = tree_map(lambda each: each.to(dtype) if is_cast(each) else each, (args, kwargs))
                return operator(*args, **kwargs)

        return call

    def lower(_: set[torch.dtype]) -> torch.dtype:
        return torch.get_autocast_dtype(NAME)

    def widest(found: set[torch.dtype]) -> torch.dtype:
        return torch.float32 if torch.float32 in found else torch.get_autocast_dtype(NAME)

    for names, choose in ((_CAST_TO_FP32, lambda _: torch.float32), (_CAST_DOWN, lower), (_CAST_TO_WIDEST, widest)):
        for full_name in names.split():
            name, _, overload = full_name.partition(".")
            if operator := getattr(getattr(torch.ops.aten, name), overload or "default", None):
                library.impl(full_name, casting(operator, choose), "AutocastPrivateUse1")
    return [library, others]


_libraries = _register()  # what they hold is undone with them


class _Accelerator(accelerate.Accelerator):
    """accelerate's, made to believe in the device."""

    def __init__(self, mixed_precision: str, **options: Any) -> None:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        in_fp16 = mixed_precision == "fp16"  # which it refuses without a GPU that it knows
        super().__init__(**{**options, "cpu": True, "mixed_precision": "no" if in_fp16 else mixed_precision})
        for state in (accelerate.state.PartialState, accelerate.state.AcceleratorState):
            state._shared_state["device"] = torch.device(NAME, 0)
        if in_fp16:
            accelerate.state.AcceleratorState._shared_state["_mixed_precision"] = "fp16"
            self.native_amp, self.scaler = True, torch.amp.GradScaler(NAME)


@contextlib.contextmanager
def on_device() -> Iterator[Waits]:
    """Within the block tensors can be on the device; see the module."""
    waits, before = Waits(), torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) then copies, which is seen
    _watching.append(waits)
    try:
        with mock.patch.object(torch.Tensor, "pin_memory", _pin), _Factories():
            yield waits
    finally:
        _watching.remove(waits)
        torch._C._set_only_lift_cpu_tensors(before)


@contextlib.contextmanager
def steelgen_on_device() -> Iterator[Waits]:
    """`on_device`, with steelgen's `pick_device` and accelerate made to choose it."""

    def pick_device(name: str = "auto") -> torch.device:
        return torch.zeros(1, device="gpu" if name == "auto" else name).device

    with pytest.MonkeyPatch.context() as patch, on_device() as waits:
        # Its code, since many modules have it under a name of their own.
        patch.setattr(devices.pick_device, "__code__", pick_device.__code__)
        patch.setattr(steelgen.training.setup, "Accelerator", _Accelerator)
        yield waits
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
