"""Compiling for TPU slices that are not there; only where libtpu is installed."""

import math

import numpy as np
import pytest

from jaxllm import sharding
from jaxllm.config import ConfigError
from jaxllm.scaling import topology
from tests.conftest import LIBTPU

needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="pip install -r requirements-tpu.txt")


@pytest.mark.skipif(LIBTPU, reason="libtpu is installed")
def test_without_libtpu_it_says_what_to_install():
    with pytest.raises(ConfigError, match="requirements-tpu"):
        topology.tpu_devices("v4:4x4x4")


@needs_libtpu
@pytest.mark.parametrize("name", ["v4", "v4:64", "v9:2x2", "v5e:3x3x3"])
def test_unknown_slices_are_refused(name):
    with pytest.raises(ConfigError, match="topology"):
        topology.tpu_devices(name)


@needs_libtpu
@pytest.mark.parametrize("name, chips", [("v4:2x2x1", 4), ("v4:4x4x4", 64), ("v5e:4x4", 16)])
def test_a_device_is_a_chip(name, chips):
    devices = topology.tpu_devices(name)
    assert len(devices) == chips and all(d.platform == "tpu" for d in devices)
    assert len(topology.tpu_devices(name, slices=2)) == 2 * chips


@pytest.mark.slow
@needs_libtpu
def test_the_train_step_gathers_each_weight_twice_and_no_more(tmp_path):
    """Forward and backward, in bfloat16; embedding and head once each."""
    from jaxllm import models, settings
    from jaxllm.models.families import model_config
    from jaxllm.scaling import hlo
    from jaxllm.training import ahead, setup

    fields = dict(layers=4, width=1024, heads=8, mlp_width=4096, vocab=8192)
    pairs = [(f"model.{name}", str(value)) for name, value in fields.items()]
    pairs += [("tokenizer.kind", "byte"), ("data.batch", "16"), ("validate.batch", "16")]
    config, _ = settings.load("configs/pretrain.py:family=llama,size=", pairs, setup.KINDS)
    devices = topology.tpu_devices("v4:2x2x1")
    wire = hlo.costs(ahead.compile_step(config, devices, tmp_path, 256).text).wire
    c = model_config(config.model, vocab=256, length=config.data.length)
    infos = models.abstract_params(c)
    size = {path: 2 * math.prod(info.shape) for path, info in infos.items() if info.multiplies}
    layers = sum(n for path, n in size.items() if path.startswith("layers/"))
    table = 2 * math.prod(infos["embed"].shape)
    assert wire["all-gather"] == pytest.approx(2 * layers + size["head/w"] + table, rel=0.02)


@needs_libtpu
def test_only_slice_and_data_cross_the_network_between_slices():
    devices = topology.tpu_devices("v5e:2x4", slices=4)

    def slices_of(**sizes):
        mesh = sharding.make_mesh(sharding.full_shape(**sizes), devices)
        return np.vectorize(lambda device: device.slice_index)(mesh.devices).reshape(
            sizes.get("slice", 1), sizes["data"], -1
        )

    for sizes in dict(slice=4, data=1, fsdp=8), dict(slice=2, data=4, seq=2, tensor=2):
        found = slices_of(**sizes)
        assert (found == found[:, :, :1]).all()
        assert len(np.unique(found[:, :, 0])) == 4
    assert (np.diff(slices_of(data=8, fsdp=4)[0, :, 0]) >= 0).all()
    with pytest.raises(ConfigError, match=r"mesh\.slice=4"):
        slices_of(data=1, fsdp=32)
