"""Engines of others, driven so that their known traps do not change a score.

    vlmevalkit      the checkout of INTERNVL_VLMEVALKIT, as a subprocess
    lmms_eval       a model plug-in, through the entry-point group `lmms_eval.models`
    lm_eval         text benchmarks, in this process
    export_llm      the language model as a folder, for lm-eval and OpenCompass by themselves

docs/evaluation_engines.md says how to install each, what is corrected and how, and what was run.
"""
