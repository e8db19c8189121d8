"""The workshop around the model repository: loading, chat, training, data and evaluation."""
