"""The ways in which a call is lowered to what algorithms know, one a file: each there and back."""
