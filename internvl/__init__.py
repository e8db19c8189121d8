"""The workshop around the InternVL model repository: loading, chat, training, data and evaluation."""
