"""The ways to compute a convolution: one class each, written once against the Array API namespace (see `algorithm`)."""
