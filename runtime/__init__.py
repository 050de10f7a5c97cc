"""What any process needs; knows nothing of tensors, KServe or an engine."""
