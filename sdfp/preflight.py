"""What is loaded and checked before any training: mistakes are told before hours are spent."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdfp import checkpoint, machine, parallel, report
from sdfp.data import loading
from sdfp.data.interface import Dataset, Split
from sdfp.data.loading import Feed
from sdfp.data.registry import DATASETS
from sdfp.models import attention
from sdfp.settings import Examples, Experiment
from sdfp.train import probe
from sdfp.train.stage import Place
from sdfp.types import Params, UserError, WorkdirError, one_line

TRIAL = ".sdfp_trial"
"""A name of our own: what is there under it is deleted."""
STATE = 3
"""Times the parameters: those, and AdamW's two moments."""


class Source(NamedTuple):
    """A data set and its splits on the way to the devices."""

    data: Dataset
    feeds: dict[str, Feed]

    def held(self) -> int:
        """Bytes that stay on every device; feeds of one split share them."""
        splits = {id(feed.split): feed for feed in self.feeds.values()}
        return sum(feed.held() for feed in splits.values())


def check_workdir(workdir: Path) -> None:
    """Saves a little and reads it back: what cannot be done there is told before hours are spent.

    Raises:
        UserError: it cannot be saved, or is not what was saved.
    """
    for left in workdir.glob(f"{TRIAL}*"):  # by a run that was killed: the lock is ours now
        shutil.rmtree(left, ignore_errors=True)
    trial, tree = workdir / TRIAL, {"trial": np.arange(3, dtype=np.float32)}
    try:
        checkpoint.save(trial, tree, {})
        checkpoint.restore(trial, like=tree)
    except (WorkdirError, checkpoint.DamagedCheckpoint) as error:
        raise UserError(f"--workdir={workdir}: a trial save: {one_line(error)}") from error
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def unfinished(workdir: Path, stages: Iterable[str]) -> list[str]:
    """Those of `stages` that are still to be trained."""
    return [name for name in stages if not (workdir / "stages" / name / "final").exists()]


def check_space(workdir: Path, params: Params, stages: Iterable[str]) -> None:
    """Whether the disk has room for the checkpoints of `stages`, of which `params` are the start.

    Raises:
        UserError: it has not.
    """
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    left = unfinished(workdir, stages)
    if not left:
        return
    final = {name: size(params["encoder"] if "finetune/" in name else params) for name in left}
    saved = workdir.glob("stages/**/step_?????????/**/*")
    needed = (checkpoint.KEPT + 1) * STATE * max(final.values()) + sum(final.values())
    needed -= sum(path.stat().st_size for path in saved if path.is_file())
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise UserError(
            f"--workdir={workdir}: {report.gigabytes(needed)} are needed for checkpoints of "
            f"{len(left)} stages, {report.gigabytes(free)} are free"
        )
    told = f"disk: checkpoints of {len(left)} stages need {report.gigabytes(needed)} at most"
    report.say(f"{told}, {report.gigabytes(free)} are free")


CUDNN = "config.model.attention=cudnn"
ROUNDING = float(jnp.finfo(jnp.bfloat16).eps) / 2
"""Relative, of one number: what no result in bfloat16 can be blamed for."""


def check_precision(model: Any, precision: parallel.Precision) -> None:
    """Whether the model's settings suit platform and precision, before anything is loaded."""
    if model.cudnn_shapes:
        parallel.check_cudnn(CUDNN, precision)


def check_attention(model: Any) -> None:
    """Whether fused attention computes what the plain one does, where the settings ask for it.

    Both round to bfloat16, in another order: neither is the truth. So the fused one's error against
    float32 may be some times the plain one's, and one rounding more.

    Raises:
        UserError: it does not, or it cannot be run.
    """
    for shape in model.cudnn_shapes:
        where = f"{CUDNN}: for {shape.heads} heads of {shape.head_dim}, {shape.tokens} tokens,"
        try:
            found = attention.errors(shape)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise UserError(f"{where} it fails: {one_line(error)}. Use plain") from error
        for what, (fused, plain) in found.items():
            if not fused <= 4 * plain + ROUNDING:  # NaN is refused, too
                raise UserError(
                    f"{where} the {what} are off by {fused:.2g} of their size, {plain:.2g} with "
                    "plain attention in bfloat16. Use plain"
                )
    if model.cudnn_shapes:
        report.say("attention: cuDNN, checked against the plain one")


def check_apart(block: str, settings: Examples, workdir: Path) -> None:
    """Raises UserError where the next run would take what this one writes for data."""
    entry = DATASETS.get(settings.name)
    if entry and entry.reads and entry.reads(settings.dir, workdir):
        raise UserError(
            f"--workdir={workdir}: lies among the images of config.{block}.dir={settings.dir}, "
            "where the next run would look for images; give a folder elsewhere"
        )


def load_data(block: str, settings: Examples, place: Place, beside: Source | None = None) -> Source:
    """The data set that a block of the config names, with its counts said.

    Args:
        beside: another one, which is on the devices already.

    Raises:
        UserError: it cannot be read, or the devices have no room for what is to stay there.
    """
    if settings.name not in DATASETS:
        raise UserError(f"config.{block}.name: {settings.name!r} is none of {', '.join(DATASETS)}")
    entry = DATASETS[settings.name]
    if not isinstance(settings, entry.settings):
        fitting = [n for n, other in DATASETS.items() if isinstance(settings, other.settings)]
        raise UserError(
            f"config.{block}.name: config.model cannot read {settings.name}; it can read "
            f"{', '.join(fitting)}"
        )
    if settings.source == "tfds" and not entry.tfds:
        able = ", ".join(name for name, other in DATASETS.items() if other.tfds)
        raise UserError(f"config.{block}.source: tfds is for {able} only")
    try:
        data = entry.load(settings)
    except OSError as error:
        raise UserError(f"config.{block}.dir: cannot be read ({one_line(error)})") from error
    counts = dict(data.notes["counts"])
    if data.unlabelled is data.train:
        del counts["unlabelled" if data.train.labelled else "train"]
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    classes = f", {len(data.class_names)} classes" if data.class_names else ""
    report.say(f"{block}: {settings.name}, {told}{classes}")
    for remark in data.remarks:
        report.say(f"{block}: {remark}")
    splits = [data.train]
    if data.unlabelled is not data.train:  # as a rule it is: one copy on the devices
        splits.append(data.unlabelled)
    feeds = _on_devices(splits, beside.held() if beside else 0, place)
    return Source(data, {"train": feeds[0], "unlabelled": feeds[-1]})


def _on_devices(splits: list[Split], beside: int, place: Place) -> list[Feed]:
    """Opens them, where `beside` bytes are on every device already. What a CPU has no room for must
    not be tried: the system would end the process."""
    most, there = place.run.resident_gb, machine.memory(place.devices.count)
    held = beside + sum(loading.resident_bytes(split, most) for split in splits)
    told = f"config.run.resident_gb={most:g}: a device is to keep {report.gigabytes(held)} of data"
    lower = "take a lower one; what is larger is sent batch by batch"
    if there is not None and held > there:
        raise UserError(f"{told}, {report.gigabytes(there)} are there: {lower}")
    try:
        feeds = [loading.open_feed(split, place.devices, most) for split in splits]
        jax.block_until_ready([feed.resident for feed in feeds])
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"{told}, and has no room for it: {lower}") from error
    return feeds


def with_probe(target: Source, place: Place, planned: Mapping[str, Mapping]) -> Source:
    """The data set with a feed "probe", where that is asked for and there are labels for it.

    Args:
        planned: the run's stages, as `rows.plan` tells them.
    """
    if not place.run.probe_every or not target.data.train.labelled:
        return target
    sample = probe.sample(target.data.train)
    if sample is None:
        report.say("data: no probe: too few training examples of each class")
        return target
    _tell_few_probes(place, planned)
    if sample is target.data.train:  # one copy on the devices
        return target._replace(feeds={**target.feeds, "probe": target.feeds["train"]})
    return target._replace(feeds={**target.feeds, "probe": loading.on_host(sample)})


def _tell_few_probes(place: Place, planned: Mapping[str, Mapping]) -> None:
    """Says of which masked stage that is still to be trained the probe could never warn."""
    every, left = place.run.probe_every, unfinished(place.workdir, planned)
    steps = {n: planned[n]["recipe"]["steps"] for n in left if "finetune" not in n}
    few = [name for name, count in steps.items() if probe.too_few(count, every)]
    if few:
        shortest = min(few, key=lambda name: steps[name])
        report.say(
            f"warning: config.run.probe_every={every} gives too few probes in the "
            f"{steps[shortest]} steps of {shortest} to warn of over-fitting; "
            f"{max(1, steps[shortest] // 4)} would do"
        )


def check_held_out(asked: Mapping[str, str], data: Dataset) -> None:
    """Whether the splits are there that the user asked for, {how: split}."""
    for how, name in asked.items():
        if data.train.labelled and getattr(data, name) is None:
            raise UserError(
                f"{how}: there is no {name} split; cut one with --config.data.{name}_fraction=0.2"
            )


def check_one_tokenizer(source: Dataset, target: Dataset) -> None:
    """With another one, the rows of the embeddings would mean other words to the target."""
    if source.input.get("tokenizer") != target.input.get("tokenizer"):
        raise UserError(
            "config.source.tokenizer: another one than config.data.tokenizer (each is learnt, "
            "where it is not given); give one folder for both: an exported stage has a tokenizer"
        )


def check_names(settings: Experiment, params: Params) -> None:
    """A misspelt parameter name would freeze nothing, without a word."""
    for stage, recipe in vars(settings.stages).items():
        tree = params["encoder"] if stage == "finetune" else params
        known = {name.split("/")[-1] for name in checkpoint.flatten(tree)}
        for key in ("frozen", "no_decay"):
            unknown = [name for name in getattr(recipe, key) if name not in known]
            if unknown:
                raise UserError(
                    f"config.stages.{stage}.{key}: no parameter is called {unknown[0]!r}; there "
                    f"are {', '.join(sorted(known))}"
                )
