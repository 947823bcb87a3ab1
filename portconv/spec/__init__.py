"""What is asked of a convolution, as plain data: dtypes, ranges, geometry, layout, options and operations."""
