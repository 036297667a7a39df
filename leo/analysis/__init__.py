"""What is inside trained learners: the paper's figures 4 and 5, learned rates, inner steps, calibration.

One file for each figure gives its numbers, ``drawing`` the pictures, ``run`` the command.
"""
