"""Many runs together: what they found, side by side."""
