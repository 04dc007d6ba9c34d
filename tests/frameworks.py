"""What frameworks call the weight, the bias and the running statistics of Batch Norm."""

FRAMEWORKS = {
    "torch": ("weight", "bias", "running_mean", "running_var"),
    "Keras": ("gamma", "beta", "moving_mean", "moving_variance"),
    "TensorFlow 1": ("gamma:0", "beta:0", "moving_mean:0", "moving_variance:0"),
    "tf.nn": ("scale", "offset", "mean", "variance"),
    "flax": ("scale", "bias", "mean", "var"),
    "ONNX": ("scale", "B", "input_mean", "input_var"),
    "MXNet": ("gamma", "beta", "moving_mean", "moving_var"),
    "gluon": ("gamma", "beta", "running_mean", "running_var"),
    "Paddle": ("weight", "bias", "_mean", "_variance"),
}
