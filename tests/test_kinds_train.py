"""Every optimizer and every schedule trains the character model, on real text."""

import jax
import pytest

from jaxllm import settings
from jaxllm.training import equalities, setup
from jaxllm.training.state import place_key
from jaxllm.training.validate import validate

STEPS = 500
BIGRAM = 2.4858  # nats a character on this validation split (Witten-Bell)
# Plain SGD lags on transformers: 2.51 after as many steps, far below a unigram's 3.3473.
BAR = {"sgd": 2.6}
RATES = {
    "adamw": 3e-3,
    "adafactor": 1e-2,
    "lamb": 1e-2,
    "lion": 5e-4,
    "muon": 0.02,
    "sgd": 0.3,
    "adamw8bit": 3e-3,
}
CONFIG = "configs/shakespeare_char.py:nanogpt_cpu"


def final_loss(tmp_path, *overrides):
    """Validation loss on a quarter of the split after STEPS steps at nanoGPT's CPU sizes."""
    common = [("steps", str(STEPS)), ("schedule.warmup_steps", "25"), ("mesh.data", "1")]
    config, _ = settings.load(CONFIG, [*common, *overrides], setup.KINDS)
    run = setup.assemble(config, tmp_path, jax.devices()[:1])
    bench = equalities.Bench(config, tmp_path)
    state, losses = bench.train(run, run.create(place_key(run.mesh, 0)), last=STEPS)
    assert abs(losses[0] - 4.174) < 0.1  # ln 65
    batch = config.validate.batch
    found = validate(
        run.evaluate, run.validation, run.mesh, state.params, {}, batch=batch, batches=7
    )
    return found["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", setup.KINDS["optim"][0])
def test_every_optimizer_trains_the_character_model(kind, tmp_path):
    rate = ("schedule.lr", str(RATES[kind]))
    loss = final_loss(tmp_path, ("optim.kind", kind), rate)
    print(f"{kind}: {loss:.4f}")
    assert loss < BAR.get(kind, BIGRAM)


@pytest.mark.slow
@pytest.mark.parametrize("kind", setup.KINDS["schedule"][0])
def test_every_schedule_trains_the_character_model(kind, tmp_path):
    loss = final_loss(tmp_path, ("schedule.kind", kind), ("schedule.lr", "3e-3"))
    print(f"{kind}: {loss:.4f}")
    assert loss < BIGRAM
