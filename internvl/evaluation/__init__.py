"""Evaluation (report sections 5 to 7): every benchmark of the report, scored where a rule can.

    benchmarks.toml, benchmarks     what each row of Tables 6-15 is: data, prompt, tiles, metric
    samples -> prompts -> asking    a file to samples, prompts, tiles and answers
    run_config, runner, processes   configuration hash, batches, shards, resume: predictions.jsonl
    metrics/, scoring, statistics   predictions to scores with intervals; paired comparison
    evaluate, show, commands        `internvl eval run | show | list | score | compare`
    scaling, curves, best_of_n      chain of thought, votes, maj@k, frames, scorer hook
    engines/                        VLMEvalKit, lmms-eval, lm-eval, OpenCompass
    vision/                         probing and segmentation of the vision encoder

Everything that needs a judge or the hidden answers of a server is named as such and left to the
engine that has it.
"""
