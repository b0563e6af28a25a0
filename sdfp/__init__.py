"""sdfp: self-distillation for further pre-training of transformers, in JAX/Flax.

Where do I find ...
    the paper's Algorithm 1                 algorithm.py
    a method of the result tables           methods/, one file each
    a row: methods joined, settings varied  rows.py
    a cell: a row with a seed, its teacher  cells.py
    the stages that a cell takes            stages.py
    a data set                              data/, one file each
    a model                                 models/, one file each
    what the models share                   models/{stack,attention,dropout}.py
    the training step, and what it reduces  train/step.py
    the loops over batches                  train/loop.py
    metrics, and the worst mistakes         train/{evaluation,mistakes}.py
    a stage: optimiser, teacher, resume     train/stage.py
    a stage on disk: identity, model card   train/kept.py
    what is checked before any training     preparation.py, preflight.py, memory.py
    theta_init: scratch, published weights  initial.py
    all of it put together                  experiment.py
    settings chosen on the validation part  tuning.py
    results.json, and cells that fail       results.py
    tables: statistics, formats             comparison.py, table_notes.py, rendering.py
    every setting, with its default         ../configs/common.py, of texts common_text.py
                                            (types, ranges: settings.py, config_checks.py)
    devices, jit and pmap                   parallel.py; their memory: machine.py
    metrics.jsonl                           report.py writes it, logged.py reads it
    what a checkpoint keeps beside a state  train/progress.py
    several processes                       hosts.py
    compiled programs, kept                 programs.py
    Orbax                                   checkpoint.py, nowhere else
    saves beside training                   train/saver.py
    signals; one run per workdir            signals.py; lock.py
    published weights                       pretrained.py, models/{vit,roberta}_weights.py
    texts: files, tokenizer, packing        data/{text_files,tokenizer,packing}.py
    a trained model, read again             trained.py
    the way to transformers and timm        export.py, models/{vit,roberta}_export.py
    predictions for new images and texts    predict.py, data/inputs.py
    downloads                               data/fetch.py
    section 4: closed forms, figures        linear_model.py, theory.py
    the paper's figures of finished runs    points.py, figure.py, drawing.py
    report.html of a work directory         page/, one file for each of its sections
    flags                                   main.py, table.py
"""

__version__ = "0.1.0"
