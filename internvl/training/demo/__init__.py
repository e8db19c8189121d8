"""The demo checkpoint: drawn data, dense pre-training of the ViT, question-answer training,
release."""
