"""Training: the stages of the report, and checkpoints to start them from (transformers 5).

recipes          a run as YAML, and what `preset: official` means
run              recipe -> model, data, trainer -> final checkpoint
stages           what learns: frozen parts, drop path
losses           weights of equation 5, a fused kernel for CUDA
trainer          transformers.Trainer on packs
optim, muon      AdamW; Muon for the matrices
callbacks        SIGTERM, average of the weights
evaluate         held-out loss and answers while training
curves           losses of runs as a picture
progressive      an aligned ViT under a larger language model (section 3.3)
assemble         a checkpoint of a ViT and a language model; vocabulary adds the tokens
distill          cosine distillation of InternViT-300M (Table 1)
commands         `internvl train ...`
demo/            data, stage 0 and evaluation of the checkpoint in demo/
"""
