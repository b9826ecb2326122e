"""The kernels of the operators for the CPU, compiled by numba."""
