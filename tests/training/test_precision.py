"""Options that change memory and speed but not what is learned."""

import pytest
import torch

from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.errors import InputError
from steelgen.generators.families import build_trainable
from steelgen.training.batch_size import tune_batch
from steelgen.training.setup import build_accelerator, build_crops, place_networks, prepare_training
from steelgen.training.state import build_state
from tests.conftest import tiny_train_config


def compute_gradients(dataset, tmp_path, dropout, **options):
    values = tiny_train_config(dataset, tmp_path / "run", **options)
    values["generator"]["unet"]["dropout"] = dropout
    config = parse_config(values, TrainConfig)
    generator, micrographs = prepare_training(config)
    torch.manual_seed(1)
    for parameter in generator.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # else the zero-initialized output keeps gradients from the rest
    trainable = build_trainable(generator, config)
    place_networks(trainable.networks, config.train, torch.device("cpu"))
    crops = build_crops(config, trainable, micrographs)
    items = [crops[number] for number in range(2)]
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    torch.manual_seed(2)
    trainable.compute_loss(trainable.phases[0], trainable.networks, batch).losses.mean().backward()
    return {name: parameter.grad for name, parameter in generator.network.named_parameters()}


@pytest.mark.parametrize(
    ("options", "dropout"),
    # Dropout draws in the order of memory, which channels_last changes.
    [({"gradient_checkpointing": True}, 0.1), ({"channels_last": False}, 0.0)],
)
def test_gradients_stay(tiny_dataset, tmp_path, options, dropout):
    plain, other = (compute_gradients(tiny_dataset, tmp_path, dropout, **each) for each in ({}, options))
    for name in plain:
        torch.testing.assert_close(other[name], plain[name], atol=1e-5, rtol=1e-3)


def test_compiled_network_has_the_same_gradients(tiny_dataset, tmp_path, monkeypatch):
    """Traced by dynamo and run without a compiler, which is not everywhere."""
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiler(function, backend=backend))
    torch.compiler.reset()
    compiled = compute_gradients(tiny_dataset, tmp_path, 0.0, compile=True)
    assert traced
    plain = compute_gradients(tiny_dataset, tmp_path, 0.0)
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], atol=1e-5, rtol=1e-3)


def test_bf16_gradients_point_the_same_way(tiny_dataset, tmp_path):
    with torch.autocast("cpu", torch.bfloat16):
        rounded = compute_gradients(tiny_dataset, tmp_path, 0.0)
    plain = compute_gradients(tiny_dataset, tmp_path, 0.0)
    first, second = (torch.cat([gradient.flatten() for gradient in each.values()]) for each in (rounded, plain))
    assert torch.cosine_similarity(first, second, dim=0) > 0.99
    assert all(gradient.dtype == torch.float32 for gradient in rounded.values())


def test_fp16_on_a_cpu_is_refused(tiny_dataset, tmp_path):
    config = parse_config(tiny_train_config(tiny_dataset, tmp_path, mixed_precision="fp16"), TrainConfig)
    with pytest.raises(InputError, match="mixed_precision fp16: training needs a GPU"):
        build_accelerator(config.train)
    with pytest.raises(InputError, match="mixed_precision fp16: training needs a GPU"):
        tune_batch(config)


def test_one_process_trains_in_one_precision_after_the_other(tiny_dataset, tmp_path):
    for precision in ("no", "bf16", "no"):
        config = parse_config(tiny_train_config(tiny_dataset, tmp_path, mixed_precision=precision), TrainConfig)
        assert build_accelerator(config.train).mixed_precision == precision


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_reaches_torch(tiny_dataset, tmp_path, tf32):
    build_accelerator(parse_config(tiny_train_config(tiny_dataset, tmp_path, tf32=tf32), TrainConfig).train)
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True


def test_adamw_is_fused(tiny_dataset, tmp_path):
    config = parse_config(tiny_train_config(tiny_dataset, tmp_path), TrainConfig)
    generator, _ = prepare_training(config)
    state = build_state(config, build_trainable(generator, config), None, 4, criterion=None)
    assert all(optimizer.defaults["fused"] for optimizer in state.optimizers.values())
