"""What the probe of a masked stage costs, as a share of the stage's time.

    python -m benchmarks.probe --backbone vit_base --stage further_pretrain --batch 64

Times steps of the stage, then two probes of as many labelled examples as a run takes, the first of
which compiles, and says what all probes of the config's schedule (`run.probe_every`) take of the
time of its steps.
"""

import sys
from dataclasses import replace

import jax

from benchmarks import cases, ours_step, outcome
from sdfp import initial, parallel
from sdfp.data import loading, pixels
from sdfp.models.registry import BACKBONES
from sdfp.train import probe


def measure(case: cases.Case) -> dict:
    """Seconds of a step and of probes, and the share."""
    timed = ours_step.measure(case)
    step_seconds = outcome.per_step(timed)
    # Of images a case has no more than a batch needs.
    made = cases.make(replace(case, batch=2 * probe.MOST))
    split = probe.sample(made.split)
    assert split is not None
    settings, precision = made.settings, parallel.precision(case.precision)
    devices = parallel.make(**vars(settings.parallel))
    prepare = lambda batch, key, augment: batch
    if "image" in split.arrays:
        data = settings.data
        prepare = pixels.make_prepare(data.mean, data.std, data.image_size)
    with precision.context():
        family = BACKBONES[settings.model_name]
        backbone = initial.make_backbone(family, settings.model, precision.dtype)
        params = devices.replicate(jax.device_get(backbone.init(jax.random.key(0))))
        feed = loading.open_feed(split, devices, settings.run.resident_gb)
        how = {"prepare": prepare, "devices": devices, "rows": settings.run.eval_batch_size}
        found = [probe.measure(params, feed=feed, backbone=backbone, **how) for _ in range(2)]
    first, later = (each["probe_seconds"] for each in found)
    steps, every = made.recipe.steps, settings.run.probe_every
    probes = -(-steps // every) + 1  # also before the first step
    total = first + (probes - 1) * later
    return {
        "command": "python -m benchmarks.probe " + " ".join(sys.argv[1:]),
        "step_seconds": step_seconds,
        "first_probe_seconds": first,
        "probe_seconds": later,
        "examples": len(split),
        "steps": steps,
        "probe_every": every,
        "share": total / (steps * step_seconds),
        "versions": timed["versions"],
        "device": timed["device"],
    }


def show(told: dict) -> None:
    seconds = [told[f"{name}_seconds"] for name in ("step", "first_probe", "probe")]
    print("a step {:.3g} s, the first probe {:.3g} s, another {:.3g} s".format(*seconds))
    print(
        f"{told['examples']} examples every {told['probe_every']} of {told['steps']} steps: "
        f"{100 * told['share']:.2f} % of the steps' time"
    )


if __name__ == "__main__":
    parser = cases.flags_of("python -m benchmarks.probe")
    parser.add_argument("--steps", type=int, default=3, help="that are timed")
    flags = parser.parse_args()
    outcome.conclude(lambda: measure(cases.of(flags)), show, flags.json)
