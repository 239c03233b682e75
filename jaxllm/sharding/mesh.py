"""The device mesh: seven axes, those that say least over the wire first.

| Axis   | What is split over it                                       |
|--------|-------------------------------------------------------------|
| slice  | rows, between slices joined by the data-centre network      |
| data   | rows; weights are whole                                     |
| fsdp   | rows; weights are split and gathered when used              |
| stage  | layers, and rows outside of them                            |
| expert | experts, and rows outside of them                           |
| seq    | the length of a row; keys and values go round a ring        |
| tensor | heads, MLP width, vocabulary; between them the length       |
"""

import itertools
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxllm.config import ConfigError

MESH_AXES = ("slice", "data", "fsdp", "stage", "expert", "seq", "tensor")
ROW_AXES = MESH_AXES[:5]  # that axis 0 of a batch is split over
LENGTH_AXES = MESH_AXES[5:]  # that its length is split over


def full_shape(**sizes):
    """Returns {axis: size} of all axes; those that are not given are 1."""
    return dict.fromkeys(MESH_AXES, 1) | sizes


def words(shape):
    """Writes a mesh's shape, such as "data 2 x fsdp 4"."""
    return " x ".join(f"{axis} {size}" for axis, size in shape.items() if size > 1) or "one device"


def rows_each(batch, shape):
    """Rows of a batch of `batch` rows that each device of a mesh has."""
    return batch // math.prod(shape[axis] for axis in ROW_AXES)


def mesh_shape(section, devices):
    """Returns {axis: size} with the axis that is -1 filled from the number of devices.

    Args:
        section: {axis of MESH_AXES: size}, at most one of them -1.
        devices: number of devices.

    Raises:
        ConfigError: sizes that do not multiply to the number of devices.
    """
    shape = {axis: section[axis] for axis in MESH_AXES}
    for axis, size in shape.items():
        if size < 1 and size != -1:
            raise ConfigError(
                f"config.mesh.{axis}={size} must be at least 1, or -1 for the devices left over.\n"
                f"  Try --config.mesh.{axis}=-1."
            )
    free = [axis for axis, size in shape.items() if size == -1]
    if len(free) > 1:
        raise ConfigError(
            f"config.mesh has {' and '.join(free)} both -1; one axis at most can take the rest.\n"
            f"  Try --config.mesh.{free[1]}=1."
        )
    fixed = math.prod(size for size in shape.values() if size != -1)
    if free and devices % fixed == 0:
        shape[free[0]] = devices // fixed
    elif free or fixed != devices:
        text = " x ".join(f"{axis}={size}" for axis, size in shape.items() if size != 1) or "data=1"
        edits = " and ".join(f"--config.mesh.{a}={n}" for a, n in _fit(shape, devices).items())
        raise ConfigError(
            f"config.mesh {text} does not fit {devices} devices.\n"
            f"  The sizes must multiply to {devices}. Try {edits}."
        )
    return shape


def _fit(shape, devices):
    """Returns the fewest {axis: size} that make a shape fit."""
    for count in range(1, len(MESH_AXES) + 1):
        for axes in itertools.combinations(MESH_AXES, count):
            sizes = shape | dict.fromkeys(axes, 1)
            if -1 not in sizes.values():
                sizes[axes[0]] = -1
            if devices % math.prod(size for size in sizes.values() if size != -1) == 0:
                return {axis: sizes[axis] for axis in axes}
    raise AssertionError("unreachable: data=-1 and all others 1 fit any number of devices")


def make_mesh(shape, devices=None):
    """Makes the mesh; axis types are Auto, so that the compiler places what we do not.

    Where devices are of several slices, only `slice` and then `data` cross the network between
    them; within a slice the axes are laid along its links.

    Raises:
        ConfigError: slice x data does not divide over the slices.
    """
    devices = jax.devices() if devices is None else devices
    types = (AxisType.Auto,) * len(MESH_AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        sizes = [shape[axis] for axis in MESH_AXES]
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(placed, MESH_AXES, axis_types=types)
    between = full_shape(slice=math.gcd(shape["slice"], slices))
    between["data"] = slices // between["slice"]
    if shape["data"] % between["data"]:
        raise ConfigError(
            f"config.mesh slice={shape['slice']} x data={shape['data']} does not divide over the "
            f"{slices} slices that these devices are of, and no other axis may cross them.\n"
            f"  Try --config.mesh.slice={slices} --config.mesh.data=-1."
        )
    within = [shape[axis] // between[axis] for axis in MESH_AXES]
    placed = mesh_utils.create_hybrid_device_mesh(
        within, list(between.values()), devices, allow_split_physical_axes=True
    )
    return Mesh(placed, MESH_AXES, axis_types=types)


def check_splits(field, size, shape, axes, times=1, times_field=""):
    """Raises ConfigError unless `size` divides evenly over the mesh `axes` (times micro-batches).

    Args:
        field: name in the config, such as "data.batch".
        size: its value.
        shape: {mesh axis: size}.
        axes: mesh axes that it is split over.
        times: another factor that must divide it, named by `times_field`.
    """
    ways = math.prod(shape[axis] for axis in axes) * times
    if size % ways == 0 and size > 0:
        return
    below, above = size // ways * ways, max(-(-size // ways), 1) * ways
    over = " x ".join(f"{axis}={shape[axis]}" for axis in axes if shape[axis] > 1)
    over += f" x {times_field}={times}" if times > 1 else ""
    nearest = " or ".join(str(n) for n in dict.fromkeys((below, above)) if n)
    factors = {f"mesh.{axis}": shape[axis] for axis in axes} | {times_field: times}
    raise ConfigError(
        f"config.{field}={size} does not split evenly over mesh axes {over} ({ways} ways).\n"
        f"  Nearest that do: {nearest}.\n"
        f"  Try --config.{field}={above}, or a smaller --config.{max(factors, key=factors.get)}."
    )
