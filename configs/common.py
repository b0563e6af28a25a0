"""Every key of a run, with the defaults: the authors' recipe for ViT-MAE (Lee et al. 2023).

Other configs take this one and change a few values. Any value can be changed on the command
line: `--config.stages.finetune.steps=500`. Tuples: `--config.seeds=0,1,2`.
"""

from ml_collections import ConfigDict

# Encoder and decoder of ViT-MAE (He et al. 2022, appendix A.1).
VIT_SIZES = {
    "base": {"dim": 768, "depth": 12, "heads": 12, "mlp_dim": 3072, "patch_size": 16},
    "large": {"dim": 1024, "depth": 24, "heads": 16, "mlp_dim": 4096, "patch_size": 16},
    "huge": {"dim": 1280, "depth": 32, "heads": 16, "mlp_dim": 5120, "patch_size": 14},
}


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "run"  # default work directory: runs/<name>
    # Rows of the table: names of sdfp/methods/registry.py; "a+b" is a row of two methods.
    config.methods = ("finetune", "further_pretrain", "self_distillation")
    config.seeds = (0, 1, 2, 3, 4)  # fine-tuning runs of each row
    config.seed = 0  # of the pre-training stages: order, masks
    # auto | float32 | tf32 | bfloat16. auto: float32 on CPU, tf32 on GPU, bfloat16 on TPU.
    # Parameters, reductions, softmax and losses are float32 in any case.
    config.precision = "auto"
    # test | validation: which split the table reports; the other one is never looked at.
    config.evaluate_on = "test"

    config.data = data()  # the target: D_tr, and D_u without its labels
    config.source = data()  # only for init.kind=pretrain: what theta_init is trained on
    config.model = vit("base")
    config.init = ConfigDict(
        {
            # scratch: random | weights: a published MAE | pretrain: a masked stage on `source`.
            "kind": "scratch",
            # Hugging Face id, folder (config.json + *.safetensors) or .safetensors file.
            "weights": "",
            "revision": "",  # of the Hugging Face repository; "" = its main branch
            # stop | scratch: what to do with a file that holds only an encoder.
            "missing_decoder": "stop",
            "seed": 0,  # of random parameters: scratch, a missing decoder
        }
    )
    config.stages = ConfigDict(
        {
            "pretrain": masked_recipe(),
            "further_pretrain": masked_recipe(),
            "self_distill": masked_recipe(),
            "finetune": finetune_recipe(),
        }
    )
    config.method = methods()
    config.parallel = ConfigDict(
        {
            "backend": "jit",  # jit | pmap
            "devices": 0,  # how many; 0 = all
            # For models whose training state is too large for one device: each keeps a part of
            # parameters and optimiser state, and is sent the other parameters for each step.
            "fsdp": False,
        }
    )
    config.run = run()
    return config


def methods() -> ConfigDict:
    """What each method can be set to: [published] by its authors, else chosen here. Where rows are
    joined by "+", each brings its own."""
    return ConfigDict(
        {
            "recadam": {
                "penalty": 5000.0,  # gamma: pull to theta_init [published]
                "schedule": "sigmoid",  # sigmoid | linear | constant: of lambda [published]
                "steepness": 0.5,  # k of the sigmoid [published]
                "midpoint": 250,  # t0: the step where the sigmoid is 1/2, linear is 1 [published]
            },
            # How far each unit's weights may go from theta_init (of the head from 0), in the sum
            # of absolute values. Published for convolutional nets only: choose with --tune.
            "mars": {"radius": 8.0, "head_radius": 16.0},
            "r3f": {
                "noise": "normal",  # normal | uniform
                "epsilon": 1e-5,  # its scale [published]
                "weight": 1.0,  # of the symmetric KL [published]
            },
            "self_distillation": {
                "rounds": 1,  # T' of Algorithm 1
                "features": "cls",  # cls | all: the tokens whose features are compared
                "masked_weight": 1.0,  # lambda of the paper's Table 6
                "distill_weight": 1.0,
            },
            "distill_only": {"features": "cls"},
            "prediction_matching": {"weight": 1.0},
            "weight_matching_l2": {"weight": 1.0},
            "weight_matching_mars": {"weight": 1.0},
            "label_smoothing": {"alpha": 0.1},  # share of the uniform distribution
            "tf_reg": {
                "alpha": 0.1,  # share of the hand-made teacher
                "certainty": 0.9,  # what it gives to the true class
            },
            "kd": {
                "alpha": 0.5,  # share of the teacher
                "temperature": 2.0,
                # A fine-tuned model: WORKDIR, WORKDIR/stages/finetune/... or what sdfp.export
                # wrote; "" = fine-tune one first:
                "teacher": "",
                "weights": "",  # from these weights, as init.weights, or, if "", ...
                "depth": 0,  # ... as the student starts, with so many blocks; 0 = twice its own
            },
            "self_kd": {"alpha": 0.5, "temperature": 2.0},
        }
    )


def run() -> ConfigDict:
    """Bookkeeping."""
    return ConfigDict(
        {
            "log_every": 50,  # steps between lines of metrics.jsonl
            "checkpoint_every": 500,  # steps between checkpoints within a stage
            "steps_per_call": 10,  # steps per dispatch to the device
            "eval_batch_size": 128,
            # Training data, held-out data, the teacher's features: each stays on every device if
            # it is no larger than this, else its rows travel with each batch (features: the
            # teacher runs in every step).
            "resident_gb": 4.0,
            # Examples in reconstructions.png (.txt) after a masked stage; 0 = nothing of the data
            # is kept, the worst mistakes neither.
            "pictures": 4,
            # Steps of a masked stage between probes of its frozen features, by labelled training
            # examples held out in turn; 0 = none. Over-fitting shows in three or more.
            "probe_every": 1000,
            # Steps of a stage that may be skipped, because their loss or gradient is not finite,
            # before the stage stops. The last step must not be.
            "max_skipped": 10,
            # Whether to measure the masked loss on the reported split, too, after a masked stage.
            "masked_loss": False,
            "tensorboard": True,
            # A folder of yours alone, for compiled programs: the next run need not compile them.
            "compilation_cache": "",  # "" = none
        }
    )


def data() -> ConfigDict:
    return ConfigDict(
        {
            "name": "image_folder",  # see sdfp/data/registry.py
            "dir": "",
            "source": "files",  # files | tfds (TensorFlow Datasets, prepared as array_record)
            "image_size": 224,  # resized to this square, the aspect is not kept (bilinear)
            "channels": 3,
            "mean": (0.485, 0.456, 0.406),  # ImageNet, for pixels from 0 to 1
            "std": (0.229, 0.224, 0.225),
            "test_fraction": 0.0,  # cut from train where the data set has no test split
            "validation_fraction": 0.0,  # cut from train, for selection
            "train_labels": 0,  # label budget, stratified; 0 = all
            "split_seed": 0,  # of the three cuts
            "max_broken": 0,  # broken files that are skipped and listed before it is an error
            "cache_dir": "~/.cache/sdfp",  # decoded images; "" = decode at every start
        }
    )


def vit(size: str) -> ConfigDict:
    """ViT-MAE. With init.kind=weights the file's own config decides the architecture."""
    return ConfigDict(
        {
            "name": "vit_mae",  # see sdfp/models/registry.py
            "image_size": 224,
            "channels": 3,
            **VIT_SIZES[size],
            "decoder_dim": 512,
            "decoder_depth": 8,
            "decoder_heads": 16,
            "decoder_mlp_dim": 2048,
            "layer_norm_eps": 1e-12,
            "qkv_bias": True,
            "mask_ratio": 0.75,
            "normalize_targets": True,  # predict pixels normalised within each patch
            "dropout_pretrain": 0.0,
            "dropout_finetune": 0.1,
            # plain | cudnn: fused, for NVIDIA GPUs and precision=bfloat16; never run on one so far.
            "attention": "plain",
        }
    )


def published_weights(config: ConfigDict) -> None:
    """theta_init and phi_init of the paper's image experiments."""
    config.init.kind, config.init.weights = "weights", "facebook/vit-mae-base"
    config.method.kd.weights = "facebook/vit-mae-large"


def masked_recipe() -> ConfigDict:
    """Further pre-training and self-distillation, as in the authors' code."""
    return ConfigDict(
        {
            "steps": 20_000,
            "batch_size": 64,  # over all devices
            "accumulate": 1,  # micro-batches per step
            "learning_rate": 1.5e-4,  # linear to 0
            "warmup_steps": 0,
            "beta1": 0.9,
            "beta2": 0.95,
            "epsilon": 1e-8,
            "weight_decay": 0.01,
            "no_decay": ("bias", "scale"),  # parameters by the last part of their name
            "frozen": ("pos_embed",),
            "clip_norm": 0.0,  # largest global gradient norm; 0 = no clipping
            "augment": False,  # random horizontal flip
        }
    )


def finetune_recipe() -> ConfigDict:
    """Fine-tuning, as in the authors' code."""
    recipe = masked_recipe()
    recipe.update(
        {
            "steps": 10_000,
            "batch_size": 32,
            "learning_rate": 1e-4,
            "warmup_steps": 500,
            "beta2": 0.999,
            "no_decay": ("bias", "pos_embed", "cls_token"),
            "frozen": (),
            "clip_norm": 1.0,
            "augment": True,
        }
    )
    return recipe


def variant(config: ConfigDict, name: str) -> ConfigDict:
    """The part of --config behind the colon: "full" (also where there is none), "small", or
    "smoke": a tiny version that takes every path, 2 steps a stage, from scratch."""
    if name == "full":
        return config
    if name == "small":
        return small(config)
    few_steps(config, name)
    config.data.image_size = config.source.image_size = config.model.image_size = 32
    config.model.update(
        {"patch_size": 8, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 64}
        | {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "decoder_mlp_dim": 32}
    )
    return config


def small(config: ConfigDict) -> ConfigDict:
    """For a laptop: images of 32 x 32 and a small model, from scratch or from weights that
    configs/vit_source.py made."""
    config.name += "_small"
    config.seeds = (0, 1, 2)
    config.init.kind, config.init.weights = "scratch", ""
    config.method.kd.weights = ""
    # These, and the learning rate of the masked stages: docs/results.md, on a validation part.
    config.method.recadam.update({"penalty": 50.0, "midpoint": 250})
    config.method.mars.radius = 2.0
    config.data.image_size = config.source.image_size = config.model.image_size = 32
    config.model.update(
        {"patch_size": 4, "dim": 128, "depth": 6, "heads": 4, "mlp_dim": 512}
        | {"decoder_dim": 64, "decoder_depth": 2, "decoder_heads": 2, "decoder_mlp_dim": 256}
    )
    stages = config.stages
    for recipe in (stages.pretrain, stages.further_pretrain, stages.self_distill):
        recipe.update({"steps": 2000, "learning_rate": 1e-3})
    stages.finetune.update({"steps": 1000, "warmup_steps": 50, "learning_rate": 1e-3})
    config.run.probe_every = 500
    return config


def few_steps(config: ConfigDict, name: str) -> None:
    """What "smoke" changes in every config.

    Raises:
        ValueError: another variant.
    """
    if name != "smoke":
        raise ValueError(f'config variant "{name}": there are "full", "small" and "smoke"')
    config.name += "_smoke"
    config.seeds = (0, 1)
    if config.init.kind == "weights":
        config.init.kind, config.init.weights = "scratch", ""
        config.method.kd.weights = ""
    for recipe in config.stages.values():
        recipe.update({"steps": 2, "batch_size": 8, "warmup_steps": 0})
    config.run.update({"log_every": 1, "checkpoint_every": 1, "steps_per_call": 2})
    config.run.probe_every = 1
    config.run.max_skipped = 0
