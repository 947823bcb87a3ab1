"""The algorithms that compute a convolution. Each is one class, written against the Array API (see `algorithm`)."""
