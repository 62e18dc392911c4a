"""Progress of searches and stages in trackers of experiments: TensorBoard, MLflow, Weights & Biases."""
